//! The library as the shim uses it: in a single-threaded process, with descriptors of its own, in a user
//! namespace over an id-mapped overlay. A test program without the harness, since that is multi-threaded;
//! it speaks enough of its language for cargo and nextest.

// A test fails by panicking and says what it skips.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

use std::io::{Read as _, Seek as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use container::spec::{
    Capabilities, IdMapping, Linux, Mount, Namespace, NamespaceKind, Process, Root, Spec, Status,
};
use container::{CreateRequest, Delete, ExecRequest, Launch, Overlay, Rootfs, Runtime, Stdio};
use rustix::process::{WaitId, WaitIdOptions};

type Test = (&'static str, fn());

const TESTS: &[Test] = &[
    (
        "an_overlay_in_a_user_namespace_stores_plain_ids_and_mounts_nothing_on_the_host",
        userns_overlay,
    ),
    (
        "create_start_exec_and_delete_work_in_one_process",
        one_process,
    ),
    (
        "a_failed_create_leaves_no_process_and_no_state",
        failed_create,
    ),
];

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let mut out = std::io::stdout().lock();
    if words.iter().any(|word| word == "--list") {
        if !words.iter().any(|word| word == "--ignored") {
            TESTS
                .iter()
                .for_each(|(name, _)| writeln!(out, "{name}: test").unwrap());
        }
        return;
    }
    drop(out);
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
}

/// A directory with a runtime root and a busybox image; cleans up what is left.
struct Bed {
    dir: tempfile::TempDir,
    runtime: Runtime,
    group: String,
}

impl Bed {
    fn new(name: &str) -> Bed {
        let dir = tempfile::Builder::new()
            .prefix("berth-lib-")
            .tempdir()
            .unwrap();
        let image = dir.path().join("image");
        for name in ["bin", "proc", "sys", "dev", "tmp", "etc"] {
            std::fs::create_dir_all(image.join(name)).unwrap();
        }
        std::fs::copy("/bin/busybox", image.join("bin/busybox")).unwrap();
        for name in [
            "sh", "cat", "id", "touch", "stat", "sleep", "ls", "rm", "true", "chown",
        ] {
            std::os::unix::fs::symlink("busybox", image.join("bin").join(name)).unwrap();
        }
        let runtime = Runtime::new(dir.path().join("run"));
        Bed {
            runtime,
            group: format!("berth-lib-{}-{name}", std::process::id()),
            dir,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::create_dir_all(&path).unwrap();
        path
    }

    fn spec(&self, script: &str) -> Spec {
        let mount = |to: &str, kind: &str, options: &[&str]| Mount {
            destination: to.into(),
            kind: kind.into(),
            source: kind.into(),
            options: options.iter().map(|option| option.to_string()).collect(),
            ..Mount::default()
        };
        let caps = vec![
            "CAP_CHOWN".to_owned(),
            "CAP_SETUID".to_owned(),
            "CAP_SETGID".to_owned(),
        ];
        use NamespaceKind::{Cgroup, Ipc, Network, Pid, Uts};
        Spec {
            oci_version: "1.3.0".into(),
            process: Some(Process {
                args: vec!["sh".into(), "-c".into(), script.into()],
                env: vec!["PATH=/bin".into()],
                cwd: "/".into(),
                capabilities: Some(Capabilities {
                    bounding: caps.clone(),
                    effective: caps.clone(),
                    permitted: caps,
                    ..Capabilities::default()
                }),
                ..Process::default()
            }),
            root: Some(Root {
                path: "image".into(),
                readonly: false,
            }),
            mounts: vec![
                mount("/proc", "proc", &["nosuid", "noexec", "nodev"]),
                mount("/dev", "tmpfs", &["nosuid", "mode=755"]),
                mount(
                    "/dev/pts",
                    "devpts",
                    &["newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
                ),
                mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
                mount(
                    "/sys/fs/cgroup",
                    "cgroup",
                    &["nosuid", "noexec", "nodev", "ro"],
                ),
            ],
            linux: Linux {
                cgroups_path: format!("/{}/c", self.group),
                namespaces: [Pid, Network, NamespaceKind::Mount, Ipc, Uts, Cgroup]
                    .map(Namespace::new)
                    .to_vec(),
                masked_paths: vec!["/proc/keys".into(), "/sys/firmware".into()],
                readonly_paths: vec!["/proc/sys".into()],
                ..Linux::default()
            },
            ..Spec::default()
        }
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        for id in self.runtime.ids().unwrap_or_default() {
            if let Ok(container) = self.runtime.open(&id) {
                let _ = container.delete(Delete::Force);
            }
        }
        for entry in std::fs::read_dir("/sys/fs/cgroup")
            .into_iter()
            .flatten()
            .flatten()
        {
            let _ = std::fs::remove_dir(entry.path().join(&self.group));
        }
        let _ = std::fs::remove_dir(Path::new("/sys/fs/cgroup").join(&self.group));
    }
}

/// A file for a process to write to, as standard streams.
fn streams() -> (std::fs::File, Stdio) {
    let file = tempfile::tempfile().unwrap();
    let copy = || file.try_clone().unwrap().into();
    let null = std::fs::File::open("/dev/null").unwrap().into();
    let streams = Stdio::Fds([null, copy(), copy()]);
    (file, streams)
}

fn content(mut file: std::fs::File) -> String {
    let mut text = String::new();
    file.rewind().unwrap();
    file.read_to_string(&mut text).unwrap();
    text
}

fn wait(pidfd: &std::os::fd::OwnedFd) -> i32 {
    let status =
        rustix::process::waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED).unwrap();
    status.and_then(|status| status.exit_status()).unwrap_or(-1)
}

fn userns_overlay() {
    let bed = Bed::new("overlay");
    let (upper, work) = (bed.path("upper"), bed.path("work"));
    let mut spec = bed.spec(
        "id -u; id -g; touch /mine; chown 33:44 /mine; stat -c '%u %g' /bin/busybox /mine; cat /proc/self/uid_map; \
         touch /etc/x && rm /bin/true; stat -c %t:%T /dev/null; ls /sys/fs/cgroup >/dev/null && echo cgroups; \
         cat /proc/keys; echo end",
    );
    let map = vec![IdMapping {
        container_id: 0,
        host_id: 200_000,
        size: 65_536,
    }];
    spec.linux.uid_mappings = map.clone();
    spec.linux.gid_mappings = map;
    spec.linux
        .namespaces
        .push(Namespace::new(NamespaceKind::User));
    let before = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mut request = CreateRequest::new("c", bed.dir.path(), spec);
    request.rootfs = Rootfs::Overlay(Overlay {
        lower: vec![bed.dir.path().join("image")],
        upper: Some(upper.clone()),
        work: Some(work),
        idmap: true,
        options: vec![],
    });
    let (file, stdio) = streams();
    request.stdio = stdio;
    let created = bed
        .runtime
        .create(request)
        .unwrap_or_else(|error| panic!("{}", container::chain(&error)));
    assert_eq!(created.container.status(), Status::Created);
    assert_eq!(
        std::fs::metadata(format!("/proc/{}", created.pid))
            .map(|m| m.uid())
            .unwrap_or(0)
            % 200_000,
        0
    );
    assert_eq!(
        before,
        std::fs::read_to_string("/proc/self/mountinfo").unwrap(),
        "the host's mounts changed"
    );
    created
        .container
        .start()
        .unwrap_or_else(|error| panic!("{}", container::chain(&error)));
    assert_eq!(wait(&created.pidfd), 0);
    let out = content(file);
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines[..4], ["0", "0", "0 0", "33 44"], "{out}");
    assert_eq!(
        lines[4].split_whitespace().collect::<Vec<_>>(),
        ["0", "200000", "65536"],
        "{out}"
    );
    assert_eq!(lines[5..], ["1:3", "cgroups", "end"], "{out}");
    // On disk the ids are those the container saw; the layer below is untouched.
    let mine = std::fs::metadata(upper.join("mine")).unwrap();
    assert_eq!((mine.uid(), mine.gid()), (33, 44));
    assert_eq!(std::fs::metadata(upper.join("etc/x")).unwrap().uid(), 0);
    assert!(
        bed.dir
            .path()
            .join("image/bin/true")
            .symlink_metadata()
            .is_ok()
    );
    created.container.delete(Delete::Stopped).unwrap();
}

fn one_process() {
    let bed = Bed::new("one");
    let mut request = CreateRequest::new("c", bed.dir.path(), bed.spec("echo up; exec sleep 1000"));
    request.launch = Launch::Now;
    let (file, stdio) = streams();
    request.stdio = stdio;
    let created = bed
        .runtime
        .create(request)
        .unwrap_or_else(|error| panic!("{}", container::chain(&error)));
    let container = bed.runtime.open("c").unwrap();
    assert_eq!(container.status(), Status::Running);
    let mut process = container.process();
    process.args = vec!["sh".into(), "-c".into(), "echo from exec; exit 4".into()];
    let (second, stdio) = streams();
    let mut exec = ExecRequest::new(process);
    exec.stdio = stdio;
    let executed = container
        .exec(exec)
        .unwrap_or_else(|error| panic!("{}", container::chain(&error)));
    assert_eq!(wait(&executed.pidfd), 4);
    assert_eq!(content(second), "from exec\n");
    // A terminal's master comes back to the caller.
    let mut process = container.process();
    process.args = vec!["sh".into(), "-c".into(), "echo to terminal; exit 5".into()];
    process.terminal = true;
    let executed = container.exec(ExecRequest::new(process)).unwrap();
    let mut master = std::fs::File::from(executed.console.unwrap());
    assert_eq!(wait(&executed.pidfd), 5);
    let mut bytes = [0u8; 64];
    let len = master.read(&mut bytes).unwrap();
    assert_eq!(&bytes[..len], b"to terminal\r\n");
    assert_eq!(container.pids().unwrap(), [created.pid]);
    container.kill(libc::SIGKILL, false).unwrap();
    wait(&created.pidfd);
    assert_eq!(container.status(), Status::Stopped);
    container.delete(Delete::Stopped).unwrap();
    assert_eq!(content(file), "up\n");
    // The namespaces the parent joined on the way were left again: pid and everything else are ours.
    let pid_ns = std::fs::read_link("/proc/self/ns/pid_for_children").unwrap();
    assert_eq!(pid_ns, std::fs::read_link("/proc/self/ns/pid").unwrap());
}

fn failed_create() {
    let bed = Bed::new("failed");
    let mut spec = bed.spec("true");
    spec.mounts.push(Mount {
        destination: "/x".into(),
        kind: "bind".into(),
        source: "/no/such/source".into(),
        ..Mount::default()
    });
    let error = bed
        .runtime
        .create(CreateRequest::new("c", bed.dir.path(), spec))
        .unwrap_err();
    assert!(
        container::chain(&error).contains("/no/such/source"),
        "{}",
        container::chain(&error)
    );
    let mut spec = bed.spec("true");
    spec.process.as_mut().unwrap().args = vec!["/bin/missing".into()];
    let error = bed
        .runtime
        .create(CreateRequest::new("c", bed.dir.path(), spec))
        .unwrap_err();
    assert!(
        container::chain(&error).contains("/bin/missing"),
        "{}",
        container::chain(&error)
    );
    assert!(bed.runtime.ids().unwrap().is_empty());
    let nobody =
        rustix::process::waitid(WaitId::All, WaitIdOptions::EXITED | WaitIdOptions::NOHANG);
    assert_eq!(
        nobody.unwrap_err(),
        rustix::io::Errno::CHILD,
        "a child was left"
    );
    let group = Path::new("/sys/fs/cgroup/devices")
        .join(&bed.group)
        .join("c");
    assert!(!group.exists());
}
