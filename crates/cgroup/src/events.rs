//! Notice of kills for want of memory, as a descriptor for the caller's `epoll`.
//!
//! v2: inotify on `memory.events`. v1: an eventfd registered in `cgroup.event_control`. Either way
//! the counts come from the group's files, so a notice that was missed loses nothing.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::event::EventfdFlags;
use rustix::fs::{Mode, OFlags, inotify};

use crate::controller::Controller;
use crate::file::{self, FileError};
use crate::group::{Cgroup, Version};
use crate::parse;

/// Why the group's memory cannot be watched.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WatchError {
    /// The kernel refused.
    #[error(transparent)]
    File(#[from] FileError),
    /// The memory controller is missing.
    #[error("memory exhaustion cannot be watched: the memory controller is not available here")]
    Unavailable,
}

/// A watch for kills of processes of one group for want of memory.
#[derive(Debug)]
pub struct OomWatch {
    notify: OwnedFd,
    counter: PathBuf,
}

impl Cgroup {
    /// Starts to watch. The descriptor becomes readable when something happened.
    ///
    /// # Errors
    /// [`WatchError::Unavailable`] without a memory controller.
    pub fn watch_oom(&self) -> Result<OomWatch, WatchError> {
        let (node, version) = self
            .node(Controller::Memory)
            .ok_or(WatchError::Unavailable)?;
        match version {
            Version::V1 => {
                let counter = node.dir.join("memory.oom_control");
                let fail = |errno| FileError::new("watch", &counter, errno);
                let flags = OFlags::RDONLY | OFlags::CLOEXEC;
                let control = rustix::fs::open(&counter, flags, Mode::empty()).map_err(fail)?;
                let event = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
                let notify = rustix::event::eventfd(0, event).map_err(fail)?;
                let line = format!("{} {}", notify.as_raw_fd(), control.as_raw_fd());
                file::write(&node.dir.join("cgroup.event_control"), &line)?;
                Ok(OomWatch { notify, counter })
            }
            Version::V2 => {
                let counter = node.dir.join("memory.events");
                let fail = |errno| FileError::new("watch", &counter, errno);
                let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
                let notify = inotify::init(flags).map_err(fail)?;
                inotify::add_watch(&notify, &counter, inotify::WatchFlags::MODIFY).map_err(fail)?;
                Ok(OomWatch { notify, counter })
            }
        }
    }

    /// How many processes of the group were killed for want of memory; 0 where nobody counts.
    ///
    /// # Errors
    /// When the counter cannot be read.
    pub fn oom_kills(&self) -> Result<u64, FileError> {
        let Some((node, version)) = self.node(Controller::Memory) else {
            return Ok(0);
        };
        let name = if version == Version::V1 {
            "memory.oom_control"
        } else {
            "memory.events"
        };
        let text = file::read_optional(&node.dir.join(name))?.unwrap_or_default();
        Ok(kills(&text))
    }
}

impl OomWatch {
    /// Takes the notice and returns how many processes were killed since the group was made.
    /// Never blocks. A group that is gone counts 0.
    ///
    /// # Errors
    /// When the counter cannot be read.
    pub fn read(&mut self) -> Result<u64, FileError> {
        let mut buffer = [0u8; 1024];
        while rustix::io::read(&self.notify, &mut buffer).is_ok_and(|n| n > 0) {}
        Ok(kills(
            &file::read_optional(&self.counter)?.unwrap_or_default(),
        ))
    }
}

impl AsFd for OomWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.notify.as_fd()
    }
}

fn kills(text: &str) -> u64 {
    parse::flat_keyed(text)
        .find(|(key, _)| *key == "oom_kill")
        .map_or(0, |(_, n)| n)
}
