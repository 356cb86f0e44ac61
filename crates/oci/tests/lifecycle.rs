//! The life of a container by the commands: what each may and may not do, and that nothing is left.

// A test fails by panicking and says what it skips.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod common;

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Stdio;

use common::{Bed, cannot_run, skip, text};
use serde_json::json;

#[test]
fn each_state_allows_its_operations_and_refuses_the_others() {
    if cannot_run("each_state_allows_its_operations_and_refuses_the_others") {
        return;
    }
    let mut bed = Bed::new();
    bed.config["annotations"] = json!({ "a.b": "c" });
    bed.script("echo started > /tmp/log; trap 'exit 3' TERM; while :; do sleep 0.02; done");
    bed.write_config();
    assert!(bed.fails(&["state", "c"]).contains("does not exist"));
    bed.ok(&["delete", "--force", "c"]);
    bed.ok(&["create", "--pid-file", "pid", "c"]);
    assert_eq!(bed.status("c"), "created");
    let pid = std::fs::read_to_string(bed.dir.path().join("pid")).unwrap();
    let state: serde_json::Value = serde_json::from_str(&bed.ok(&["state", "c"])).unwrap();
    assert_eq!(state["pid"].to_string(), pid);
    assert_eq!(state["annotations"]["a.b"], "c");
    assert!(bed.fails(&["create", "c"]).contains("already exists"));
    assert!(bed.fails(&["delete", "c"]).contains("it is created"));
    assert!(bed.fails(&["resume", "c"]).contains("only a paused"));
    assert!(
        !bed.rootfs().join("tmp/log").exists(),
        "the program must wait for start"
    );
    bed.ok(&["start", "c"]);
    assert_eq!(bed.status("c"), "running");
    assert!(bed.fails(&["start", "c"]).contains("it is running"));
    assert!(bed.fails(&["delete", "c"]).contains("it is running"));
    bed.ok(&["pause", "c"]);
    assert_eq!(bed.status("c"), "paused");
    assert!(
        bed.fails(&["exec", "c", "true"])
            .contains("resume it first")
    );
    let mut patient = bed
        .command(&["exec", "--ignore-paused", "c", "true"])
        .spawn()
        .unwrap();
    std::thread::sleep(std::time::Duration::from_millis(100));
    assert!(patient.try_wait().unwrap().is_none(), "it has to wait");
    bed.ok(&["resume", "c"]);
    assert!(patient.wait().unwrap().success());
    assert!(bed.ok(&["list"]).contains("running"));
    assert_eq!(bed.ok(&["list", "-q"]), "c\n");
    // The trap is set once the loop runs; until then TERM is ignored by pid 1.
    while bed.status("c") == "running" {
        bed.call(&["kill", "c", "SIGTERM"]);
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    assert_eq!(bed.status("c"), "stopped");
    assert!(bed.fails(&["kill", "c", "KILL"]).contains("it is stopped"));
    assert!(bed.fails(&["start", "c"]).contains("it is stopped"));
    bed.ok(&["delete", "c"]);
    bed.assert_clean();
}

#[test]
fn exec_joins_the_container_with_its_own_streams_ids_and_status() {
    if cannot_run("exec_joins_the_container") {
        return;
    }
    let mut bed = Bed::new();
    bed.script("sleep 100");
    bed.config["process"]["env"] = json!(["PATH=/bin", "A=0"]);
    bed.config["linux"]["personality"] = json!({ "domain": "LINUX32" });
    bed.config["linux"]["readonlyPaths"] = json!(["data"]);
    bed.write_config();
    bed.ok(&["run", "-d", "c"]);
    if cfg!(target_arch = "x86_64") {
        let machine = bed.ok(&["exec", "c", "busybox", "uname", "-m"]);
        assert_eq!(machine, "i686\n", "the container's execution domain");
    }
    let said = bed.ok(&["exec", "c", "sh", "-c", "echo x > /data/x; echo $?"]);
    assert_eq!(said, "1\n", "a path relative to the root is read-only");
    let inside = "for n in pid net ipc uts mnt cgroup; do readlink /proc/$1/ns/$n; done";
    let own = bed.ok(&["exec", "c", "sh", "-c", inside, "sh", "self"]);
    assert_eq!(own, bed.ok(&["exec", "c", "sh", "-c", inside, "sh", "1"]));
    let mut cat = bed.command(&[
        "exec",
        "-e",
        "A=1",
        "-u",
        "1000:5",
        "--cwd",
        "/tmp",
        "c",
        "sh",
        "-c",
        "cat; echo $A; id -u; pwd; echo $HOME; exit 7",
    ]);
    let mut cat = cat
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    cat.stdin.take().unwrap().write_all(b"typed\n").unwrap();
    let output = cat.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(7));
    assert_eq!(text(&output.stdout), "typed\n1\n1000\n/tmp\n/home/ann\n");
    // In all groups of the container: the count of those where the two differ is none.
    let groups = bed.ok(&[
        "exec",
        "c",
        "sh",
        "-c",
        "cat /proc/self/cgroup /proc/1/cgroup | grep -vc ':/$'; true",
    ]);
    assert_eq!(groups, "0\n");
    assert!(
        bed.fails(&["exec", "c", "nonesuch"])
            .contains("not found in $PATH")
    );
    assert!(
        bed.fails(&["exec", "c", "/etc/passwd"])
            .contains("ermission denied")
    );
    let killed = bed.call(&["exec", "c", "sh", "-c", "kill -9 $$"]);
    assert_eq!(killed.status.code(), Some(137));
    let process =
        json!({ "args": ["sh", "-c", "echo $B"], "env": ["PATH=/bin", "B=2"], "cwd": "/" });
    std::fs::write(bed.dir.path().join("p.json"), process.to_string()).unwrap();
    assert_eq!(bed.ok(&["exec", "--process", "p.json", "c"]), "2\n");
    bed.ok(&["exec", "-d", "--pid-file", "pid", "c", "sleep", "50"]);
    let pid = std::fs::read_to_string(bed.dir.path().join("pid")).unwrap();
    assert!(
        std::fs::read_to_string(format!("/proc/{pid}/cmdline"))
            .unwrap()
            .starts_with("sleep")
    );
    bed.ok(&["kill", "--all", "c", "KILL"]);
    while bed.status("c") != "stopped" {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    bed.ok(&["delete", "c"]);
    bed.assert_clean();
}

#[test]
fn deleting_in_a_shared_pid_namespace_leaves_no_process_of_the_container() {
    if cannot_run("deleting_in_a_shared_pid_namespace") {
        return;
    }
    let mut bed = Bed::new();
    bed.script("sleep 60");
    bed.write_config();
    bed.ok(&["run", "-d", "host"]);
    let state: serde_json::Value = serde_json::from_str(&bed.ok(&["state", "host"])).unwrap();
    let pid = state["pid"].as_i64().unwrap();
    let mut guest = Bed::new();
    for namespace in guest.config["linux"]["namespaces"].as_array_mut().unwrap() {
        if namespace["type"] == "pid" {
            namespace["path"] = json!(format!("/proc/{pid}/ns/pid"));
        }
    }
    guest.script("sleep 61 & exit 0");
    guest.write_config();
    guest.ok(&["run", "-d", "guest"]);
    while guest.status("guest") != "stopped" {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    guest.ok(&["delete", "guest"]);
    guest.assert_clean();
    bed.ok(&["delete", "-f", "host"]);
    bed.assert_clean();
}

#[test]
fn run_ends_as_the_program_does() {
    if cannot_run("run_ends_as_the_program_does") {
        return;
    }
    let mut bed = Bed::new();
    for (script, code) in [
        ("exit 0", 0),
        ("exit 42", 42),
        ("kill -9 $$; sleep 1; exit 5", 5),
    ] {
        bed.script(script);
        assert_eq!(bed.run().0, code, "{script}");
    }
    bed.config["process"]["args"] = json!(["/no/such"]);
    let (code, _, err) = bed.run();
    assert!(code != 0 && err.contains("/no/such"), "{err}");
    // A signal to `run` reaches the program.
    bed.script("trap 'exit 9' USR1; echo up; while :; do sleep 0.02; done");
    bed.write_config();
    let mut child = bed
        .command(&["run", "c"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut up = [0u8; 3];
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut up).unwrap();
    // SAFETY: signals our own child, which has not been waited for.
    unsafe { libc::kill(child.id() as i32, libc::SIGUSR1) };
    assert_eq!(child.wait().unwrap().code(), Some(9));
    bed.assert_clean();
}

#[test]
fn a_terminal_is_given_and_is_the_container_s_own() {
    if cannot_run("a_terminal_is_given") {
        return;
    }
    if std::process::Command::new("script")
        .arg("--version")
        .output()
        .is_err()
    {
        return skip("a_terminal_is_given", "needs script(1)");
    }
    let mut bed = Bed::new();
    bed.config["process"]["terminal"] = json!(true);
    bed.config["process"]["consoleSize"] = json!({ "height": 33, "width": 77 });
    bed.script("tty; stty size; test -t 0 && echo tty; test -c /dev/console && echo console; ls /dev/pts | wc -l");
    bed.write_config();
    assert!(bed.fails(&["create", "c"]).contains("--console-socket"));
    let line = format!(
        "{} --root {} run c </dev/null",
        common::RUNTIME,
        bed.root.display()
    );
    let output = std::process::Command::new("script")
        .args(["-qec", &line, "/dev/null"])
        .current_dir(bed.dir.path())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let out = text(&output.stdout).replace('\r', "");
    assert!(
        out.contains("/dev/pts/0\n33 77\ntty\nconsole\n2\n"),
        "{out:?}"
    );
    bed.assert_clean();
}

#[test]
fn hooks_run_in_order_with_the_state_and_a_failure_undoes_everything() {
    if cannot_run("hooks_run_in_order") {
        return;
    }
    let mut bed = Bed::new();
    let log = bed.dir.path().join("log");
    let hook = bed.dir.path().join("hook");
    let script = format!(
        "#!/bin/sh\necho \"$1 $(cat | tr ',' '\\n' | grep -o '\"status\":\"[a-z]*\"')\" >> {}\n",
        log.display()
    );
    std::fs::write(&hook, script).unwrap();
    std::fs::set_permissions(&hook, std::fs::Permissions::from_mode(0o755)).unwrap();
    let entry = |name: &str| json!([{ "path": hook, "args": ["hook", name], "env": ["PATH=/bin:/usr/bin"] }]);
    bed.config["hooks"] = json!({
        "prestart": entry("prestart"), "createRuntime": entry("createRuntime"),
        "createContainer": entry("createContainer"), "poststart": entry("poststart"),
        "poststop": entry("poststop"),
        "startContainer": [
            { "path": "/bin/sh", "args": ["sh", "-c", "cat > /tmp/started"], "env": ["PATH=/bin"] },
            { "path": "/bin/sh", "args": ["sh", "-c", "test \"$OF_PROGRAM\" = yes"] }
        ]
    });
    bed.config["process"]["env"] = json!(["PATH=/bin", "OF_PROGRAM=yes"]);
    bed.script("cat /tmp/started");
    let (code, out, err) = bed.run();
    assert_eq!(code, 0, "{err}");
    assert!(out.contains("\"status\":\"created\""), "{out}");
    let lines = std::fs::read_to_string(&log).unwrap();
    let names: Vec<&str> = lines.lines().collect();
    assert_eq!(
        names,
        [
            "prestart \"status\":\"created\"",
            "createRuntime \"status\":\"creating\"",
            "createContainer \"status\":\"creating\"",
            "poststart \"status\":\"running\"",
            "poststop \"status\":\"stopped\""
        ]
    );
    for (point, hook, why) in [
        (
            "createRuntime",
            json!({ "path": "/bin/false" }),
            "exited with status 1",
        ),
        (
            "prestart",
            json!({ "path": "/bin/sleep", "args": ["sleep", "60"], "timeout": 1 }),
            "timeout of 1 s",
        ),
        (
            "createContainer",
            json!({ "path": "/no/such/hook" }),
            "does not exist",
        ),
    ] {
        bed.config["hooks"] = json!({ point: [hook] });
        bed.write_config();
        let said = bed.fails(&["create", "c"]);
        assert!(said.contains(point) && said.contains(why), "{said}");
        bed.assert_clean();
    }
}

#[test]
fn what_cannot_work_is_refused_by_name_and_leaves_nothing() {
    if cannot_run("what_cannot_work_is_refused_by_name") {
        return;
    }
    let good = Bed::new();
    let cases: &[(&str, serde_json::Value, &str)] = &[
        ("/ociVersion", json!("2.0.0"), "ociVersion"),
        ("/ociVersion", json!(1), "`ociVersion`"),
        ("/process/cwd", json!("relative"), "process.cwd"),
        ("/process/args", json!([]), "process.args"),
        ("/process/args", json!("true"), "process.args"),
        (
            "/process/rlimits",
            json!([{ "type": "RLIMIT_NONE", "soft": 1, "hard": 1 }]),
            "rlimits[0].type",
        ),
        (
            "/process/rlimits",
            json!([{ "type": "RLIMIT_CORE", "soft": 2, "hard": 1 }]),
            "rlimits[0].soft",
        ),
        (
            "/process/capabilities",
            json!({ "inheritable": ["CAP_NET_RAW"], "permitted": ["CAP_NET_RAW"] }),
            "beyond process.capabilities.bounding",
        ),
        ("/root", json!(null), "root"),
        ("/root/path", json!("nowhere"), "root.path"),
        (
            "/linux/namespaces",
            json!([{ "type": "wormhole" }]),
            "linux.namespaces[0].type",
        ),
        (
            "/linux/namespaces",
            json!([{ "type": "pid" }, { "type": "pid" }]),
            "given twice",
        ),
        (
            "/linux/namespaces",
            json!([{ "type": "user" }]),
            "uidMappings",
        ),
        (
            "/linux/namespaces",
            json!([{ "type": "mount" }]),
            "hostname",
        ),
        (
            "/linux/sysctl",
            json!({ "kernel.panic": "1" }),
            "linux.sysctl.kernel.panic",
        ),
        (
            "/linux/sysctl",
            json!({ "net.../../kernel/panic": "1" }),
            "linux.sysctl",
        ),
        (
            "/linux/intelRdt",
            json!({ "closID": "x" }),
            "linux.intelRdt",
        ),
        (
            "/linux/cgroupsPath",
            json!("/../escape"),
            "linux.cgroupsPath",
        ),
        (
            "/linux/maskedPaths",
            json!(["relative"]),
            "linux.maskedPaths[0]",
        ),
        (
            "/linux/devices",
            json!([{ "path": "/dev/x", "type": "q" }]),
            "linux.devices[0].type",
        ),
        (
            "/linux/seccomp",
            json!({ "defaultAction": "SCMP_ACT_DANCE" }),
            "linux.seccomp",
        ),
        (
            "/mounts",
            json!([{ "destination": "/x", "type": "nofs" }]),
            "/x",
        ),
        (
            "/mounts",
            json!([{ "destination": "/x", "type": "tmpfs", "options": ["size=lots"] }]),
            "size",
        ),
        (
            "/mounts",
            json!([{ "destination": "/x", "type": "tmpfs", "options": ["idmap"] }]),
            "mounts[0].options",
        ),
        (
            "/hooks",
            json!({ "prestart": [{ "path": "rel" }] }),
            "hooks.prestart[0].path",
        ),
        ("/process/args", json!(["nonesuch"]), "not found in $PATH"),
    ];
    for (pointer, value, wanted) in cases {
        let mut config = good.config.clone();
        match config.pointer_mut(pointer) {
            Some(place) => *place = value.clone(),
            None => {
                let (parent, key) = pointer.rsplit_once('/').unwrap();
                config.pointer_mut(parent).unwrap()[key] = value.clone();
            }
        }
        std::fs::write(good.dir.path().join("config.json"), config.to_string()).unwrap();
        let said = good.fails(&["create", "c"]);
        assert!(said.contains(wanted), "{pointer} = {value}: {said}");
        good.assert_clean();
    }
    for (bytes, wanted) in [
        (vec![b'['; 100_000], "invalid type: sequence"),
        (
            [&b"{\"linux\":{\"intelRdt\":{\"a\":"[..], &[b'['; 100_000]].concat(),
            "recursion limit",
        ),
        (b"{}".to_vec(), "ociVersion"),
        (b"{\"ociVersion\":\"1.0.0\"".to_vec(), "EOF"),
        (vec![b' '; 5 << 20], "larger than"),
        (b"\xff\xfe".to_vec(), "config.json"),
    ] {
        std::fs::write(good.dir.path().join("config.json"), bytes).unwrap();
        let said = good.fails(&["create", "c"]);
        assert!(said.contains(wanted), "{said}");
    }
    for id in ["", "../up", "a/b", ".."] {
        good.write_config();
        assert!(
            good.fails(&["create", id]).contains("container id"),
            "{id:?}"
        );
    }
    good.assert_clean();
}

#[test]
fn a_killed_creator_leaves_nothing_that_delete_cannot_remove() {
    if cannot_run("a_killed_creator_leaves_nothing") {
        return;
    }
    let mut bed = Bed::new();
    // The hook kills the creator in the middle: state and groups exist, the child waits.
    bed.config["hooks"] = json!({ "createRuntime": [{ "path": "/bin/sh", "args": ["sh", "-c", "kill -9 $PPID; sleep 0.1"] }] });
    bed.script("sleep 1000");
    bed.write_config();
    assert!(!bed.call(&["create", "c"]).status.success());
    let state: serde_json::Value = serde_json::from_str(&bed.ok(&["state", "c"])).unwrap();
    bed.ok(&["delete", "--force", "c"]);
    let pid = state["pid"].as_i64().unwrap();
    assert!(pid == 0 || !std::path::Path::new(&format!("/proc/{pid}/root/bin/busybox")).exists());
    bed.assert_clean();
}
