//! Names a daemon gives to what it creates: interfaces and nftables tables.
//!
//! Owns the rule that everything carries the daemon's prefix, so that several daemons share a
//! machine and each can sweep what it left behind and nothing else. Used by [`crate::Driver`] and
//! [`crate::Firewall`]. It must never depend on the world: the same input gives the same name
//! after a restart.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Longest interface name the kernel takes (IFNAMSIZ minus the terminating zero).
pub const IFNAME_MAX: usize = 15;

/// Longest prefix: leaves ten characters (50 bits) of hash in a link's name.
const PREFIX_MAX: usize = 5;

/// Why a name was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Not usable as an interface name.
    #[error(
        "interface name {0:?} is not usable: take 1 to 15 letters, digits, '.', '_' or '-', \
         starting with a letter"
    )]
    IfName(String),
    /// Not usable as a prefix.
    #[error(
        "network prefix {0:?} is not usable: take 1 to 5 lower-case letters or digits, \
         starting with a letter"
    )]
    Prefix(String),
}

/// A checked interface name. Its alphabet is narrower than the kernel's, so that a name is safe in
/// nftables text, in `/proc/sys` paths and in logs.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct IfName(String);

impl IfName {
    /// Checks `name`.
    ///
    /// # Errors
    /// [`NameError::IfName`] if it is empty, longer than 15 bytes, or has an unusual character.
    pub fn parse(name: &str) -> Result<Self, NameError> {
        let mut bytes = name.bytes();
        let head = bytes.next().is_some_and(|b| b.is_ascii_alphabetic());
        let tail = bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
        if head && tail && name.len() <= IFNAME_MAX {
            Ok(Self(name.to_owned()))
        } else {
            Err(NameError::IfName(name.to_owned()))
        }
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for IfName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for IfName {
    type Error = NameError;
    fn try_from(name: String) -> Result<Self, NameError> {
        Self::parse(&name)
    }
}

impl From<IfName> for String {
    fn from(name: IfName) -> Self {
        name.0
    }
}

/// The mark a daemon puts on all it creates. No two daemons in one network namespace may share it.
///
/// Bridges are `PREFIX-NAME` (or `PREFIX_HASH` when the name does not fit), host ends of
/// attachments `PREFIX.HASH`, tables `PREFIX`. The separators are outside the prefix's alphabet, so
/// no prefix's names are mistaken for another's.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Prefix(String);

impl Prefix {
    /// Checks `prefix`.
    ///
    /// # Errors
    /// [`NameError::Prefix`] if it is not 1 to 5 lower-case letters or digits led by a letter.
    pub fn parse(prefix: &str) -> Result<Self, NameError> {
        let mut bytes = prefix.bytes();
        let head = bytes.next().is_some_and(|b| b.is_ascii_lowercase());
        let tail = bytes.all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        if head && tail && prefix.len() <= PREFIX_MAX {
            Ok(Self(prefix.to_owned()))
        } else {
            Err(NameError::Prefix(prefix.to_owned()))
        }
    }

    /// The prefix as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The bridge of network `network`: readable when it fits, hashed otherwise.
    #[must_use]
    pub fn bridge(&self, network: &str) -> IfName {
        let plain = !network.is_empty()
            && network
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && self.0.len() + 1 + network.len() <= IFNAME_MAX;
        if plain {
            IfName(format!("{}-{network}", self.0))
        } else {
            self.hashed('_', network)
        }
    }

    /// The host end of the attachment known by `key`.
    #[must_use]
    pub fn link(&self, key: &str) -> IfName {
        self.hashed('.', key)
    }

    /// What every attachment's host end begins with, as nftables matches it.
    #[must_use]
    pub(crate) fn link_pattern(&self) -> String {
        format!("{}.*", self.0)
    }

    /// Whether `name` is a bridge this prefix made.
    #[must_use]
    pub fn owns_bridge(&self, name: &str) -> bool {
        name.strip_prefix(&self.0)
            .is_some_and(|rest| rest.starts_with(['-', '_']))
    }

    /// Whether `name` is the host end of an attachment this prefix made.
    #[must_use]
    pub fn owns_link(&self, name: &str) -> bool {
        name.strip_prefix(&self.0)
            .is_some_and(|rest| rest.starts_with('.'))
    }

    fn hashed(&self, separator: char, key: &str) -> IfName {
        const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
        let mut hash = stable_hash(key.as_bytes());
        let mut name = format!("{}{separator}", self.0);
        while name.len() < IFNAME_MAX.min(self.0.len() + 11) {
            name.push(char::from(ALPHABET[(hash & 31) as usize]));
            hash >>= 5;
        }
        IfName(name)
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for Prefix {
    type Error = NameError;
    fn try_from(prefix: String) -> Result<Self, NameError> {
        Self::parse(&prefix)
    }
}

impl From<Prefix> for String {
    fn from(prefix: Prefix) -> Self {
        prefix.0
    }
}

/// FNV-1a with a finishing mix. Names made with it live in the kernel across upgrades of the
/// daemon, so it may never change; it is no defence against chosen keys, and collisions are
/// caught by the alias each link carries.
pub(crate) fn stable_hash(bytes: &[u8]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in bytes {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^ (hash >> 33)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_carry_the_prefix_and_never_change() {
        let prefix = Prefix::parse("berth").unwrap();
        assert_eq!(prefix.bridge("default").as_str(), "berth-default");
        assert_eq!(
            prefix.bridge("a-much-too-long-name").as_str().len(),
            IFNAME_MAX
        );
        // Pinned: links made by an older daemon must be found by a newer one.
        assert_eq!(prefix.link("0190-web/0").as_str(), "berth.n7exwt7pm");
        for key in ["", "x", "0190f0a0-1111-7000-8000-000000000000/0"] {
            let link = prefix.link(key);
            assert!(IfName::parse(link.as_str()).is_ok(), "{link}");
            assert!(prefix.owns_link(link.as_str()) && !prefix.owns_bridge(link.as_str()));
        }
        let other = Prefix::parse("bert").unwrap();
        assert!(!other.owns_bridge("berth-default") && !other.owns_link("berth.abc"));
        assert!(Prefix::parse("toolong").is_err() && Prefix::parse("1a").is_err());
        assert!(IfName::parse("a/b").is_err() && IfName::parse("sixteen-bytes-xx").is_err());
    }
}
