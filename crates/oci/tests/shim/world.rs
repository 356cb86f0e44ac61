//! What every test needs: a bundle, a shim over it, and the certainty that both go away.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use container::shim::client::Client;
use container::shim::protocol::{Attach, Exited, Kind, Request};
use container::shim::{ExitRecord, Launched, LogConfig, Rootfs, ShimConfig, cleanup, holder};
use serde_json::{Value, json};

const BUSYBOX: &str = "/bin/busybox";
const APPLETS: [&str; 14] = [
    "sh", "cat", "echo", "sleep", "seq", "stty", "head", "yes", "true", "false", "dd", "trap",
    "id", "kill",
];

/// One container's surroundings.
pub struct World {
    pub root: tempfile::TempDir,
    pub config: ShimConfig,
    pub shim_pid: Option<i32>,
}

/// How a world differs from the usual.
#[derive(Default)]
pub struct Wish {
    pub terminal: bool,
    pub stdin: bool,
    pub memory_bytes: Option<u64>,
    pub rotate_bytes: u64,
    pub descriptors: Vec<PathBuf>,
}

impl World {
    /// A world whose container runs `script`; `None` where that is not possible.
    pub fn new(test: &str, script: &str, wish: Wish) -> Option<World> {
        let skip = |why: &str| {
            eprintln!("SKIP {test}: {why}");
            None
        };
        // SAFETY: asks for the user id.
        if unsafe { libc::geteuid() } != 0 {
            return skip("it needs root");
        }
        if !Path::new(BUSYBOX).exists() {
            return skip("busybox-static is not installed");
        }
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        let bin = at("bundle/rootfs/bin");
        fs::create_dir_all(&bin).unwrap();
        fs::copy(BUSYBOX, bin.join("busybox")).unwrap();
        APPLETS
            .iter()
            .for_each(|applet| symlink("busybox", bin.join(applet)).unwrap());
        fs::create_dir(at("run")).unwrap();
        fs::set_permissions(at("run"), fs::Permissions::from_mode(0o700)).unwrap();
        let id = format!("shimtest-{}-{test}", std::process::id());
        let config = ShimConfig {
            version: 1,
            instance: id.clone(),
            generation: 7,
            bundle: at("bundle"),
            rootfs: Rootfs::Dir,
            terminal: wish.terminal,
            stdin_open: wish.stdin,
            log: Some(LogConfig {
                path: at("log"),
                max_bytes: wish.rotate_bytes,
                max_files: 3,
            }),
            exit_record: at("exit.record"),
            state_root: at("state"),
            cgroup: format!("/berth-{id}/c"),
            shim_cgroup: Some(format!("/berth-{id}-shims")),
            descriptors: wish.descriptors.clone(),
            oom_score_adj: None,
            default_seccomp: false,
        };
        let spec = spec(&config, script, &wish);
        fs::write(at("bundle/config.json"), spec.to_string()).unwrap();
        config.save(&at("run")).unwrap();
        Some(World {
            root,
            config,
            shim_pid: None,
        })
    }

    pub fn dir(&self) -> PathBuf {
        self.root.path().join("run")
    }

    /// Runs the shim's command to its end.
    pub fn launch_raw(&self) -> Output {
        let program = env!("CARGO_BIN_EXE_berth-oci");
        Command::new(program)
            .args(["shim", "--dir"])
            .arg(self.dir())
            .output()
            .unwrap()
    }

    /// Launches the shim, which must succeed.
    pub fn launch(&mut self) -> Launched {
        let output = self.launch_raw();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{errors}");
        let launched: Launched = serde_json::from_slice(&output.stdout).unwrap();
        self.shim_pid = Some(launched.shim_pid);
        launched
    }

    pub fn client(&self) -> Client {
        let client = Client::connect(&self.dir()).unwrap();
        client.set_timeout(Some(Duration::from_secs(20))).unwrap();
        client
    }

    /// A client that is attached.
    pub fn attached(&self, attach: Attach) -> Client {
        let mut client = self.client();
        client.attach(attach).unwrap();
        client
    }

    pub fn start(&self) {
        self.client().command(&Request::Start).unwrap();
    }

    /// Launches, attaches, starts; all output and the end.
    pub fn run(&mut self) -> (String, Exited) {
        self.launch();
        let mut client = self.attached(Attach {
            lossless: true,
            ..Attach::default()
        });
        self.start();
        collect(&mut client)
    }

    pub fn record(&self) -> Option<ExitRecord> {
        ExitRecord::load(&self.config.exit_record).unwrap()
    }

    /// Directories of the container's group that exist.
    pub fn groups(&self) -> Vec<PathBuf> {
        let layout = cgroup::Layout::detect().unwrap();
        let path = cgroup::CgroupPath::parse(&self.config.cgroup).unwrap();
        match cgroup::Cgroup::open(&layout, &path) {
            Ok(group) => group.directories().map(|(_, dir)| dir.to_owned()).collect(),
            Err(_) => Vec::new(),
        }
    }

    /// Waits until the shim is gone, and asserts that nothing of the container is left.
    pub fn assert_gone(&self) {
        wait_until("the shim is gone", || {
            holder(&self.dir()).unwrap().is_none()
        });
        self.assert_clean();
    }

    /// Asserts that nothing of the container is left.
    pub fn assert_clean(&self) {
        assert_eq!(self.groups(), Vec::<PathBuf>::new(), "groups");
        assert!(!self.dir().join("shim.sock").exists(), "socket");
        let state = self.config.state_root.join(&self.config.instance);
        assert!(!state.exists(), "runtime state");
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Ok(Some(pid)) = holder(&self.dir()) {
            // SAFETY: kills the shim of this test by the id that its lock states.
            unsafe { libc::kill(pid, libc::SIGKILL) };
            let end = Instant::now() + Duration::from_secs(5);
            while holder(&self.dir()).is_ok_and(|h| h.is_some()) && Instant::now() < end {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        let _ = cleanup(&self.dir());
        let own = self.config.shim_cgroup.iter().map(String::as_str);
        for path in own.chain([self.config.cgroup.trim_end_matches("/c")]) {
            let (Ok(layout), Ok(path)) =
                (cgroup::Layout::detect(), cgroup::CgroupPath::parse(path))
            else {
                continue;
            };
            let _ = cgroup::Cgroup::open(&layout, &path).map(|group| group.delete());
        }
    }
}

fn spec(config: &ShimConfig, script: &str, wish: &Wish) -> Value {
    let namespaces = ["pid", "mount", "ipc", "uts", "network"].map(|kind| json!({ "type": kind }));
    let mut spec = json!({
        "ociVersion": "1.2.0",
        "process": {
            "terminal": config.terminal,
            "user": { "uid": 0, "gid": 0 },
            "args": ["sh", "-c", script],
            "env": ["PATH=/bin"],
            "cwd": "/",
        },
        "root": { "path": "rootfs" },
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc" },
            { "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"] },
            { "destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["newinstance", "ptmxmode=0666", "mode=0620"] },
        ],
        "linux": {
            "namespaces": namespaces,
            "cgroupsPath": config.cgroup,
        },
    });
    if let Some(bytes) = wish.memory_bytes {
        spec["linux"]["resources"] = json!({ "memory": { "limit": bytes, "swap": bytes } });
    }
    spec
}

/// Follows a stream to its end.
pub fn collect(client: &mut Client) -> (String, Exited) {
    let mut text = Vec::new();
    let exited = client
        .follow(|_, data| text.extend_from_slice(data))
        .unwrap();
    (String::from_utf8_lossy(&text).into_owned(), exited)
}

/// Reads output until `wanted` has come.
pub fn read_until(client: &mut Client, wanted: &str) -> String {
    let mut text = String::new();
    while !text.contains(wanted) {
        let frame = client.receive().unwrap();
        assert_ne!(
            frame.kind,
            Kind::Message,
            "{}\n{text}",
            String::from_utf8_lossy(&frame.payload)
        );
        text.push_str(&String::from_utf8_lossy(&frame.payload));
    }
    text
}

/// Waits for something that has to happen, at most 10 s.
pub fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(Instant::now() < end, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Whether a process exists and is no zombie.
pub fn is_alive(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')')
        .next()
        .and_then(|rest| rest.trim().chars().next())
        .is_some_and(|c| !"ZX".contains(c))
}
