//! A bundle with a busybox root in a temporary directory, and the runtime's commands on it. Everything a
//! test makes is removed when its [`Bed`] goes, also after a failure.

#![allow(dead_code, missing_docs, clippy::unwrap_used, clippy::print_stderr)]

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};

pub const RUNTIME: &str = env!("CARGO_BIN_EXE_berth-oci");

/// Programs of busybox the tests use.
const APPLETS: &[&str] = &[
    "sh", "true", "false", "cat", "echo", "ls", "id", "mount", "sleep", "env", "hostname", "touch",
    "mkdir", "readlink", "stat", "grep", "kill", "ps", "test", "dd", "stty", "tty", "mknod",
    "ulimit", "chown", "wc", "head", "chmod", "seq", "umount", "rm", "ln",
];

/// One bundle and the containers made of it.
pub struct Bed {
    pub dir: tempfile::TempDir,
    pub root: PathBuf,
    pub config: Value,
    group: String,
}

static COUNTER: AtomicUsize = AtomicUsize::new(0);

/// Says why a test cannot run here.
pub fn skip(test: &str, reason: &str) {
    eprintln!("SKIP {test}: {reason}");
}

/// True if the machine cannot run containers at all, said loudly.
pub fn cannot_run(test: &str) -> bool {
    if !rustix::process::geteuid().is_root() {
        skip(test, "needs root");
        return true;
    }
    if !Path::new("/bin/busybox").exists() {
        skip(test, "needs /bin/busybox (package busybox-static)");
        return true;
    }
    false
}

impl Bed {
    pub fn new() -> Bed {
        let dir = tempfile::Builder::new()
            .prefix("berth-oci-")
            .tempdir()
            .unwrap();
        std::fs::set_permissions(
            dir.path(),
            std::os::unix::fs::PermissionsExt::from_mode(0o755),
        )
        .unwrap();
        let rootfs = dir.path().join("rootfs");
        for name in ["bin", "proc", "sys", "dev", "tmp", "etc", "data"] {
            std::fs::create_dir_all(rootfs.join(name)).unwrap();
        }
        std::fs::copy("/bin/busybox", rootfs.join("bin/busybox")).unwrap();
        for applet in APPLETS {
            symlink("busybox", rootfs.join("bin").join(applet)).unwrap();
        }
        std::fs::write(
            rootfs.join("etc/passwd"),
            "root:x:0:0::/root:/bin/sh\nann:x:1000:1000::/home/ann:/bin/sh\n",
        )
        .unwrap();
        let n = COUNTER.fetch_add(1, Ordering::Relaxed);
        let group = format!("berth-test-{}-{n}", std::process::id());
        let root = dir.path().join("run");
        Bed {
            dir,
            root,
            config: config(&group),
            group,
        }
    }

    pub fn rootfs(&self) -> PathBuf {
        self.dir.path().join("rootfs")
    }

    /// Sets the command to a shell script.
    pub fn script(&mut self, script: &str) -> &mut Bed {
        self.config["process"]["args"] = json!(["sh", "-c", script]);
        self
    }

    pub fn write_config(&self) {
        let text = serde_json::to_vec_pretty(&self.config).unwrap();
        std::fs::write(self.dir.path().join("config.json"), text).unwrap();
    }

    /// A command of the runtime.
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(RUNTIME);
        command
            .arg("--root")
            .arg(&self.root)
            .args(words)
            .current_dir(self.dir.path());
        command.stdin(Stdio::null());
        command
    }

    /// Runs a command of the runtime to its end. Its output goes to files: a detached container keeps
    /// the streams, and a pipe would not end before it does.
    pub fn call(&self, words: &[&str]) -> Output {
        let (out, err) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        let mut command = self.command(words);
        command
            .stdout(out.try_clone().unwrap())
            .stderr(err.try_clone().unwrap());
        let status = command.status().unwrap();
        Output {
            status,
            stdout: read(out),
            stderr: read(err),
        }
    }

    /// Runs one that must succeed; its output.
    #[track_caller]
    pub fn ok(&self, words: &[&str]) -> String {
        let output = self.call(words);
        assert!(
            output.status.success(),
            "{words:?}: {}",
            text(&output.stderr)
        );
        text(&output.stdout)
    }

    /// Runs one that must fail; what it said.
    #[track_caller]
    pub fn fails(&self, words: &[&str]) -> String {
        let output = self.call(words);
        assert!(
            !output.status.success(),
            "{words:?} succeeded: {}",
            text(&output.stdout)
        );
        text(&output.stderr)
    }

    /// `run`s the configuration; status and output.
    pub fn run(&self) -> (i32, String, String) {
        self.write_config();
        let output = self.call(&["run", "c"]);
        (
            output.status.code().unwrap_or(-1),
            text(&output.stdout),
            text(&output.stderr),
        )
    }

    /// `run`s a script that must succeed; its output.
    #[track_caller]
    pub fn output(&mut self, script: &str) -> String {
        self.script(script);
        let (code, out, err) = self.run();
        assert_eq!(code, 0, "{out}{err}");
        out
    }

    /// The status `state` reports.
    #[track_caller]
    pub fn status(&self, id: &str) -> String {
        let state: Value = serde_json::from_str(&self.ok(&["state", id])).unwrap();
        state["status"].as_str().unwrap().to_owned()
    }

    /// Whether nothing of any container is left: state, control groups.
    #[track_caller]
    pub fn assert_clean(&self) {
        let left: Vec<_> = std::fs::read_dir(&self.root)
            .into_iter()
            .flatten()
            .flatten()
            .collect();
        assert!(left.is_empty(), "state left: {left:?}");
        for dir in self.groups() {
            let children = std::fs::read_dir(&dir)
                .unwrap()
                .flatten()
                .filter(|e| e.path().is_dir())
                .count();
            assert_eq!(children, 0, "groups left in {}", dir.display());
        }
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(
            !mounts.contains(self.dir.path().to_str().unwrap()),
            "mounts left on the host"
        );
    }

    /// This bed's directories in all hierarchies.
    fn groups(&self) -> Vec<PathBuf> {
        let base = Path::new("/sys/fs/cgroup");
        let mut all: Vec<PathBuf> = vec![base.join(&self.group)];
        for entry in std::fs::read_dir(base).into_iter().flatten().flatten() {
            all.push(entry.path().join(&self.group));
        }
        all.retain(|dir| dir.is_dir());
        all
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        for entry in std::fs::read_dir(&self.root)
            .into_iter()
            .flatten()
            .flatten()
        {
            self.call(&["delete", "--force", &entry.file_name().to_string_lossy()]);
        }
        for dir in self.groups() {
            for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
                let _ = std::fs::remove_dir(entry.path());
            }
            let _ = std::fs::remove_dir(dir);
        }
    }
}

fn read(mut file: std::fs::File) -> Vec<u8> {
    use std::io::{Read as _, Seek as _};
    let mut bytes = Vec::new();
    file.rewind().unwrap();
    file.read_to_end(&mut bytes).unwrap();
    bytes
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A configuration like those of container managers.
pub fn config(group: &str) -> Value {
    let caps = json!([
        "CAP_CHOWN",
        "CAP_KILL",
        "CAP_NET_BIND_SERVICE",
        "CAP_SETUID",
        "CAP_SETGID"
    ]);
    json!({
        "ociVersion": "1.3.0",
        "process": {
            "args": ["true"],
            "env": ["PATH=/bin", "TERM=dumb"],
            "cwd": "/",
            "user": { "uid": 0, "gid": 0 },
            "capabilities": { "bounding": caps, "effective": caps, "permitted": caps },
            "noNewPrivileges": true
        },
        "root": { "path": "rootfs" },
        "hostname": "bed",
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"] },
            { "destination": "/dev", "type": "tmpfs", "source": "tmpfs",
              "options": ["nosuid", "strictatime", "mode=755", "size=65536k"] },
            { "destination": "/dev/pts", "type": "devpts", "source": "devpts",
              "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"] },
            { "destination": "/dev/shm", "type": "tmpfs", "source": "shm",
              "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"] },
            { "destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue",
              "options": ["nosuid", "noexec", "nodev"] },
            { "destination": "/sys", "type": "sysfs", "source": "sysfs",
              "options": ["nosuid", "noexec", "nodev", "ro"] },
            { "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
              "options": ["nosuid", "noexec", "nodev", "relatime", "ro"] }
        ],
        "linux": {
            "cgroupsPath": format!("/{group}/c"),
            "namespaces": [
                { "type": "pid" }, { "type": "network" }, { "type": "ipc" }, { "type": "uts" },
                { "type": "mount" }, { "type": "cgroup" }
            ],
            "maskedPaths": ["/proc/keys", "/proc/timer_list", "/sys/firmware"],
            "readonlyPaths": ["/proc/sys", "/proc/irq"]
        }
    })
}
