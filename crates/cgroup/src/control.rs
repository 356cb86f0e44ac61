//! Freezing, thawing and killing a whole group.
//!
//! Where a v2 tree is there (also in a hybrid), it is used: its freezer lets a frozen process be
//! killed and `cgroup.kill` is one write. The v1 ways are a freezer that has to be coaxed, and
//! signals to whoever is listed until nobody is.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Pid, Signal};

use crate::controller::Controller;
use crate::file::{self, FileError};
use crate::group::{Cgroup, Node, Version};
use crate::parse;

/// How long a freeze may take: a process in an uninterruptible sleep cannot be frozen.
const FREEZE_PATIENCE: Duration = Duration::from_secs(10);
/// How long processes may take to die.
const KILL_PATIENCE: Duration = Duration::from_secs(10);

/// Why a group could not be frozen or thawed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FreezeError {
    /// The kernel refused.
    #[error(transparent)]
    File(#[from] FileError),
    /// Neither version's freezer is there.
    #[error("the group cannot be paused: this host has neither cgroup v2 nor the v1 freezer")]
    Unavailable,
    /// It did not happen in time; it was thawed again.
    #[error(
        "{} did not freeze within {} s, probably because a process waits for a disk or a network \
         file system; it runs on", dir.display(), FREEZE_PATIENCE.as_secs()
    )]
    TimedOut {
        /// The group's directory.
        dir: PathBuf,
    },
}

/// Why the processes of a group could not be killed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KillError {
    /// The kernel refused.
    #[error(transparent)]
    File(#[from] FileError),
    /// A process may not be signalled.
    #[error("process {pid} cannot be killed")]
    Signal {
        /// The process.
        pid: i32,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// Processes survived.
    #[error("the processes {pids:?} survived SIGKILL for {} s, probably in the kernel", KILL_PATIENCE.as_secs())]
    Survivors {
        /// Some of them.
        pids: Vec<i32>,
    },
}

impl Cgroup {
    /// Stops every process of the group, and returns when all have stopped.
    ///
    /// # Errors
    /// [`FreezeError::TimedOut`] after 10 s; the group then runs on.
    pub fn freeze(&self) -> Result<(), FreezeError> {
        match self.freezer()? {
            (node, Version::V2) => freeze_v2(&node.dir),
            (node, Version::V1) => freeze_v1(&node.dir),
        }
    }

    /// Lets the processes run again. Thawing what is not frozen is no error.
    ///
    /// # Errors
    /// When the kernel refuses, or a parent group is frozen.
    pub fn thaw(&self) -> Result<(), FreezeError> {
        match self.freezer()? {
            (node, Version::V2) => Ok(file::write(&node.dir.join("cgroup.freeze"), "0")?),
            (node, Version::V1) => Ok(file::write(&node.dir.join("freezer.state"), "THAWED")?),
        }
    }

    /// Whether the group was frozen by [`Cgroup::freeze`] (by any tool, in either freezer).
    ///
    /// # Errors
    /// When the state cannot be read.
    pub fn is_frozen(&self) -> Result<bool, FreezeError> {
        if let Some(node) = &self.v2 {
            let text = file::read_optional(&node.dir.join("cgroup.freeze"))?;
            if text.is_some_and(|text| text.trim() == "1") {
                return Ok(true);
            }
        }
        match self.node(Controller::Freezer) {
            Some((node, Version::V1)) => {
                let text = file::read_optional(&node.dir.join("freezer.self_freezing"))?;
                Ok(text.is_some_and(|text| text.trim() == "1"))
            }
            _ => Ok(false),
        }
    }

    /// Kills every process of the group and of those below it with SIGKILL, forks in progress
    /// included, and waits until none is listed. Reaping is the parents' business.
    ///
    /// # Errors
    /// [`KillError::Survivors`] after 10 s.
    pub fn kill(&self) -> Result<(), KillError> {
        if let Some(node) = &self.v2 {
            match file::write(&node.dir.join("cgroup.kill"), "1") {
                Ok(()) => {}
                Err(error) if error.is_missing() || error.errno() == Some(Errno::OPNOTSUPP) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let started = Instant::now();
        let mut pause = Duration::from_micros(200);
        loop {
            let pids = self.living()?;
            if pids.is_empty() {
                return Ok(());
            }
            if started.elapsed() > KILL_PATIENCE {
                return Err(KillError::Survivors {
                    pids: pids.into_iter().take(8).collect(),
                });
            }
            // A frozen v1 process does not die before it is thawed.
            if let Some((node, Version::V1)) = self.node(Controller::Freezer) {
                let _ = file::write(&node.dir.join("freezer.state"), "THAWED");
            }
            if self.v2.is_none() || pause > Duration::from_millis(1) {
                pids.iter().try_for_each(|&pid| kill(pid))?;
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(20));
        }
    }

    /// The listed processes that are not zombies (those leave only when they are reaped).
    fn living(&self) -> Result<Vec<i32>, FileError> {
        let mut pids = self.pids()?;
        pids.retain(|&pid| !is_zombie(pid));
        Ok(pids)
    }

    fn freezer(&self) -> Result<(&Node, Version), FreezeError> {
        if let Some(node) = &self.v2
            && node.dir.join("cgroup.freeze").exists()
        {
            return Ok((node, Version::V2));
        }
        self.node(Controller::Freezer)
            .ok_or(FreezeError::Unavailable)
    }
}

fn kill(pid: i32) -> Result<(), KillError> {
    let Some(target) = Pid::from_raw(pid) else {
        return Ok(());
    };
    match rustix::process::kill_process(target, Signal::KILL) {
        Ok(()) | Err(Errno::SRCH) => Ok(()),
        Err(errno) => Err(KillError::Signal {
            pid,
            source: errno.into(),
        }),
    }
}

fn is_zombie(pid: i32) -> bool {
    // `pid (comm) S …`, where comm may hold anything, so look behind the last parenthesis.
    match std::fs::read(format!("/proc/{pid}/stat")) {
        Ok(stat) => {
            let end = stat.iter().rposition(|&b| b == b')');
            end.and_then(|end| stat.get(end + 2))
                .is_none_or(|state| b"ZX".contains(state))
        }
        Err(_) => true,
    }
}

fn freeze_v2(dir: &Path) -> Result<(), FreezeError> {
    let events = dir.join("cgroup.events");
    let open = || rustix::fs::open(&events, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
    let watch = open().map_err(|errno| FileError::new("open", &events, errno))?;
    file::write(&dir.join("cgroup.freeze"), "1")?;
    let started = Instant::now();
    while !parse::flat_keyed(&file::read(&events)?).any(|pair| pair == ("frozen", 1)) {
        if started.elapsed() > FREEZE_PATIENCE {
            file::write(&dir.join("cgroup.freeze"), "0")?;
            return Err(FreezeError::TimedOut {
                dir: dir.to_owned(),
            });
        }
        wait_for_change(&watch);
    }
    Ok(())
}

/// Waits for the kernel to say that a v2 events file changed, 100 ms at most.
fn wait_for_change(file: &OwnedFd) {
    let timeout = Timespec {
        tv_sec: 0,
        tv_nsec: 100_000_000,
    };
    // The kernel raises the notice again until the file is read from its start.
    let mut buffer = [0u8; 256];
    let _ = rustix::io::pread(file, &mut buffer, 0);
    let _ = rustix::event::poll(&mut [PollFd::new(file, PollFlags::PRI)], Some(&timeout));
}

fn freeze_v1(dir: &Path) -> Result<(), FreezeError> {
    let state = dir.join("freezer.state");
    let started = Instant::now();
    let mut round = 0u32;
    loop {
        // A fork during the freeze can leave the group in FREEZING for ever; a thaw in between
        // lets it finish. Documentation/admin-guide/cgroup-v1/freezer-subsystem.rst.
        if round % 50 == 49 {
            file::write(&state, "THAWED")?;
            std::thread::sleep(Duration::from_millis(1));
        }
        file::write(&state, "FROZEN")?;
        if file::read(&state)?.trim() == "FROZEN" {
            return Ok(());
        }
        if started.elapsed() > FREEZE_PATIENCE {
            file::write(&state, "THAWED")?;
            return Err(FreezeError::TimedOut {
                dir: dir.to_owned(),
            });
        }
        std::thread::sleep(Duration::from_micros(if round < 20 { 100 } else { 5_000 }));
        round += 1;
    }
}
