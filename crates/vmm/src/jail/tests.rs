//! Tests of `jail`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs::File,
    io::{ErrorKind, Write},
    os::{
        fd::OwnedFd,
        unix::{
            fs::{MetadataExt, PermissionsExt},
            net::UnixStream,
        },
    },
    path::Path,
};

use devices::virtio::{
    Limits as Rate,
    fs::{
        Folder,
        fuse::{Header, Name, Operation, ROOT, Reply, Request},
    },
};
use rustix::{
    fs::{Mode, OFlags, ResolveFlags},
    io::Errno,
};

use cpu::Backend;

use super::*;
use crate::{config::ShareConfig, shares::Shares};

/// How a child ended that did `work` on its one thread.
#[derive(Debug, PartialEq, Eq)]
enum End {
    Status(i32),
    Signal(i32),
}

/// Runs `work` in a process of its own and says how it ended.
fn in_child(work: impl FnOnce() -> i32) -> End {
    // SAFETY: each test is a process of its own, whose other threads hold no lock that `work`
    // takes: the test harness waits for this one.
    match unsafe { libc::fork() } {
        0 => {
            let status = work();
            // SAFETY: ends the process.
            unsafe { libc::_exit(status) }
        }
        child => {
            assert!(child > 0);
            let mut status = 0;
            // SAFETY: waits for our own child.
            assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
            if libc::WIFSIGNALED(status) {
                End::Signal(libc::WTERMSIG(status))
            } else {
                End::Status(libc::WEXITSTATUS(status))
            }
        }
    }
}

/// Whether the host lets us lock up a process at all.
fn can_jail(test: &str) -> bool {
    let end = in_child(|| i32::from(Jail::default().enter().is_err()));
    if end != End::Status(0) {
        let reason = "namespaces cannot be made here; run as root";
        let _ = writeln!(std::io::stderr(), "SKIP {test}: {reason}");
    }
    end == End::Status(0)
}

#[test]
fn in_the_jail_no_file_can_be_opened_and_nothing_of_the_host_is_there() {
    if !can_jail("in_the_jail_no_file_can_be_opened_and_nothing_of_the_host_is_there") {
        return;
    }
    let outside = tempfile::NamedTempFile::new().unwrap();
    let path = outside.path().to_owned();
    let end = in_child(|| {
        let kept = File::open(&path).unwrap();
        let jail = Jail {
            user: crate::config::JailConfig {
                uid: 54321,
                gid: 54321,
            },
            ..Jail::default()
        };
        jail.enter().unwrap();
        let denied = |result: std::io::Result<File>| {
            matches!(
                result.map_err(|it| it.kind()),
                Err(ErrorKind::NotFound
                    | ErrorKind::PermissionDenied
                    | ErrorKind::ReadOnlyFilesystem)
            )
        };
        let checks = [
            denied(File::open(&path)),
            denied(File::open("/")),
            denied(File::create("/new")),
            denied(File::open("/proc/self/status")),
            kept.metadata().is_ok(),
            rustix::process::getuid().as_raw() == 54321,
            rustix::thread::capabilities(None)
                .unwrap()
                .permitted
                .is_empty(),
            std::process::Command::new("/bin/true").status().is_err(),
            // SAFETY: a number in, a number out. Becoming root again must fail.
            unsafe { libc::setuid(0) } != 0,
        ];
        checks
            .iter()
            .position(|&held| !held)
            .map_or(0, |it| it as i32 + 1)
    });
    assert_eq!(end, End::Status(0), "the number of the check that failed");
}

#[test]
fn a_directory_of_sockets_can_be_connected_to_and_nothing_else_be_done_with_it() {
    let name = "a_directory_of_sockets_can_be_connected_to_and_nothing_else_be_done_with_it";
    if !can_jail(name) {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let listener = std::os::unix::net::UnixListener::bind(directory.path().join("s_1")).unwrap();
    std::fs::write(directory.path().join("secret"), "x").unwrap();
    let jail = Jail {
        sockets: Some(directory.path().to_owned()),
        ..Jail::default()
    };
    let end = in_child(|| {
        jail.enter().unwrap();
        let connected = UnixStream::connect(format!("{}/s_1", Jail::SOCKETS)).is_ok();
        let read = File::open(format!("{}/secret", Jail::SOCKETS)).is_ok();
        let removed = std::fs::remove_file(format!("{}/s_1", Jail::SOCKETS)).is_ok();
        i32::from(!connected) + 2 * i32::from(read) + 4 * i32::from(removed)
    });
    drop(listener);
    assert_eq!(end, End::Status(0));
}

#[test]
fn no_thread_can_open_execute_or_reach_the_network() {
    rustix::thread::set_no_new_privs(true).unwrap();
    let filters = Filters::new(Backend::Kvm).unwrap();
    let forbidden: [(&str, fn()); 4] = [
        ("execve", || {
            let arguments = [c"true".as_ptr(), std::ptr::null()];
            // SAFETY: the strings end in NUL and the list in a null pointer.
            unsafe {
                libc::execve(
                    c"/bin/true".as_ptr(),
                    arguments.as_ptr(),
                    arguments.as_ptr(),
                )
            };
        }),
        ("socket", || drop(std::net::UdpSocket::bind("127.0.0.1:0"))),
        ("ptrace", || {
            // SAFETY: asks to be traced; nothing else.
            unsafe { libc::ptrace(libc::PTRACE_TRACEME) };
        }),
        ("ioctl", || {
            // SAFETY: TIOCSTI with a byte that lives over the call.
            unsafe { libc::ioctl(0, libc::TIOCSTI, b"x".as_ptr()) };
        }),
    ];
    for kind in [
        ThreadKind::Vcpu,
        ThreadKind::Device,
        ThreadKind::Vsock,
        ThreadKind::Console,
        ThreadKind::Control,
        ThreadKind::Share,
    ] {
        for (name, call) in forbidden {
            let end = in_child(|| {
                filters.install(kind).unwrap();
                call();
                0
            });
            assert_eq!(end, End::Signal(libc::SIGSYS), "{name} in {kind:?}");
        }
        let end = in_child(|| {
            filters.install(kind).unwrap();
            i32::from(File::open("/dev/null").is_ok())
        });
        assert_eq!(end, End::Status(0), "openat in {kind:?}");
        let end = in_child(|| {
            filters.install(kind).unwrap();
            drop(vec![1u8; 1 << 20]);
            std::thread::sleep(std::time::Duration::from_millis(1));
            0
        });
        assert_eq!(end, End::Status(0), "what {kind:?} may do");
    }
}

/// Asks a folder as a user of the guest.
fn ask(folder: &mut Folder, uid: u32, operation: Operation<'_>) -> Result<Vec<u8>, Errno> {
    let header = Header {
        length: 0,
        opcode: 0,
        unique: 0,
        node: ROOT,
        uid,
        gid: uid,
    };
    let mut reply = Reply::default();
    let request = Request { header, operation };
    let answered = folder.call(&request, 4096, &mut reply);
    answered.map(|()| reply.bytes().to_vec())
}

/// The number of the first check that failed, in a locked up thread that serves `path`.
fn check_share(path: &Path, read_only: bool) -> i32 {
    let config = ShareConfig {
        tag: "data".to_owned(),
        path: path.to_owned(),
        read_only,
        read_rate: Rate::default(),
        write_rate: Rate::default(),
    };
    let shares = Shares::open(&[config], true).unwrap();
    let beside = File::open(path.parent().unwrap().join("secret")).unwrap();
    let fds = File::open("/proc/self/fd").unwrap();
    let root = shares.folders().next().unwrap().0;
    let root = root.try_clone_to_owned().unwrap();
    let inode = rustix::fs::fstat(&root).unwrap().st_ino;
    let filters = Filters::new(Backend::Soft).unwrap();
    let jail = Jail {
        user: crate::config::JailConfig {
            uid: 54321,
            gid: 54321,
        },
        shares: vec![(root.try_clone().unwrap(), read_only)],
        ..Jail::default()
    };
    jail.enter().unwrap();
    let (_, mut folder) = shares.serve().unwrap().remove(0);
    filters.install(ThreadKind::Share).unwrap();

    let hello = Operation::Init {
        major: 7,
        minor: 38,
        max_readahead: 0,
        flags: 0,
    };
    let create = |name| Operation::Create {
        name: Name::new(name).unwrap(),
        flags: libc::O_RDWR as u32,
        mode: 0o600,
        kill_privileges: false,
    };
    let name = Name::new(c"theirs").unwrap();
    let found = |it: &mut Folder| ask(it, 0, Operation::Lookup { name }).is_ok();
    let open = |at: &OwnedFd, path: &str| {
        let (flags, free) = (OFlags::RDONLY, ResolveFlags::empty());
        let opened = rustix::fs::openat2(at, path, flags, Mode::empty(), free);
        opened.map(|it| rustix::fs::fstat(it).unwrap().st_ino)
    };
    let number = std::os::fd::AsRawFd::as_raw_fd(&beside).to_string();
    let made = if read_only { Err(Errno::ROFS) } else { Ok(()) };
    let checks = [
        ask(&mut folder, 0, hello).is_ok(),
        found(&mut folder),
        ask(&mut folder, 1000, create(c"new")).map(drop) == made,
        ask(&mut folder, 0, Operation::OpenDirectory).is_ok(),
        // What belongs to somebody else, for them alone.
        open(&root, "theirs").is_ok(),
        // There is nothing above, nothing beside, and no other way to what is open.
        open(&root, "..") == Ok(inode),
        open(&root, "../secret") == Err(Errno::NOENT),
        open(&fds.into(), &number) == Err(Errno::ACCESS),
        open(&root, "/") == Err(Errno::ACCESS),
    ];
    let failed = checks.iter().position(|&held| !held);
    failed.map_or(0, |it| it as i32 + 1)
}

#[test]
fn a_shared_folder_can_be_used_in_the_jail_and_nothing_beside_it() {
    if !can_jail("a_shared_folder_can_be_used_in_the_jail_and_nothing_beside_it") {
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let folder = place.path().join("folder");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(place.path().join("secret"), "").unwrap();
    let theirs = folder.join("theirs");
    std::fs::write(&theirs, "").unwrap();
    std::fs::set_permissions(&theirs, std::fs::Permissions::from_mode(0o600)).unwrap();
    std::os::unix::fs::chown(&theirs, Some(7), Some(7)).unwrap();
    for read_only in [true, false] {
        let end = in_child(|| check_share(&folder, read_only));
        assert_eq!(end, End::Status(0), "read-only: {read_only}");
    }
    let new = std::fs::metadata(folder.join("new")).unwrap();
    assert_eq!(
        (new.uid(), new.gid(), new.mode() & 0o777),
        (1000, 1000, 0o600)
    );
}

#[test]
fn kvm_is_asked_only_where_it_was_chosen_and_only_what_the_thread_needs() {
    const RUN: libc::c_ulong = 0xae80;
    const SIGNAL_MSI: libc::c_ulong = 0x4020_aea5;
    const CREATE_VM: libc::c_ulong = 0xae01;
    rustix::thread::set_no_new_privs(true).unwrap();
    let ask = |backend, kind, request: libc::c_ulong| {
        let filters = Filters::new(backend).unwrap();
        in_child(|| {
            filters.install(kind).unwrap();
            // SAFETY: standard input knows no such request and refuses it without looking further.
            unsafe { libc::ioctl(0, request as _, 0) };
            0
        })
    };
    let (passed, ended) = (End::Status(0), End::Signal(libc::SIGSYS));
    for kind in [
        ThreadKind::Vcpu,
        ThreadKind::Device,
        ThreadKind::Vsock,
        ThreadKind::Console,
        ThreadKind::Control,
        ThreadKind::Share,
    ] {
        assert_eq!(ask(Backend::Soft, kind, SIGNAL_MSI), ended, "{kind:?}");
        assert_eq!(ask(Backend::Kvm, kind, SIGNAL_MSI), passed, "{kind:?}");
        assert_eq!(ask(Backend::Soft, kind, RUN), ended, "{kind:?}");
        let runs = ask(Backend::Kvm, kind, RUN) == passed;
        assert_eq!(runs, kind == ThreadKind::Vcpu, "{kind:?}");
        assert_eq!(ask(Backend::Kvm, kind, CREATE_VM), ended, "{kind:?}");
    }
}
