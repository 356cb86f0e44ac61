//! Limits and what confines a container, as the kernel sees them; restarts, health, and the log's size.

use std::{fs, path::PathBuf};

use testkit::Daemon;

use crate::common::{daemon, status, until, until_so};

/// A control file of an instance: `controller` names the hierarchy of version 1.
pub fn control(daemon: &Daemon, id: &str, controller: &str, file: &str) -> String {
    let group = format!("{}/{id}", daemon.prefix());
    let places = [
        PathBuf::from("/sys/fs/cgroup")
            .join(controller)
            .join(&group),
        PathBuf::from("/sys/fs/cgroup").join(&group),
    ];
    let found = places
        .iter()
        .find_map(|place| fs::read_to_string(place.join(file)).ok());
    found
        .unwrap_or_else(|| panic!("{places:?} have no {file}"))
        .trim()
        .to_owned()
}

fn id(daemon: &Daemon, name: &str) -> String {
    daemon.inspect(name).unwrap()["id"]
        .as_str()
        .unwrap()
        .to_owned()
}

#[test]
fn limits_hold_change_live_and_are_billed() {
    let Some(daemon) = daemon("limits_hold") else {
        return;
    };
    if !PathBuf::from("/sys/fs/cgroup/memory").exists() {
        testkit::skip(
            "limits_hold",
            "the files of version 1 are looked at, this host has version 2",
        );
        return;
    }
    let words = [
        "run", "-d", "--name", "box", "--memory", "32M", "--cpus", "0.5", "--pids", "20",
    ];
    daemon
        .berth(&[&words[..], &["busybox", "sleep", "1000"]].concat())
        .unwrap();
    let id = id(&daemon, "box");
    let seen = || {
        [
            ("memory", "memory.limit_in_bytes"),
            ("cpu", "cpu.cfs_quota_us"),
            ("pids", "pids.max"),
        ]
        .map(|(controller, file)| control(&daemon, &id, controller, file))
    };
    assert_eq!(seen(), ["33554432", "50000", "20"]);
    let bomb = "for i in $(seq 40); do sleep 1 & done; wait";
    let said = daemon.run(&["exec", "box", "sh", "-c", bomb]).unwrap();
    assert!(said.err.contains("can't fork"), "{said:?}");
    // In force when the command returns, without a restart.
    let pid = daemon.inspect("box").unwrap()["pid"].clone();
    daemon
        .berth(&[
            "set", "box", "--memory", "64M", "--cpus", "1.5", "--pids", "30",
        ])
        .unwrap();
    assert_eq!(seen(), ["67108864", "150000", "30"]);
    assert_eq!(daemon.inspect("box").unwrap()["pid"], pid);

    let greedy = "x=$(head -c 100000000 /dev/zero | tr '\\0' a); echo never";
    let words = [
        "run", "--name", "greedy", "--memory", "16M", "busybox", "sh", "-c",
    ];
    let said = daemon.run(&[&words[..], &[greedy]].concat()).unwrap();
    assert_eq!((said.code, said.out.as_str()), (137, ""), "{said:?}");
    assert_eq!(
        daemon.inspect("greedy").unwrap()["exit"]["oom_killed"],
        true
    );

    let burn = "i=0; while [ $i -lt 50000 ]; do i=$((i+1)); done";
    daemon
        .berth(&["run", "--name", "burner", "busybox", "sh", "-c", burn])
        .unwrap();
    let used = |name: &str| {
        daemon.inspect(name).unwrap()["usage"]["cpu_ns"]
            .as_u64()
            .unwrap()
    };
    let first = used("burner");
    assert!(first > 0);
    daemon.berth(&["start", "burner"]).unwrap();
    daemon.berth(&["wait", "burner"]).unwrap();
    assert!(used("burner") > first, "usage is of all runs");
}

#[test]
fn root_inside_is_confined() {
    let Some(daemon) = daemon("root_inside_is_confined") else {
        return;
    };
    daemon
        .berth(&["run", "-d", "--name", "box", "busybox", "sleep", "1000"])
        .unwrap();
    let pid = daemon.inspect("box").unwrap()["pid"].as_u64().unwrap();
    let outside = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let field = |name: &str| {
        let line = outside.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().to_owned()
    };
    assert_ne!(field("Uid:"), "0", "root inside is nobody outside");
    assert_eq!(field("NoNewPrivs:"), "1");
    assert_eq!(field("Seccomp:"), "2");
    let inside = |script: &str| daemon.run(&["exec", "box", "sh", "-c", script]).unwrap();
    assert_eq!(inside("id -u").out, "0\n");
    // Masked paths are empty, writes and privileged calls are refused.
    let masked =
        "cat /proc/keys /proc/timer_list /proc/interrupts 2>/dev/null; ls /proc/acpi 2>/dev/null";
    assert_eq!(inside(masked).out, "");
    for script in [
        "echo b > /proc/sysrq-trigger",
        "echo 1 > /proc/sys/kernel/panic",
        "mount -t tmpfs none /tmp",
        "echo 1 > /sys/fs/cgroup/memory/memory.limit_in_bytes",
        "unshare -U true",
        "mknod /tmp/disk b 254 0 && cat /tmp/disk",
        "ip link add x type bridge",
    ] {
        let said = inside(script);
        assert_ne!(said.code, 0, "{script}: {said:?}");
    }
    // Each container has ids of its own.
    daemon
        .berth(&["run", "-d", "--name", "other", "busybox", "sleep", "1000"])
        .unwrap();
    let maps = ["box", "other"].map(|name| {
        daemon
            .berth(&["exec", name, "cat", "/proc/self/uid_map"])
            .unwrap()
    });
    assert_ne!(maps[0], maps[1]);

    let run = |words: &[&str]| daemon.run(&[&["run", "--rm"], words].concat()).unwrap();
    let write = run(&["--read-only", "busybox", "sh", "-c", "touch /x"]);
    assert!(
        write.code != 0 && write.err.contains("Read-only"),
        "{write:?}"
    );
    let caps = run(&[
        "--cap-drop",
        "ALL",
        "--cap-add",
        "CHOWN",
        "busybox",
        "grep",
        "CapEff",
        "/proc/self/status",
    ]);
    assert_eq!(caps.out, "CapEff:\t0000000000000001\n");
    let open = run(&[
        "--no-userns",
        "--no-seccomp",
        "busybox",
        "sh",
        "-c",
        "cat /proc/self/uid_map; grep Seccomp: /proc/self/status",
    ]);
    assert!(
        open.out.contains("4294967295") && open.out.contains("Seccomp:\t0"),
        "{open:?}"
    );
    let limit = run(&[
        "--ulimit",
        "nofile=123:456",
        "busybox",
        "sh",
        "-c",
        "ulimit -n; ulimit -Hn",
    ]);
    assert_eq!(limit.out, "123\n456\n", "{limit:?}");
    let sysctl = run(&[
        "--sysctl",
        "net.ipv4.ip_forward=1",
        "busybox",
        "cat",
        "/proc/sys/net/ipv4/ip_forward",
    ]);
    assert_eq!(sysctl.out, "1\n", "{sysctl:?}");
}

#[test]
fn what_ends_is_restarted_as_its_policy_says() {
    let Some(mut daemon) = daemon("what_ends_is_restarted") else {
        return;
    };
    let run = |name: &str, policy: &str, script: &str| {
        let words = [
            "run",
            "-d",
            "--name",
            name,
            "--restart",
            policy,
            "busybox",
            "sh",
            "-c",
            script,
        ];
        daemon.run(&words).unwrap();
    };
    run("twice", "on-failure:2", "exit 3");
    run("fine", "on-failure", "exit 0");
    run("always", "always", "sleep 0.1");
    let over = |name: &str| {
        let shown = daemon.inspect(name).unwrap();
        (shown["status"] == "stopped" && shown["restart_at"].is_null()).then_some(shown)
    };
    let twice = until("the retries are used up", || over("twice"));
    assert_eq!(
        (&twice["restarts"], &twice["exit"]["code"]),
        (&2.into(), &3.into())
    );
    let fine = until("it ended well", || over("fine"));
    assert_eq!(fine["restarts"], 0);
    until_so("it is started again and again, more slowly", || {
        daemon.inspect("always").unwrap()["restarts"]
            .as_u64()
            .unwrap()
            >= 3
    });
    // The policy outlives the daemon, and so does what the user stopped.
    daemon.kill();
    daemon.restart().unwrap();
    let before = daemon.inspect("always").unwrap()["restarts"]
        .as_u64()
        .unwrap();
    until_so("it goes on after a crash", || {
        daemon.inspect("always").unwrap()["restarts"]
            .as_u64()
            .unwrap()
            > before
    });
    daemon.berth(&["stop", "always"]).unwrap();
    daemon.kill();
    daemon.restart().unwrap();
    assert_eq!(status(&daemon, "always"), "stopped");
}

#[test]
fn health_is_checked_and_logs_are_bounded() {
    let Some(daemon) = daemon("health_is_checked") else {
        return;
    };
    let words = [
        "run",
        "-d",
        "--name",
        "box",
        "--health-cmd",
        "test -f /well",
        "--health-interval",
        "100ms",
    ];
    let words = [
        &words[..],
        &["--health-retries", "2", "busybox", "sleep", "1000"],
    ]
    .concat();
    daemon.berth(&words).unwrap();
    until_so("it is unhealthy", || {
        daemon.inspect("box").unwrap()["health"] == "unhealthy"
    });
    daemon.berth(&["exec", "box", "touch", "/well"]).unwrap();
    daemon
        .berth(&["wait", "--for", "healthy", "--timeout", "30s", "box"])
        .unwrap();

    // 300 KiB through a log of at most two files of 64 KiB.
    let body = daemon.root().join("noisy.json");
    let noise = "i=0; while [ $i -lt 3000 ]; do i=$((i+1)); \
        echo 0123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123 $i; done";
    let spec = serde_json::json!({
        "name": "noisy",
        "spec": {"image": "busybox", "command": ["sh", "-c", noise], "log": {"max_size": "64K", "files": 2}}
    });
    fs::write(&body, spec.to_string()).unwrap();
    let mut curl = daemon.netns().command("curl");
    curl.args(["-fsS", "--unix-socket"])
        .arg(daemon.run_dir().join("berth.sock"));
    curl.args(["-H", "Content-Type: application/json", "--data-binary"]);
    curl.arg(format!("@{}", body.display()))
        .arg("http://berth/v1/instances?wait_s=30");
    let output = curl.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    daemon.berth(&["wait", "noisy"]).unwrap();
    let directory = daemon.inspect("noisy").unwrap()["directory"]
        .as_str()
        .unwrap()
        .to_owned();
    let size: u64 = fs::read_dir(PathBuf::from(directory).join("log"))
        .unwrap()
        .map(|entry| entry.unwrap().metadata().unwrap().len())
        .sum();
    assert!(size <= 160 << 10, "{size} bytes of log");
    let last = daemon.berth(&["logs", "-n", "1", "noisy"]).unwrap();
    assert!(last.ends_with(" 3000"), "{last}");
}
