//! Resource limits, scheduling, I/O priority, NUMA policy: from the specification's names to numbers.
//!
//! The parsers are pure and shared by validation and set-up. Limits are put on the child by its parent
//! ([`apply_rlimits`]), which still has the rights of the caller, unless they need none ([`within_own`]);
//! the rest the child sets on itself.

use rustix::io::Errno;

use crate::error::{Context, Failure, Step};
use crate::spec::{IoClass, IoPriority, MemoryPolicy, Personality, Rlimit, Scheduler};
use crate::sys::{self, SchedAttr};

/// The kernel's number for a limit's name.
pub(crate) fn resource(name: &str) -> Option<u32> {
    Some(match name {
        "RLIMIT_CPU" => libc::RLIMIT_CPU,
        "RLIMIT_FSIZE" => libc::RLIMIT_FSIZE,
        "RLIMIT_DATA" => libc::RLIMIT_DATA,
        "RLIMIT_STACK" => libc::RLIMIT_STACK,
        "RLIMIT_CORE" => libc::RLIMIT_CORE,
        "RLIMIT_RSS" => libc::RLIMIT_RSS,
        "RLIMIT_NPROC" => libc::RLIMIT_NPROC,
        "RLIMIT_NOFILE" => libc::RLIMIT_NOFILE,
        "RLIMIT_MEMLOCK" => libc::RLIMIT_MEMLOCK,
        "RLIMIT_AS" => libc::RLIMIT_AS,
        "RLIMIT_LOCKS" => libc::RLIMIT_LOCKS,
        "RLIMIT_SIGPENDING" => libc::RLIMIT_SIGPENDING,
        "RLIMIT_MSGQUEUE" => libc::RLIMIT_MSGQUEUE,
        "RLIMIT_NICE" => libc::RLIMIT_NICE,
        "RLIMIT_RTPRIO" => libc::RLIMIT_RTPRIO,
        "RLIMIT_RTTIME" => libc::RLIMIT_RTTIME,
        _ => return None,
    })
}

/// Whether every limit lies within the caller's own, so that it needs no rights to set them.
pub(crate) fn within_own(limits: &[Rlimit]) -> Step<bool> {
    for limit in limits {
        let Some(number) = resource(&limit.kind) else {
            return Ok(false);
        };
        let most = sys::hard_limit(number).with(|| format!("cannot read {}", limit.kind))?;
        if limit.hard > most {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Puts the limits on process `pid`; 0 is the caller. Without CAP_SYS_RESOURCE a hard limit cannot be raised: it then
/// stays where it is and a warning says so.
pub(crate) fn apply_rlimits(pid: i32, limits: &[Rlimit], warn: &mut dyn FnMut(String)) -> Step<()> {
    for limit in limits {
        let Some(number) = resource(&limit.kind) else {
            return Err(Failure::new(
                format!("cannot set {}", limit.kind),
                "no such limit",
            ));
        };
        match sys::prlimit(pid, number, limit.soft, limit.hard) {
            Err(Errno::PERM) => {
                let most =
                    sys::hard_limit(number).with(|| format!("cannot read {}", limit.kind))?;
                let (soft, hard) = (limit.soft.min(most), limit.hard.min(most));
                sys::prlimit(pid, number, soft, hard).with(|| {
                    format!("cannot set {} to {}:{}", limit.kind, limit.soft, limit.hard)
                })?;
                warn(format!(
                    "{} {}:{} is above this host's hard limit and raising that needs CAP_SYS_RESOURCE; \
                     using {soft}:{hard}",
                    limit.kind, limit.soft, limit.hard
                ));
            }
            other => other
                .with(|| format!("cannot set {} to {}:{}", limit.kind, limit.soft, limit.hard))?,
        }
    }
    Ok(())
}

/// The kernel's form of scheduling attributes.
///
/// # Errors
/// Says which name is unknown.
pub(crate) fn sched_attr(scheduler: &Scheduler) -> Result<SchedAttr, String> {
    let policy = match scheduler.policy.as_str() {
        "SCHED_OTHER" => 0,
        "SCHED_FIFO" => 1,
        "SCHED_RR" => 2,
        "SCHED_BATCH" => 3,
        "SCHED_ISO" => 4,
        "SCHED_IDLE" => 5,
        "SCHED_DEADLINE" => 6,
        other => return Err(format!("policy {other:?} is unknown")),
    };
    let mut flags = 0;
    for flag in &scheduler.flags {
        flags |= match flag.as_str() {
            "SCHED_FLAG_RESET_ON_FORK" => 0x01,
            "SCHED_FLAG_RECLAIM" => 0x02,
            "SCHED_FLAG_DL_OVERRUN" => 0x04,
            "SCHED_FLAG_KEEP_POLICY" => 0x08,
            "SCHED_FLAG_KEEP_PARAMS" => 0x10,
            "SCHED_FLAG_UTIL_CLAMP_MIN" => 0x20,
            "SCHED_FLAG_UTIL_CLAMP_MAX" => 0x40,
            other => return Err(format!("flag {other:?} is unknown")),
        };
    }
    if !(0..=99).contains(&scheduler.priority) {
        return Err("priority must lie between 0 and 99".into());
    }
    Ok(SchedAttr {
        size: size_of::<SchedAttr>() as u32,
        policy,
        flags,
        nice: scheduler.nice,
        priority: scheduler.priority as u32,
        runtime: scheduler.runtime,
        deadline: scheduler.deadline,
        period: scheduler.period,
    })
}

/// Sets the caller's execution domain, checked by validation.
pub(crate) fn set_personality(personality: &Personality) -> Step<()> {
    const PER_LINUX: u64 = 0;
    const PER_LINUX32: u64 = 0x0008;
    let domain = match personality.domain.as_str() {
        "LINUX32" => PER_LINUX32,
        _ => PER_LINUX,
    };
    sys::personality(domain).ctx("cannot set linux.personality")
}

/// Sets the caller's scheduling.
pub(crate) fn apply_scheduler(scheduler: &Scheduler) -> Step<()> {
    let attr =
        sched_attr(scheduler).map_err(|why| Failure::new("cannot use process.scheduler", why))?;
    sys::sched_setattr(&attr)
        .with(|| format!("cannot set the scheduling policy {}", scheduler.policy))
}

/// Sets the caller's I/O priority.
pub(crate) fn apply_io_priority(io: &IoPriority) -> Step<()> {
    let class = match io.class {
        IoClass::RealTime => 1,
        IoClass::BestEffort => 2,
        IoClass::Idle => 3,
    };
    sys::ioprio_set(class << 13 | io.priority).ctx("cannot set the I/O priority")
}

/// The kernel's mode and node mask.
///
/// # Errors
/// Says which name or number is wrong.
pub(crate) fn memory_policy(policy: &MemoryPolicy) -> Result<(i32, Vec<u64>), String> {
    let mut mode = match policy.mode.as_str() {
        "MPOL_DEFAULT" => 0,
        "MPOL_PREFERRED" => 1,
        "MPOL_BIND" => 2,
        "MPOL_INTERLEAVE" => 3,
        "MPOL_LOCAL" => 4,
        "MPOL_PREFERRED_MANY" => 5,
        "MPOL_WEIGHTED_INTERLEAVE" => 6,
        other => return Err(format!("mode {other:?} is unknown")),
    };
    for flag in &policy.flags {
        mode |= match flag.as_str() {
            "MPOL_F_NUMA_BALANCING" => 1 << 13,
            "MPOL_F_RELATIVE_NODES" => 1 << 14,
            "MPOL_F_STATIC_NODES" => 1 << 15,
            other => return Err(format!("flag {other:?} is unknown")),
        };
    }
    Ok((mode, number_list(&policy.nodes)?))
}

/// A list such as `0-3,7` as a bit mask; at most 4096 numbers.
pub(crate) fn number_list(text: &str) -> Result<Vec<u64>, String> {
    let mut mask = Vec::new();
    for part in text
        .split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty())
    {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let number = |t: &str| t.trim().parse::<usize>().ok().filter(|n| *n < 4096);
        let (Some(first), Some(last)) = (number(first), number(last)) else {
            return Err(format!("{part:?} is not a number or range below 4096"));
        };
        if first > last {
            return Err(format!("the range {part:?} is upside down"));
        }
        for n in first..=last {
            if mask.len() <= n / 64 {
                mask.resize(n / 64 + 1, 0u64);
            }
            mask[n / 64] |= 1 << (n % 64);
        }
    }
    Ok(mask)
}

/// Sets the preference of the out-of-memory killer for process `pid`. Preferring it less than the caller
/// needs CAP_SYS_RESOURCE; without that a warning is returned.
pub(crate) fn set_oom_score(pid: i32, score: i32) -> Step<Option<String>> {
    use rustix::fs::{Mode, OFlags};
    let write = || {
        let path = format!("/proc/{pid}/oom_score_adj");
        let file = rustix::fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
        rustix::io::write(file, score.to_string().as_bytes())
    };
    match write() {
        Ok(_) => Ok(None),
        Err(Errno::ACCESS | Errno::PERM) => Ok(Some(format!(
            "oomScoreAdj {score} is below the caller's own and needs CAP_SYS_RESOURCE; left as it is"
        ))),
        Err(errno) => Err(errno).with(|| format!("cannot set oomScoreAdj to {score}")),
    }
}

/// Binds the caller to the CPUs of a list; an empty list changes nothing.
pub(crate) fn set_affinity(list: &str) -> Step<()> {
    if list.is_empty() {
        return Ok(());
    }
    let what = || format!("cannot bind the process to CPUs {list}");
    let mask = number_list(list).map_err(|why| Failure::new(what(), why))?;
    let mut set = rustix::thread::CpuSet::new();
    for cpu in 0..rustix::thread::CpuSet::MAX_CPU {
        if mask
            .get(cpu / 64)
            .is_some_and(|word| word & 1 << (cpu % 64) != 0)
        {
            set.set(cpu);
        }
    }
    rustix::thread::sched_setaffinity(None, &set).with(what)
}
