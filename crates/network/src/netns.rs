//! Running a piece of code in another network namespace.
//!
//! A thread of its own enters the namespace and ends with the work, so the caller's thread never
//! changes its namespace, not even when the work panics.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// The calling thread's network namespace.
pub(crate) fn current() -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    rustix::fs::open("/proc/thread-self/ns/net", flags, Mode::empty())
}

/// Runs `work` in `netns`.
///
/// # Errors
/// The namespace could not be entered (it takes `CAP_SYS_ADMIN` over it), or no thread could be
/// had. `work`'s own outcome is the value.
pub(crate) fn within<T: Send>(
    netns: BorrowedFd<'_>,
    work: impl FnOnce() -> T + Send,
) -> Result<T, Errno> {
    std::thread::scope(|scope| {
        let body = move || {
            move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))?;
            Ok(work())
        };
        let builder = std::thread::Builder::new()
            .name("netns".to_owned())
            .stack_size(256 * 1024);
        let thread = builder
            .spawn_scoped(scope, body)
            .map_err(|_| Errno::AGAIN)?;
        match thread.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}
