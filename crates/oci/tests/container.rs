//! What a container sees: its namespaces, mounts, devices, rights and limits.

// A test fails by panicking and says what it skips.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod common;

use std::process::Command;

use common::{Bed, RUNTIME, cannot_run, skip};
use serde_json::json;

#[test]
fn a_container_has_every_namespace_of_its_own() {
    if cannot_run("a_container_has_every_namespace_of_its_own") {
        return;
    }
    let mut bed = Bed::new();
    bed.config["domainname"] = json!("example");
    bed.config["linux"]["namespaces"]
        .as_array_mut()
        .unwrap()
        .push(json!({ "type": "time" }));
    bed.config["linux"]["timeOffsets"] = json!({ "boottime": { "secs": 1_000_000 } });
    bed.config["linux"]["sysctl"] =
        json!({ "net.ipv4.ip_forward": "1", "kernel.shm_rmid_forced": "1" });
    let out = bed.output(
        "for n in pid net ipc uts mnt cgroup time; do readlink /proc/self/ns/$n; done; hostname; \
         echo pid $$; cat /proc/uptime; cat /proc/sys/kernel/domainname; cat /proc/self/cgroup | grep -c /berth; \
         cat /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/shm_rmid_forced; ls /sys/class/net",
    );
    let lines: Vec<&str> = out.lines().collect();
    for (i, name) in ["pid", "net", "ipc", "uts", "mnt", "cgroup", "time"]
        .iter()
        .enumerate()
    {
        let ours = std::fs::read_link(format!("/proc/self/ns/{name}")).unwrap();
        assert!(lines[i].starts_with(name), "{out}");
        assert_ne!(lines[i], ours.to_str().unwrap());
    }
    assert_eq!(lines[7..9], ["bed", "pid 1"]);
    assert!(
        lines[9].split('.').next().unwrap().parse::<u64>().unwrap() > 1_000_000,
        "{out}"
    );
    assert_eq!(lines[10..], ["example", "0", "1", "1", "lo"], "{out}");
    bed.assert_clean();
}

#[test]
fn mounts_are_made_as_asked_and_nothing_of_the_image_leads_outside() {
    if cannot_run("mounts_are_made_as_asked") {
        return;
    }
    let mut bed = Bed::new();
    let host = bed.dir.path().join("host");
    std::fs::create_dir_all(host.join("sub")).unwrap();
    std::fs::write(host.join("file"), "from host").unwrap();
    std::fs::write(bed.rootfs().join("data/old"), "kept").unwrap();
    // A hostile image: the mount points are links to the host.
    std::os::unix::fs::symlink(host.join("sub"), bed.rootfs().join("trap")).unwrap();
    std::os::unix::fs::symlink("/data", bed.rootfs().join("link")).unwrap();
    let bind = |destination: &str, options: &[&str]| json!({ "destination": destination, "type": "bind", "source": host, "options": options });
    let mounts = bed.config["mounts"].as_array_mut().unwrap();
    mounts.push(bind(
        "/made/ro",
        &["rbind", "rro", "rprivate", "nosuid", "noexec"],
    ));
    mounts.push(bind("/made/rw", &["bind"]));
    mounts.push(
        json!({ "destination": "/made/one", "source": "host/file", "options": ["bind", "ro"] }),
    );
    mounts.push(
        json!({ "destination": "/link", "type": "tmpfs", "source": "t",
        "options": ["size=64k", "mode=700", "tmpcopyup"] }),
    );
    mounts.push(
        json!({ "destination": "/trap/in", "type": "tmpfs", "source": "t", "options": ["ro"] }),
    );
    bed.config["root"]["readonly"] = json!(true);
    bed.config["linux"]["rootfsPropagation"] = json!("private");
    let trap = bed.fails_run();
    assert!(
        trap.contains("/trap/in"),
        "a dangling link must not be followed into creation: {trap}"
    );
    assert_eq!(std::fs::read_dir(host.join("sub")).unwrap().count(), 0);
    let mounts = bed.config["mounts"].as_array_mut().unwrap();
    mounts.pop();
    let out = bed.output(
        "cat /made/one; echo; cat /data/old; echo; touch /made/rw/new && echo wrote; \
         touch /made/ro/x || echo refused; touch /x || echo readonly; touch /data/x && echo tmp; \
         grep -c ' /made/ro .*ro,nosuid,noexec' /proc/self/mountinfo; grep -E ' /data ' /proc/self/mountinfo",
    );
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(
        lines[..7],
        [
            "from host",
            "kept",
            "wrote",
            "refused",
            "readonly",
            "tmp",
            "1"
        ],
        "{out}"
    );
    assert!(lines[7].contains("size=64k"), "{out}");
    assert!(host.join("new").exists());
    assert!(!bed.rootfs().join("data/x").exists());
    bed.assert_clean();
}

impl Bed {
    #[track_caller]
    fn fails_run(&self) -> String {
        let (code, _, err) = self.run();
        assert_ne!(code, 0);
        err
    }
}

#[test]
fn devices_masks_and_readonly_paths_protect_the_host() {
    if cannot_run("devices_masks_and_readonly_paths_protect_the_host") {
        return;
    }
    let mut bed = Bed::new();
    bed.config["linux"]["devices"] = json!([
        { "path": "/dev/deep/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 0o640, "uid": 5, "gid": 6 },
        { "path": "/dev/pipe", "type": "p", "fileMode": 0o600 }
    ]);
    bed.config["linux"]["resources"] = json!({ "devices": [{ "allow": false, "access": "rwm" }] });
    let out = bed.output(
        "for d in null zero full random urandom tty; do stat -c '%t:%T %a' /dev/$d; done; \
         stat -c '%t:%T %a %u %g' /dev/deep/fuse; stat -c %F /dev/pipe; readlink /dev/ptmx; readlink /dev/stdin; \
         cat /proc/keys | wc -c; ls /sys/firmware | wc -l; echo 1 2>/dev/null >/proc/sys/kernel/panic || echo ro; \
         head -c 3 /dev/zero | wc -c; mknod /tmp/sda b 8 0 2>/dev/null || echo nomknod",
    );
    assert_eq!(
        out.lines().collect::<Vec<_>>(),
        [
            "1:3 666",
            "1:5 666",
            "1:7 666",
            "1:8 666",
            "1:9 666",
            "5:0 666",
            "a:e5 640 5 6",
            "fifo",
            "pts/ptmx",
            "/proc/self/fd/0",
            "0",
            "0",
            "ro",
            "3",
            "nomknod"
        ]
    );
    bed.assert_clean();
}

#[test]
fn the_process_has_the_ids_rights_and_limits_of_its_configuration() {
    if cannot_run("the_process_has_the_ids_rights_and_limits_of_its_configuration") {
        return;
    }
    let mut bed = Bed::new();
    let process = &mut bed.config["process"];
    process["user"] = json!({ "uid": 1000, "gid": 1001, "additionalGids": [5, 7], "umask": 0o77 });
    let caps = json!(["CAP_NET_RAW", "CAP_CHOWN"]);
    process["capabilities"] = json!({
        "bounding": ["CAP_NET_RAW", "CAP_CHOWN", "CAP_KILL"], "permitted": caps, "effective": ["CAP_CHOWN"],
        "inheritable": ["CAP_NET_RAW"], "ambient": ["CAP_NET_RAW", "CAP_NOT_INVENTED_YET"]
    });
    process["rlimits"] = json!([
        { "type": "RLIMIT_NOFILE", "soft": 100, "hard": 200 },
        { "type": "RLIMIT_CORE", "soft": 0, "hard": 0 }
    ]);
    process["oomScoreAdj"] = json!(300);
    process["cwd"] = json!("/made/up");
    process["ioPriority"] = json!({ "class": "IOPRIO_CLASS_IDLE", "priority": 0 });
    process["scheduler"] = json!({ "policy": "SCHED_BATCH", "nice": 5 });
    bed.script(
        "id -u; id -g; id -G; grep -E 'Cap|NoNew|Seccomp:|Groups' /proc/self/status; \
         ulimit -n; ulimit -Hn; cat /proc/self/oom_score_adj; umask; pwd; echo $HOME",
    );
    let (code, out, err) = bed.run();
    assert_eq!(code, 0, "{err}");
    assert!(err.contains("CAP_NOT_INVENTED_YET"), "{err}");
    for wanted in [
        "1000\n1001\n1001 5 7\n",
        "CapInh:\t0000000000002000",
        "CapPrm:\t0000000000002000",
        "CapEff:\t0000000000002000",
        "CapBnd:\t0000000000002021",
        "CapAmb:\t0000000000002000",
        "NoNewPrivs:\t1",
        "\n100\n200\n300\n0077\n/made/up\n/home/ann\n",
    ] {
        assert!(out.contains(wanted), "missing {wanted:?} in {out}");
    }
    bed.assert_clean();
}

#[test]
fn a_seccomp_filter_binds_the_program_and_what_is_executed_in_it() {
    if cannot_run("a_seccomp_filter_binds_the_program") {
        return;
    }
    for nnp in [true, false] {
        let mut bed = Bed::new();
        bed.config["process"]["noNewPrivileges"] = json!(nnp);
        bed.config["linux"]["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
            "syscalls": [{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 2 }]
        });
        bed.script("mkdir /tmp/x; grep Seccomp: /proc/self/status; sleep 100");
        bed.write_config();
        bed.ok(&["create", "c"]);
        bed.ok(&["start", "c"]);
        let out = bed.ok(&[
            "exec",
            "c",
            "sh",
            "-c",
            "grep Seccomp: /proc/self/status; mkdir /tmp/y 2>&1 || echo no",
        ]);
        assert!(
            out.starts_with("Seccomp:\t2\n")
                && out.contains("No such file")
                && out.ends_with("no\n"),
            "{out}"
        );
        assert!(!bed.rootfs().join("tmp/x").exists() && !bed.rootfs().join("tmp/y").exists());
        bed.ok(&["delete", "--force", "c"]);
        bed.assert_clean();
    }
}

#[test]
fn exec_installs_the_filter_as_it_was_asked_for() {
    let test = "exec_installs_the_filter_as_it_was_asked_for";
    if cannot_run(test) {
        return;
    }
    if Command::new("strace").arg("-V").output().is_err() {
        skip(test, "strace is not installed");
        return;
    }
    let mut bed = Bed::new();
    bed.config["linux"]["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "flags": ["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW"],
        "syscalls": [{ "names": ["mkdir"], "action": "SCMP_ACT_ERRNO" }]
    });
    bed.script("sleep 100");
    bed.write_config();
    bed.ok(&["run", "-d", "c"]);
    let out = bed.dir.path().join("trace");
    let mut traced = Command::new("strace");
    traced.args(["-f", "-e", "trace=seccomp", "-o"]).arg(&out);
    traced.arg(RUNTIME).arg("--root").arg(&bed.root);
    let said = traced.args(["exec", "c", "true"]).output().unwrap();
    let trace = std::fs::read_to_string(&out).unwrap_or_default();
    if trace.is_empty() {
        skip(test, "strace may not trace here");
    } else {
        assert!(said.status.success(), "{said:?}");
        let flags = "SECCOMP_FILTER_FLAG_LOG|SECCOMP_FILTER_FLAG_SPEC_ALLOW";
        assert!(trace.contains(flags), "{trace}");
    }
    bed.ok(&["delete", "--force", "c"]);
    bed.assert_clean();
}

#[test]
fn limits_reach_the_control_groups_and_can_be_changed() {
    if cannot_run("limits_reach_the_control_groups_and_can_be_changed") {
        return;
    }
    let mut bed = Bed::new();
    bed.config["linux"]["resources"] = json!({
        "memory": { "limit": 64 << 20 }, "pids": { "limit": 32 }, "cpu": { "shares": 512 }
    });
    bed.script("sleep 100");
    bed.write_config();
    bed.ok(&["run", "-d", "c"]);
    let limits = |bed: &Bed| {
        let event: serde_json::Value =
            serde_json::from_str(&bed.ok(&["events", "--stats", "c"])).unwrap();
        let data = &event["data"];
        (
            data["memory"]["usage"]["limit"].as_u64(),
            data["pids"]["limit"].as_u64(),
        )
    };
    assert_eq!(limits(&bed), (Some(64 << 20), Some(32)));
    bed.ok(&["update", "--memory", "96M", "--pids-limit", "50", "c"]);
    assert_eq!(limits(&bed), (Some(96 << 20), Some(50)));
    assert!(bed.fails(&["update", "c"]).contains("no limit was given"));
    let pids: Vec<i32> = serde_json::from_str(&bed.ok(&["ps", "--format", "json", "c"])).unwrap();
    assert_eq!(pids.len(), 1);
    assert!(bed.ok(&["ps", "c"]).contains("sleep 100"));
    bed.ok(&["delete", "-f", "c"]);
    bed.assert_clean();
}
