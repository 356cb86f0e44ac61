//! The container engine passes the suite that every engine has to pass, on the real kernel: in a user
//! namespace as the daemon runs guests, and with the host's users.
//!
//! Without the harness, because this program is the engine's runtime too: started as `shim`, it is one, with
//! a single thread as a shim wants it. It speaks enough of the harness' language for cargo and nextest.

// A test fails by panicking and says what it skips.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

use std::io::Write as _;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use engine::{Engine, Guest, conformance};
use engines::container::{Config, ContainerEngine};
use model::record::IdMap;

type Test = (&'static str, fn());

const TESTS: &[Test] = &[
    ("containers_in_user_namespaces_conform", || {
        conform(Some(IdMap {
            base: 1_000_000,
            count: 65_536,
        }));
    }),
    ("containers_with_the_hosts_users_conform", || conform(None)),
];

fn main() -> ExitCode {
    let mut words = std::env::args_os().skip(1).peekable();
    if words.peek().is_some_and(|word| word == "shim") {
        return container::shim::main(words.skip(1)).into();
    }
    let words: Vec<String> = words.filter_map(|word| word.into_string().ok()).collect();
    if words.iter().any(|word| word == "--list") {
        if !words.iter().any(|word| word == "--ignored") {
            let mut out = std::io::stdout().lock();
            TESTS
                .iter()
                .for_each(|(name, _)| writeln!(out, "{name}: test").unwrap());
        }
        return ExitCode::SUCCESS;
    }
    let wanted: Vec<&String> = words.iter().filter(|word| !word.starts_with('-')).collect();
    for (name, test) in TESTS {
        if wanted.is_empty() || wanted.iter().any(|word| name.contains(word.as_str())) {
            if !rustix::process::geteuid().is_root() || !Path::new("/bin/busybox").exists() {
                eprintln!("SKIP {name}: needs root and /bin/busybox (package busybox-static)");
                continue;
            }
            test();
            writeln!(std::io::stdout().lock(), "test {name} ... ok").unwrap();
        }
    }
    ExitCode::SUCCESS
}

fn conform(idmap: Option<IdMap>) {
    let host = Host::new(idmap);
    let engine = ContainerEngine::new(Config {
        runtime: std::env::current_exe().unwrap(),
        vmm: host.path("no-machines"),
        accel: None,
        guests: host.path("run"),
        instances: host.path("instances"),
        cgroup: format!("/{}", host.group),
    });
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let mut guests = Guests {
        host: &host,
        made: 0,
    };
    runtime.block_on(conformance::run(&engine, &mut guests));
    let left = runtime.block_on(engine.list()).unwrap();
    let live: Vec<_> = left.iter().filter(|seen| seen.pid.is_some()).collect();
    assert!(live.is_empty(), "the suite leaves what runs: {live:?}");
    for group in host.groups() {
        let below = directories(&group);
        assert!(below.is_empty(), "groups left: {below:?}");
    }
}

/// What the daemon would have around the engine. Takes away what a failed test leaves.
struct Host {
    dir: tempfile::TempDir,
    group: String,
    idmap: Option<IdMap>,
}

impl Host {
    fn new(idmap: Option<IdMap>) -> Host {
        // On a disk: an overlay's upper directory wants extended attributes.
        let dir = tempfile::Builder::new()
            .prefix("berth-engine-")
            .tempdir_in("/var/tmp")
            .unwrap();
        std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let host = Host {
            group: format!("berth-engine-{}", std::process::id()),
            dir,
            idmap,
        };
        let layer = host.path("layer");
        for name in ["bin", "proc", "sys", "dev", "tmp", "etc"] {
            std::fs::create_dir_all(layer.join(name)).unwrap();
        }
        std::fs::copy("/bin/busybox", layer.join("bin/busybox")).unwrap();
        for name in ["true", "false", "sleep", "cat"] {
            symlink("busybox", layer.join("bin").join(name)).unwrap();
        }
        host
    }

    fn path(&self, name: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::create_dir_all(&path).unwrap();
        path
    }

    fn groups(&self) -> Vec<PathBuf> {
        let base = Path::new("/sys/fs/cgroup");
        let names = [self.group.clone(), format!("{}-shims", self.group)];
        let tops = directories(base).into_iter().chain([base.to_owned()]);
        tops.flat_map(|top| names.clone().map(|name| top.join(name)))
            .filter(|dir| dir.is_dir())
            .collect()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        for group in self.groups() {
            for below in directories(&group) {
                let pids = std::fs::read_to_string(below.join("cgroup.procs")).unwrap_or_default();
                for pid in pids.lines().filter_map(|line| line.parse().ok()) {
                    if let Some(pid) = rustix::process::Pid::from_raw(pid) {
                        let kill = rustix::process::Signal::KILL;
                        let _ = rustix::process::kill_process(pid, kill);
                    }
                }
                remove(&below);
            }
            remove(&group);
        }
    }
}

/// Removes a group, which is empty when the kernel has ended its processes.
fn remove(group: &Path) {
    for _ in 0..100 {
        if std::fs::remove_dir(group).is_ok() || !group.exists() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

fn directories(below: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(below).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

struct Guests<'a> {
    host: &'a Host,
    made: u128,
}

impl conformance::Guests for Guests<'_> {
    fn make(&mut self, args: &[&str]) -> Guest {
        self.made += 1;
        let id = format!("00000000-0000-7000-8000-{:012x}", self.made);
        let directory = self.host.path("instances").join(&id);
        let layers = vec![self.host.path("layer")];
        let mut guest = conformance::guest(id.parse().unwrap(), directory, layers, args);
        guest.idmap = self.host.idmap;
        for path in [&guest.root.upper, &guest.root.work] {
            std::fs::create_dir_all(path).unwrap();
        }
        std::fs::create_dir_all(guest.directory.join("log")).unwrap();
        guest
    }
}
