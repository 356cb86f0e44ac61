//! Containers on a kernel whose control groups are of version 2 only: that of a machine, since this
//! host may have none. The runtime of the host runs inside, as root of the guest.

use std::path::PathBuf;

use serde_json::json;
use testkit::Daemon;

use crate::{common, machine};

/// What the guest does before it is asked for anything: the one hierarchy, and a bundle.
const PREPARE: &str = "\
    mount -t cgroup2 none /sys/fs/cgroup && \
    mkdir -p /b/rootfs/bin && cp /bin/busybox /b/rootfs/bin && \
    for name in sh cat sleep dd head tail; do ln -s busybox /b/rootfs/bin/$name; done && \
    echo ready; sleep 100000";

/// A machine with the runtime and a bundle in it.
struct Guest {
    daemon: Daemon,
    place: tempfile::TempDir,
}

impl Guest {
    fn new(test: &str) -> Option<Self> {
        let runtime = PathBuf::from(std::env::var_os("BERTH_OCI").unwrap_or_default());
        if !runtime.is_file() {
            testkit::skip(test, "BERTH_OCI names no static runtime to run in a guest");
            return None;
        }
        let daemon = machine::daemon(test)?;
        let words = "run -d --vm --memory 256M --network none --name host busybox sh -c";
        let words: Vec<&str> = words.split(' ').chain([PREPARE]).collect();
        daemon.berth(&words).unwrap();
        common::until_so("the guest is prepared", || {
            daemon.berth(&["logs", "host"]).unwrap() == "ready"
        });
        let to = ["cp", runtime.to_str().unwrap(), "host:/bin/berth-oci"];
        daemon.berth(&to).unwrap();
        let place = tempfile::tempdir().unwrap();
        Some(Self { daemon, place })
    }

    /// Runs a script in the guest; its output, which has to end well.
    #[track_caller]
    fn sh(&self, script: &str) -> String {
        let said = self.try_sh(script);
        assert_eq!(said.code, 0, "{script}: {said:?}");
        said.out
    }

    fn try_sh(&self, script: &str) -> testkit::Said {
        let words = ["exec", "host", "sh", "-c", script];
        self.daemon.run(&words).unwrap()
    }

    /// Gives the bundle a configuration whose program is `script`.
    fn configure(&self, script: &str, resources: &serde_json::Value) {
        let config = json!({
            "ociVersion": "1.2.0",
            "process": {
                "args": ["sh", "-c", script],
                "env": ["PATH=/bin"],
                "cwd": "/",
                "user": { "uid": 0, "gid": 0 },
            },
            "root": { "path": "rootfs" },
            "mounts": [
                { "destination": "/proc", "type": "proc", "source": "proc" },
                { "destination": "/dev", "type": "tmpfs", "source": "tmpfs" },
                { "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro"] },
            ],
            "linux": {
                "cgroupsPath": "/tenants/one",
                "namespaces": [
                    { "type": "pid" }, { "type": "ipc" }, { "type": "uts" }, { "type": "mount" },
                    { "type": "network" }, { "type": "cgroup" },
                ],
                "resources": resources,
            },
        });
        let path = self.place.path().join("config.json");
        std::fs::write(&path, config.to_string()).unwrap();
        let to = ["cp", path.to_str().unwrap(), "host:/b/config.json"];
        self.daemon.berth(&to).unwrap();
    }
}

#[test]
fn limits_hold_where_all_control_groups_are_of_version_2() {
    let Some(guest) = Guest::new("limits_hold_where_all_control_groups_are_of_version_2") else {
        return;
    };
    let disk = guest.sh("stat -c %t:%T /dev/vda");
    let (major, minor) = disk.trim().split_once(':').unwrap();
    let number = |text| i64::from_str_radix(text, 16).unwrap();
    let (major, minor) = (number(major), number(minor));
    guest.configure(
        "cat /sys/fs/cgroup/memory.max; exec sleep 1000",
        &json!({
            "memory": { "limit": 64 << 20, "swap": 64 << 20, "reservation": 32 << 20 },
            "cpu": { "quota": 50_000, "period": 100_000, "shares": 2048 },
            "pids": { "limit": 32 },
            "blockIO": {
                "throttleReadBpsDevice": [{ "major": major, "minor": minor, "rate": 1 << 20 }],
            },
            "unified": { "memory.high": "50331648" },
            "devices": [
                { "allow": false, "access": "rwm" },
                { "allow": true, "type": "c", "major": 1, "minor": 3, "access": "rwm" },
            ],
        }),
    );
    // A namespace of its own shows the container its group as the root.
    guest.sh("berth-oci create -b /b one >/tmp/out 2>&1 && berth-oci start one");
    common::until_so("the program sees its own limit", || {
        guest.sh("cat /tmp/out") == "67108864\n"
    });
    let shown = "cd /sys/fs/cgroup/tenants/one && tail -n +1 memory.max memory.swap.max memory.low \
        memory.high cpu.max cpu.weight pids.max io.max";
    let shown = guest.sh(shown);
    let value = |file: &str| {
        let start = format!("==> {file} <==\n");
        let rest = shown.split(&start).nth(1).unwrap_or_default();
        rest.lines().next().unwrap_or_default().to_owned()
    };
    for (file, wanted) in [
        ("memory.max", "67108864".to_owned()),
        ("memory.swap.max", "0".to_owned()),
        ("memory.low", "33554432".to_owned()),
        ("memory.high", "50331648".to_owned()),
        ("cpu.max", "50000 100000".to_owned()),
        ("pids.max", "32".to_owned()),
    ] {
        assert_eq!(value(file), wanted, "{file} in\n{shown}");
    }
    let reading = format!("{major}:{minor} rbps=1048576 ");
    assert!(value("io.max").starts_with(&reading), "{shown}");
    assert!(value("cpu.weight").parse::<u32>().unwrap() > 50, "{shown}");

    // The device rules are a program in the kernel here, which has the last word.
    guest.sh(&format!(
        "busybox mknod -m 666 /b/rootfs/disk b {major} {minor}"
    ));
    let tried = guest.sh(
        "berth-oci exec one sh -c 'echo through >/dev/null && echo null; head -c 1 /disk' 2>&1; true",
    );
    assert!(tried.contains("null"), "{tried}");
    assert!(tried.contains("Operation not permitted"), "{tried}");

    // Limits change while it runs, it stands still and goes on, and nothing of it is left.
    let changes = "--memory 96000000 --pids-limit 16 --cpu-quota 30000 --cpu-share 1024";
    guest.sh(&format!("berth-oci update {changes} one"));
    let changed = guest.sh("cd /sys/fs/cgroup/tenants/one && cat memory.max pids.max cpu.max");
    assert_eq!(changed, "95997952\n16\n30000 100000\n");
    let weight = guest.sh("cat /sys/fs/cgroup/tenants/one/cpu.weight");
    let before: u32 = value("cpu.weight").parse().unwrap();
    assert!(
        weight.trim().parse::<u32>().unwrap() < before,
        "{weight} of {before}"
    );
    guest.sh("berth-oci pause one");
    assert!(guest.sh("berth-oci state one").contains("\"paused\""));
    assert!(
        guest
            .sh("cat /sys/fs/cgroup/tenants/one/cgroup.events")
            .contains("frozen 1")
    );
    guest.sh("berth-oci resume one && berth-oci delete --force one");
    assert_eq!(
        guest.sh("ls -d /sys/fs/cgroup/tenants/one 2>/dev/null || echo gone"),
        "gone\n"
    );

    // What takes more than its limit ends, and its neighbours do not.
    guest.configure(
        "exec tail /dev/zero",
        &json!({ "memory": { "limit": 16 << 20, "swap": 16 << 20 } }),
    );
    let greedy = guest.try_sh(
        "busybox mknod -m 666 /b/rootfs/zero c 1 5; sed -i s,/dev/zero,/zero, /b/config.json; \
        berth-oci run -b /b two",
    );
    assert_eq!(greedy.code, 137, "{greedy:?}");
    guest.configure(
        "for i in 1 2 3 4 5 6 7 8; do sleep 5 & done; wait",
        &json!({ "pids": { "limit": 4 } }),
    );
    let many = guest.try_sh("berth-oci run -b /b three");
    assert!(
        many.err.contains("fork") || many.out.contains("fork"),
        "{many:?}"
    );
    guest.daemon.berth(&["rm", "-f", "host"]).unwrap();
}
