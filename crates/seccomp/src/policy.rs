//! A policy: what to do with which system calls. Plain data in the terms of the OCI specification.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::action::Action;
use crate::arch::Arch;

/// What to do with which system calls.
///
/// Deserializes from the JSON of `linux.seccomp` in an OCI bundle, with limits (see `oci`).
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "crate::oci::Seccomp")]
pub struct Policy {
    /// For calls that no rule matches.
    pub default_action: Action,
    /// The ABIs that may be used; calls by any other kill the process. The native one is always in.
    pub architectures: Vec<Arch>,
    /// The rules. For one call, a rule without arguments beats those with; among those with
    /// arguments the first that matches decides.
    pub rules: Vec<Rule>,
    /// How the filter is installed.
    pub flags: Vec<Flag>,
    /// What calls get that are newer than all the policy names.
    pub new_calls: NewCalls,
    /// Unix socket that the notify descriptor is sent to.
    pub listener_path: Option<String>,
    /// Text sent along with it.
    pub listener_metadata: Option<String>,
}

/// What system calls get whose number is above all those in the policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NewCalls {
    /// ENOSYS if the default is to refuse: programs then fall back to an older call, where EPERM
    /// would have made them fail. runc does so.
    Enosys,
    /// The default action.
    Default,
}

/// What to do with some system calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Their names. One that an architecture does not have is left out there.
    pub names: Vec<Cow<'static, str>>,
    /// What to do.
    pub action: Action,
    /// Only if all of these hold. Where two are about the same argument, the specification's
    /// implementers read the list as alternatives instead, and so does this crate.
    pub arguments: Vec<Argument>,
}

/// A condition on one argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Argument {
    /// Which, 0 to 5.
    pub index: u8,
    /// How it is compared.
    pub operator: Operator,
    /// With what; the mask for [`Operator::MaskedEqual`].
    pub value: u64,
    /// What the masked argument must be, for [`Operator::MaskedEqual`] only.
    pub value_two: u64,
}

/// How an argument is compared, unsigned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operator {
    /// `argument != value`
    NotEqual,
    /// `argument < value`
    Less,
    /// `argument <= value`
    LessOrEqual,
    /// `argument == value`
    Equal,
    /// `argument >= value`
    GreaterOrEqual,
    /// `argument > value`
    Greater,
    /// `argument & value == value_two`
    MaskedEqual,
}

/// A flag of `seccomp(2)`. Named in JSON as the OCI specification does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Flag {
    /// Put the filter on all threads.
    #[serde(rename = "SECCOMP_FILTER_FLAG_TSYNC")]
    Tsync,
    /// Log all but allowed calls.
    #[serde(rename = "SECCOMP_FILTER_FLAG_LOG")]
    Log,
    /// Do not mitigate speculative store bypass.
    #[serde(rename = "SECCOMP_FILTER_FLAG_SPEC_ALLOW")]
    SpecAllow,
    /// A caller waiting for the listener can only be killed.
    #[serde(rename = "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV")]
    WaitKillable,
}

impl Policy {
    /// Whether some action asks a listener, so that [`crate::install`] returns a descriptor.
    pub fn notifies(&self) -> bool {
        self.default_action == Action::Notify
            || self.rules.iter().any(|r| r.action == Action::Notify)
    }
}
