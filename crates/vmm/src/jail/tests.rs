//! Tests of `jail`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs::File,
    io::{ErrorKind, Write},
    os::unix::net::UnixStream,
};

use super::*;

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
            sockets: None,
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
    let filters = Filters::new().unwrap();
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
