//! Device access rules, reduced to what has to be enforced.
//!
//! Rules are an ordered list as in the OCI specification; [`Reduced`] follows what the kernel's v1
//! controller would make of them (security/device_cgroup.c): a default, and exceptions to it. Both
//! enforcers are fed from that, so v1 and v2 decide alike. A rule that takes back a part of a
//! wider one (allow `c *:* r`, then deny `c 1:3 r`) has no effect in v1, and so has none here.

mod bpf;

use std::fmt;

use serde::{Deserialize, Serialize};

pub(crate) use bpf::{attach, program};

/// The kind of device a rule is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeviceKind {
    /// Both.
    All,
    /// Block devices.
    Block,
    /// Character devices.
    Char,
}

/// What may be done with a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Access {
    /// Open for reading.
    pub read: bool,
    /// Open for writing.
    pub write: bool,
    /// Make a node of it.
    pub mknod: bool,
}

impl Access {
    /// Everything.
    pub const ALL: Access = Access {
        read: true,
        write: true,
        mknod: true,
    };

    /// Parses a combination of the letters `r`, `w`, `m`; `None` for anything else.
    pub fn parse(text: &str) -> Option<Access> {
        let mut access = Access::default();
        for letter in text.chars() {
            match letter {
                'r' => access.read = true,
                'w' => access.write = true,
                'm' => access.mknod = true,
                _ => return None,
            }
        }
        Some(access)
    }

    /// The kernel's bits: 1 mknod, 2 read, 4 write (`BPF_DEVCG_ACC_*`).
    pub(crate) fn bits(self) -> u8 {
        u8::from(self.mknod) | u8::from(self.read) << 1 | u8::from(self.write) << 2
    }

    fn from_bits(bits: u8) -> Access {
        Access {
            mknod: bits & 1 != 0,
            read: bits & 2 != 0,
            write: bits & 4 != 0,
        }
    }
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (on, letter) in [(self.read, "r"), (self.write, "w"), (self.mknod, "m")] {
            f.write_str(if on { letter } else { "" })?;
        }
        Ok(())
    }
}

impl TryFrom<String> for Access {
    type Error = String;
    fn try_from(text: String) -> Result<Access, String> {
        Access::parse(&text)
            .ok_or_else(|| format!("device access {text:?} has other letters than r, w, m"))
    }
}

impl From<Access> for String {
    fn from(access: Access) -> String {
        access.to_string()
    }
}

/// One rule: allow or deny some access to some devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceRule {
    /// Allow, or deny.
    pub allow: bool,
    /// Block, character or both; both also means every number and access.
    pub kind: DeviceKind,
    /// Major number; `None` is every one.
    pub major: Option<u32>,
    /// Minor number; `None` is every one.
    pub minor: Option<u32>,
    /// What is allowed or denied.
    pub access: Access,
}

impl DeviceRule {
    /// The rule that denies everything, which comes first in a container's list.
    pub const DENY_ALL: DeviceRule = DeviceRule {
        allow: false,
        kind: DeviceKind::All,
        major: None,
        minor: None,
        access: Access::ALL,
    };
}

/// What a list of rules comes to: a default and its exceptions, no two about the same devices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reduced {
    pub(crate) allow_by_default: bool,
    /// Whether the list itself set the default (else it only adds to what the group had).
    pub(crate) default_was_set: bool,
    pub(crate) exceptions: Vec<DeviceRule>,
}

impl Reduced {
    pub(crate) fn new(rules: &[DeviceRule]) -> Reduced {
        let mut state = Reduced {
            allow_by_default: false,
            default_was_set: false,
            exceptions: Vec::new(),
        };
        for rule in rules {
            state.take(rule);
        }
        state.exceptions.retain(|rule| rule.access.bits() != 0);
        state
    }

    fn take(&mut self, rule: &DeviceRule) {
        if rule.kind == DeviceKind::All {
            self.allow_by_default = rule.allow;
            self.default_was_set = true;
            self.exceptions.clear();
            return;
        }
        let same =
            |e: &DeviceRule| (e.kind, e.major, e.minor) == (rule.kind, rule.major, rule.minor);
        let known = self.exceptions.iter_mut().find(|e| same(e));
        match (rule.allow == self.allow_by_default, known) {
            (true, Some(e)) => e.access = Access::from_bits(e.access.bits() & !rule.access.bits()),
            (true, None) => {}
            (false, Some(e)) => e.access = Access::from_bits(e.access.bits() | rule.access.bits()),
            (false, None) => self.exceptions.push(*rule),
        }
    }
}

/// A rule as `devices.allow` and `devices.deny` take it.
pub(crate) fn v1_text(rule: &DeviceRule) -> String {
    let number = |n: Option<u32>| n.map_or("*".to_owned(), |n| n.to_string());
    let kind = match rule.kind {
        DeviceKind::All => return "a".to_owned(),
        DeviceKind::Block => 'b',
        DeviceKind::Char => 'c',
    };
    format!(
        "{kind} {}:{} {}",
        number(rule.major),
        number(rule.minor),
        rule.access
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(
        allow: bool,
        kind: DeviceKind,
        major: u32,
        minor: Option<u32>,
        access: &str,
    ) -> DeviceRule {
        DeviceRule {
            allow,
            kind,
            major: Some(major),
            minor,
            access: Access::parse(access).unwrap(),
        }
    }

    #[test]
    fn rules_reduce_to_exceptions_as_the_kernel_does() {
        use DeviceKind::{Block, Char};
        let rules = [
            rule(true, Char, 9, None, "rwm"),
            DeviceRule::DENY_ALL,
            rule(true, Char, 1, Some(3), "r"),
            rule(true, Char, 1, Some(3), "w"),
            rule(true, Block, 8, None, "rwm"),
            rule(false, Block, 8, None, "wm"),
            rule(false, Char, 5, Some(0), "rwm"),
        ];
        let reduced = Reduced::new(&rules);
        assert!(!reduced.allow_by_default && reduced.default_was_set);
        let texts: Vec<_> = reduced.exceptions.iter().map(v1_text).collect();
        assert_eq!(texts, ["c 1:3 rw", "b 8:* r"]);
        assert_eq!(v1_text(&DeviceRule::DENY_ALL), "a");
        assert!(Access::parse("rx").is_none());
    }
}
