//! Limits: [`Resources`] become writes to control files.
//!
//! [`plan`] is pure: it knows which file of which version takes which value, and refuses what the
//! host cannot give, before anything is written. [`Cgroup::apply`] then carries it out.

mod plan;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::controller::Controller;
use crate::delegate::{self, SubtreeError};
use crate::devices::{self, DeviceRule, Reduced};
use crate::file::{self, FileError};
use crate::group::{Cgroup, Version};
use crate::resources::{Limit, Resources};

use plan::Write;

/// Why limits could not be set.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ApplyError {
    /// The host, or this user, does not have the controller.
    #[error(
        "{limit} cannot be set: the controller {controller} is not available here ({reason}); \
         leave the limit out, or enable the controller on the host"
    )]
    Unavailable {
        /// The limit, as the specification names it.
        limit: String,
        /// The controller it needs.
        controller: Controller,
        /// Why it is missing.
        reason: String,
    },
    /// The limit exists in the other version only.
    #[error(
        "{limit} cannot be set: it exists in cgroup {needs} only and this host's {controller} controller is {has}"
    )]
    OtherVersion {
        /// The limit.
        limit: String,
        /// The controller.
        controller: Controller,
        /// The version that has the limit.
        needs: &'static str,
        /// The version of the host.
        has: &'static str,
    },
    /// The value makes no sense.
    #[error("{limit} has the value {value}, which is not valid: {reason}")]
    Invalid {
        /// The limit.
        limit: String,
        /// The value.
        value: String,
        /// What would be.
        reason: &'static str,
    },
    /// The memory limit is below what is used, and the caller asked to be told.
    #[error(
        "memory.limit of {limit} bytes is below the {used} bytes in use; raise it, or stop something first"
    )]
    MemoryInUse {
        /// The limit asked for.
        limit: u64,
        /// Bytes in use.
        used: u64,
    },
    /// The kernel refused the value.
    #[error("{limit} was refused by the kernel")]
    Refused {
        /// The limit.
        limit: String,
        /// The file and what the kernel said.
        source: FileError,
    },
    /// The controller cannot be enabled for this group.
    #[error("{limit} cannot be set")]
    Subtree {
        /// The limit.
        limit: String,
        /// Why.
        source: SubtreeError,
    },
    /// The device program could not be attached.
    #[error("the device rules cannot be enforced on {}", group)]
    Devices {
        /// The group's directory.
        group: String,
        /// What the kernel said to `bpf(2)`.
        source: std::io::Error,
    },
}

impl Cgroup {
    /// Sets every limit that `resources` has. What is `None` stays as it is.
    ///
    /// Values that depend on each other (memory and swap, quota and period and burst) are written
    /// in whichever order the kernel accepts, so this serves updates up and down.
    ///
    /// # Errors
    /// [`ApplyError`] names the limit and the controller. Limits that cannot work on this host
    /// are found before the first write.
    pub fn apply(&self, resources: &Resources) -> Result<(), ApplyError> {
        let writes = plan::plan(self, resources)?;
        self.check_memory(resources)?;
        let mut rest = writes.as_slice();
        while let Some(first) = rest.first() {
            let len = rest
                .iter()
                .take_while(|w| w.controller == first.controller)
                .count();
            let (same, others) = rest.split_at(len);
            self.settle(same)?;
            rest = others;
        }
        match &resources.devices {
            Some(rules) if !rules.is_empty() => self.apply_devices(rules),
            _ => Ok(()),
        }
    }

    /// Writes limits of one controller until all hold. `EINVAL` may mean "not in this order".
    fn settle(&self, writes: &[Write]) -> Result<(), ApplyError> {
        let mut pending: Vec<&Write> = writes.iter().collect();
        loop {
            let mut refused = Vec::new();
            let mut error = None;
            for &write in &pending {
                match self.write(write) {
                    Ok(()) => {}
                    Err(e) if e.retryable() => {
                        refused.push(write);
                        error.get_or_insert(e);
                    }
                    Err(e) => return Err(e),
                }
            }
            match error {
                None => return Ok(()),
                Some(error) if refused.len() == pending.len() => return Err(error),
                Some(_) => pending = refused,
            }
        }
    }

    fn write(&self, write: &Write) -> Result<(), ApplyError> {
        let refused = |source| ApplyError::Refused {
            limit: write.limit.clone(),
            source,
        };
        let Some((node, version)) = self.node(write.controller) else {
            return Err(plan::unavailable(self, &write.limit, write.controller));
        };
        let path = node.dir.join(&write.file);
        let value = match &write.value {
            plan::Value::Text(text) => text.clone(),
            plan::Value::PeriodOfCpuMax(period) => {
                let now = file::read(&path).map_err(refused)?;
                format!("{} {period}", now.split(' ').next().unwrap_or("max").trim())
            }
        };
        match file::write(&path, &value) {
            Err(error) if error.is_missing() && version == Version::V2 => {
                delegate::enable(node, write.controller).map_err(|source| ApplyError::Subtree {
                    limit: write.limit.clone(),
                    source,
                })?;
                let second = file::write(&path, &value);
                match (&write.otherwise, second) {
                    (Some((file, value)), Err(e)) if e.is_missing() => {
                        file::write(&node.dir.join(file), value).map_err(refused)
                    }
                    (_, result) => result.map_err(refused),
                }
            }
            Err(error) if error.is_missing() => match &write.otherwise {
                Some((file, value)) => file::write(&node.dir.join(file), value).map_err(refused),
                None => Err(refused(error)),
            },
            result => result.map_err(refused),
        }
    }

    fn check_memory(&self, resources: &Resources) -> Result<(), ApplyError> {
        let memory = &resources.memory;
        let (true, Some(Limit::At(limit))) = (memory.check_before_update, memory.max_bytes) else {
            return Ok(());
        };
        let used = self
            .stats()
            .ok()
            .and_then(|s| s.memory)
            .map_or(0, |m| m.current_bytes);
        if used > limit {
            Err(ApplyError::MemoryInUse { limit, used })
        } else {
            Ok(())
        }
    }

    fn apply_devices(&self, rules: &[DeviceRule]) -> Result<(), ApplyError> {
        let reduced = Reduced::new(rules);
        match self.node(Controller::Devices) {
            Some((node, Version::V1)) => write_v1_devices(&node.dir, &reduced),
            _ => {
                let Some(dir) = self.v2_dir() else {
                    return Err(plan::unavailable(
                        self,
                        "linux.resources.devices",
                        Controller::Devices,
                    ));
                };
                let attach = || {
                    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
                    let group = rustix::fs::open(dir, flags, Mode::empty())?;
                    devices::attach(
                        std::os::fd::AsFd::as_fd(&group),
                        &devices::program(&reduced),
                    )
                };
                attach().map_err(|errno: Errno| ApplyError::Devices {
                    group: dir.display().to_string(),
                    source: errno.into(),
                })
            }
        }
    }
}

fn write_v1_devices(dir: &std::path::Path, rules: &Reduced) -> Result<(), ApplyError> {
    let limit = || "linux.resources.devices".to_owned();
    let refused = |source| ApplyError::Refused {
        limit: limit(),
        source,
    };
    let names = ["devices.deny", "devices.allow"];
    if rules.default_was_set {
        let path = dir.join(names[usize::from(rules.allow_by_default)]);
        file::write(&path, "a").map_err(refused)?;
    }
    if rules.exceptions.is_empty() {
        return Ok(());
    }
    let path = dir.join(names[usize::from(!rules.allow_by_default)]);
    let open = rustix::fs::open(&path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| refused(FileError::new("open", &path, errno)))?;
    rules.exceptions.iter().try_for_each(|rule| {
        let text = devices::v1_text(rule);
        file::write_all(&open, &text)
            .map_err(|errno| refused(FileError::new(format!("write {text:?} to"), &path, errno)))
    })
}

impl ApplyError {
    fn retryable(&self) -> bool {
        let ApplyError::Refused { source, .. } = self else {
            return false;
        };
        matches!(source.errno(), Some(Errno::INVAL | Errno::BUSY))
    }
}

#[cfg(test)]
mod tests;
