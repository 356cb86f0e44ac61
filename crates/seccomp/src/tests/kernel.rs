//! The kernel takes the programs and obeys them: a child installs one and makes calls.

use crate::*;

/// Runs `body` in a forked child under `policy`; its exit status.
fn under(policy: &Policy, body: fn() -> i32) -> i32 {
    let program = compile(policy).unwrap();
    // SAFETY: the child only makes system calls and exits; it touches no lock or allocator.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0);
    if pid == 0 {
        // SAFETY: prctl with constants.
        let quiet = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
        let code = if quiet != 0 || install(&program).is_err() {
            99
        } else {
            body()
        };
        // SAFETY: ends the child at once.
        unsafe { libc::_exit(code) };
    }
    let mut status = 0;
    // SAFETY: waits for the child made above.
    assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
    status
}

/// The error number of one system call, 0 for none.
fn errno(number: i64, a: u64, b: u64) -> i32 {
    // SAFETY: the calls made here have no effect on memory: the filter answers them, or they take
    // plain numbers.
    let result = unsafe { libc::syscall(number, a, b, 0, 0, 0) };
    if result < 0 {
        std::io::Error::last_os_error().raw_os_error().unwrap_or(98)
    } else {
        0
    }
}

#[test]
fn the_kernel_enforces_the_default_profile() {
    let policy = default_profile::<&str>(&[]);
    let exit = |body| libc::WEXITSTATUS(under(&policy, body));
    assert_eq!(exit(|| errno(libc::SYS_getpid, 0, 0)), 0);
    assert_eq!(exit(|| errno(libc::SYS_mount, 0, 0)), libc::EPERM);
    assert_eq!(
        exit(|| errno(libc::SYS_unshare, libc::CLONE_NEWUSER as u64, 0)),
        libc::EPERM
    );
    assert_eq!(exit(|| errno(libc::SYS_clone3, 0, 0)), libc::ENOSYS);
    assert_eq!(exit(|| errno(libc::SYS_socket, 38, 5)), libc::EPERM);
    assert_eq!(exit(|| errno(libc::SYS_socket, 1, 1)), 0);
    assert_eq!(exit(|| errno(libc::SYS_personality, 0xffff_ffff, 0)), 0);
    assert_eq!(exit(|| errno(999, 0, 0)), libc::ENOSYS);
}

#[test]
fn kill_process_kills_and_a_listener_is_handed_out() {
    let rule = |action| Policy {
        default_action: Action::Allow,
        rules: vec![Rule {
            names: vec!["getppid".into()],
            action,
            arguments: vec![],
        }],
        ..default_profile::<&str>(&[])
    };
    // SAFETY: getppid has no arguments.
    let status = under(&rule(Action::KillProcess), || unsafe { libc::getppid() });
    assert!(libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGSYS);

    let program = compile(&rule(Action::Notify)).unwrap();
    let thread = std::thread::spawn(move || {
        // SAFETY: prctl with constants; the filter is on this thread only.
        let quiet = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
        assert_eq!(quiet, 0);
        install(&program).unwrap().is_some()
    });
    assert!(thread.join().unwrap());
}
