//! Real podman with this runtime: what a container manager asks of it, end to end, without a registry.
//! In a network namespace of its own, with storage in a temporary directory.

// A test fails by panicking and says what it skips.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod common;

use std::path::Path;
use std::process::{Command, Output};

use common::{Bed, RUNTIME, cannot_run, skip, text};

struct Podman {
    bed: Bed,
}

impl Podman {
    fn call(&self, words: &[&str]) -> Output {
        let dir = self.bed.dir.path();
        let storage = |name: &str| dir.join(name).display().to_string();
        // A network namespace of its own keeps podman's rules off the host.
        Command::new("unshare")
            .args([
                "--net",
                "podman",
                "--root",
                &storage("storage"),
                "--runroot",
                &storage("runroot"),
            ])
            .args([
                "--tmpdir",
                &storage("tmp"),
                "--cgroup-manager",
                "cgroupfs",
                "--events-backend",
                "file",
            ])
            .args(["--storage-driver", "vfs", "--runtime", RUNTIME])
            .args(words)
            .env("CONTAINERS_CONF", dir.join("containers.conf"))
            .env("CONTAINERS_REGISTRIES_CONF", dir.join("registries.conf"))
            .output()
            .unwrap()
    }

    #[track_caller]
    fn ok(&self, words: &[&str]) -> String {
        let output = self.call(words);
        assert!(
            output.status.success(),
            "{words:?}: {}{}",
            text(&output.stdout),
            text(&output.stderr)
        );
        text(&output.stdout)
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        self.call(&["rm", "--all", "--force", "--time", "0"]);
    }
}

#[test]
fn podman_runs_execs_pauses_and_removes_with_this_runtime() {
    const NAME: &str = "podman_runs_execs_pauses_and_removes_with_this_runtime";
    if cannot_run(NAME) {
        return;
    }
    if !Path::new("/usr/bin/podman").exists() || !Path::new("/usr/bin/conmon").exists() {
        return skip(NAME, "needs podman and conmon");
    }
    let bed = Bed::new();
    // Hosts whose hard limits are low must say so, or podman asks for more than can be given.
    std::fs::write(
        bed.dir.path().join("containers.conf"),
        "[containers]\ndefault_ulimits=[\"nofile=1024:20000\",\"nproc=4096:4096\"]\nlog_driver=\"k8s-file\"\n",
    )
    .unwrap();
    std::fs::write(bed.dir.path().join("registries.conf"), "").unwrap();
    let podman = Podman { bed };
    let rootfs = podman.bed.rootfs().display().to_string();
    let run = |words: &[&str], command: &[&str]| {
        let mut all = vec!["run", "--network", "none"];
        all.extend_from_slice(words);
        all.extend_from_slice(&["--rootfs", &rootfs]);
        all.extend_from_slice(command);
        podman.ok(&all)
    };
    assert_eq!(
        run(&["--rm"], &["/bin/sh", "-c", "echo hello; id -u"]),
        "hello\n0\n"
    );
    assert_eq!(
        run(
            &["--rm", "--user", "1000:1000", "--hostname", "inside"],
            &["/bin/sh", "-c", "id -u; hostname"]
        ),
        "1000\ninside\n"
    );
    let tty = run(&["--rm", "-t"], &["/bin/sh", "-c", "tty; stty size"]);
    assert!(tty.starts_with("/dev/pts/0"), "{tty}");
    let memory = run(
        &["--rm", "--memory", "64m", "--pids-limit", "20"],
        &[
            "/bin/sh",
            "-c",
            "cat /sys/fs/cgroup/memory/memory.limit_in_bytes || cat /sys/fs/cgroup/memory.max",
        ],
    );
    assert_eq!(memory.trim(), "67108864");
    let failed = podman.call(&[
        "run",
        "--rm",
        "--network",
        "none",
        "--rootfs",
        &rootfs,
        "/bin/sh",
        "-c",
        "exit 33",
    ]);
    assert_eq!(failed.status.code(), Some(33));
    let missing = podman.call(&[
        "run",
        "--rm",
        "--network",
        "none",
        "--rootfs",
        &rootfs,
        "/no/such/program",
    ]);
    assert_eq!(
        missing.status.code(),
        Some(127),
        "{}",
        text(&missing.stderr)
    );
    run(&["-d", "--name", "web"], &["/bin/sleep", "1000"]);
    assert_eq!(
        podman.ok(&["exec", "web", "/bin/sh", "-c", "echo exec; id -u"]),
        "exec\n0\n"
    );
    podman.ok(&["pause", "web"]);
    assert_eq!(
        podman
            .ok(&["inspect", "--format", "{{.State.Status}}", "web"])
            .trim(),
        "paused"
    );
    podman.ok(&["unpause", "web"]);
    assert!(podman.ok(&["top", "web", "args"]).contains("sleep"));
    podman.ok(&["stop", "--time", "0", "web"]);
    assert_eq!(
        podman
            .ok(&["inspect", "--format", "{{.State.Status}}", "web"])
            .trim(),
        "exited"
    );
    podman.ok(&["start", "web"]);
    podman.ok(&["rm", "--force", "--time", "0", "web"]);
    assert_eq!(podman.ok(&["ps", "--all", "--quiet"]), "");
}
