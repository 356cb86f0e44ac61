//! The JSON of `linux.seccomp` in an OCI bundle, turned into a [`Policy`] with limits.
//!
//! Source: runtime-spec 1.3, config-linux.md, section Seccomp. The text is untrusted.

use std::borrow::Cow;

use serde::Deserialize;
use serde::de::IntoDeserializer;

use crate::action::Action;
use crate::arch::Arch;
use crate::policy::{Argument, Flag, NewCalls, Operator, Policy, Rule};

const MAX_RULES: usize = 4096;
const MAX_NAMES: usize = 16_384;
const MAX_ARGUMENTS: usize = 12;
const EPERM: u16 = 1;
const ENOSYS: u16 = 38;

/// `linux.seccomp` as it is written.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Seccomp {
    default_action: String,
    default_errno_ret: Option<u32>,
    #[serde(default)]
    architectures: Vec<String>,
    #[serde(default)]
    flags: Vec<String>,
    listener_path: Option<String>,
    listener_metadata: Option<String>,
    #[serde(default)]
    syscalls: Vec<Syscall>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Syscall {
    names: Vec<String>,
    action: String,
    errno_ret: Option<u32>,
    #[serde(default, deserialize_with = "null_is_empty")]
    args: Vec<Condition>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Condition {
    index: u32,
    value: u64,
    #[serde(default)]
    value_two: u64,
    op: String,
}

/// Go programs write an absent list as `null`.
fn null_is_empty<'de, D: serde::Deserializer<'de>>(d: D) -> Result<Vec<Condition>, D::Error> {
    Ok(Option::deserialize(d)?.unwrap_or_default())
}

/// Why the JSON is not a policy.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PolicyError {
    #[error("linux.seccomp.{field} has the unknown value {value:?}")]
    Unknown { field: &'static str, value: String },
    #[error("linux.seccomp.{field} has {count} entries, more than the {limit} accepted")]
    TooMany {
        field: &'static str,
        count: usize,
        limit: usize,
    },
    #[error("linux.seccomp: the error number {0} is not between 0 and 4095")]
    Errno(u32),
    #[error("linux.seccomp: argument index {0} is not between 0 and 5")]
    Index(u32),
    #[error("linux.seccomp.syscalls: an entry names no system call")]
    NoNames,
    #[error(
        "linux.seccomp: SCMP_ACT_NOTIFY cannot be the default action, nor that of \"write\" or \
         \"sendmsg\", which are needed to hand over the listener"
    )]
    Notify,
    #[error("linux.seccomp: SCMP_ACT_NOTIFY is used, but listenerPath says nobody to notify")]
    NoListener,
}

impl TryFrom<Seccomp> for Policy {
    type Error = PolicyError;

    fn try_from(wire: Seccomp) -> Result<Policy, PolicyError> {
        limit("syscalls", wire.syscalls.len(), MAX_RULES)?;
        limit("architectures", wire.architectures.len(), 64)?;
        limit("flags", wire.flags.len(), 64)?;
        let names = wire.syscalls.iter().map(|s| s.names.len()).sum();
        limit("syscalls.names", names, MAX_NAMES)?;
        let default_action = action(
            &wire.default_action,
            wire.default_errno_ret,
            "defaultAction",
        )?;
        if default_action == Action::Notify {
            return Err(PolicyError::Notify);
        }
        let policy = Policy {
            default_action,
            architectures: architectures(&wire.architectures)?,
            rules: wire
                .syscalls
                .into_iter()
                .map(rule)
                .collect::<Result<_, _>>()?,
            flags: wire
                .flags
                .iter()
                .map(|name| flag(name))
                .collect::<Result<_, _>>()?,
            new_calls: match default_action {
                Action::Errno(ENOSYS) => NewCalls::Default,
                _ => NewCalls::Enosys,
            },
            listener_path: wire.listener_path.filter(|path| !path.is_empty()),
            listener_metadata: wire.listener_metadata.filter(|text| !text.is_empty()),
        };
        if policy.notifies() && policy.listener_path.is_none() {
            return Err(PolicyError::NoListener);
        }
        Ok(policy)
    }
}

fn limit(field: &'static str, count: usize, limit: usize) -> Result<(), PolicyError> {
    if count > limit {
        Err(PolicyError::TooMany {
            field,
            count,
            limit,
        })
    } else {
        Ok(())
    }
}

/// Architectures without a table here are real ones of other machines; their calls are refused.
fn architectures(names: &[String]) -> Result<Vec<Arch>, PolicyError> {
    let unknown = names.iter().find(|name| !name.starts_with("SCMP_ARCH_"));
    match unknown {
        Some(name) => Err(PolicyError::Unknown {
            field: "architectures",
            value: name.clone(),
        }),
        None => Ok(names
            .iter()
            .filter_map(|name| Arch::from_oci(name))
            .collect()),
    }
}

fn rule(wire: Syscall) -> Result<Rule, PolicyError> {
    limit("syscalls.args", wire.args.len(), MAX_ARGUMENTS)?;
    if wire.names.is_empty() {
        return Err(PolicyError::NoNames);
    }
    let action = action(&wire.action, wire.errno_ret, "syscalls.action")?;
    // The specification names the first; the second is what this runtime hands over with.
    let needed = |name: &String| ["write", "sendmsg"].contains(&name.as_str());
    if action == Action::Notify && wire.names.iter().any(needed) {
        return Err(PolicyError::Notify);
    }
    Ok(Rule {
        names: wire.names.into_iter().map(Cow::Owned).collect(),
        action,
        arguments: wire.args.iter().map(argument).collect::<Result<_, _>>()?,
    })
}

fn argument(wire: &Condition) -> Result<Argument, PolicyError> {
    let operator = match wire.op.as_str() {
        "SCMP_CMP_NE" => Operator::NotEqual,
        "SCMP_CMP_LT" => Operator::Less,
        "SCMP_CMP_LE" => Operator::LessOrEqual,
        "SCMP_CMP_EQ" => Operator::Equal,
        "SCMP_CMP_GE" => Operator::GreaterOrEqual,
        "SCMP_CMP_GT" => Operator::Greater,
        "SCMP_CMP_MASKED_EQ" => Operator::MaskedEqual,
        other => {
            return Err(PolicyError::Unknown {
                field: "syscalls.args.op",
                value: other.into(),
            });
        }
    };
    let index = u8::try_from(wire.index).ok().filter(|&i| i < 6);
    let index = index.ok_or(PolicyError::Index(wire.index))?;
    Ok(Argument {
        index,
        operator,
        value: wire.value,
        value_two: wire.value_two,
    })
}

fn action(name: &str, errno: Option<u32>, field: &'static str) -> Result<Action, PolicyError> {
    let number = || -> Result<u16, PolicyError> {
        let errno = errno.unwrap_or(u32::from(EPERM));
        u16::try_from(errno)
            .ok()
            .filter(|&n| n <= 4095)
            .ok_or(PolicyError::Errno(errno))
    };
    Ok(match name {
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => Action::KillThread,
        "SCMP_ACT_KILL_PROCESS" => Action::KillProcess,
        "SCMP_ACT_TRAP" => Action::Trap,
        "SCMP_ACT_ERRNO" => Action::Errno(number()?),
        "SCMP_ACT_TRACE" => Action::Trace(number()?),
        "SCMP_ACT_ALLOW" => Action::Allow,
        "SCMP_ACT_LOG" => Action::Log,
        "SCMP_ACT_NOTIFY" => Action::Notify,
        other => {
            return Err(PolicyError::Unknown {
                field,
                value: other.into(),
            });
        }
    })
}

fn flag(name: &str) -> Result<Flag, PolicyError> {
    let unknown = |_: serde::de::value::Error| PolicyError::Unknown {
        field: "flags",
        value: name.into(),
    };
    Flag::deserialize(name.into_deserializer()).map_err(unknown)
}
