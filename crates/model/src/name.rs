//! Names people give to things.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// A name: one DNS label (RFC 1123 §2.1, RFC 1035 §2.3.4) in lower case, so that it works
/// unchanged as a host name inside the network: 1 to 63 characters of `a-z`, `0-9` and `-`,
/// starting with a letter or digit and not ending in `-`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

/// Text that cannot be a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} cannot be a name: use 1 to 63 lower-case letters, digits and '-', \
     starting with a letter or digit and not ending in '-'"
)]
pub struct InvalidName {
    /// What was given, cut at 100 characters.
    pub text: String,
}

impl Name {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let bytes = text.as_bytes();
        let plain = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let valid = (1..=63).contains(&bytes.len())
            && bytes.iter().all(|b| plain(b) || *b == b'-')
            && bytes.first().is_some_and(plain)
            && bytes.last().is_some_and(plain);
        if valid {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidName {
                text: text.chars().take(100).collect(),
            })
        }
    }
}

impl TryFrom<String> for Name {
    type Error = InvalidName;

    fn try_from(text: String) -> Result<Self, InvalidName> {
        text.parse()
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// Words for names nobody chose: `ADJECTIVES[i]-NOUNS[j]`, such as `bold-heron`.
pub const ADJECTIVES: [&str; 32] = [
    "able", "amber", "bold", "brave", "brisk", "bright", "calm", "clear", "crisp", "deft", "eager",
    "fair", "fleet", "fond", "fresh", "gentle", "glad", "golden", "grand", "hardy", "keen", "kind",
    "lively", "lucid", "mellow", "merry", "nimble", "noble", "quick", "quiet", "steady", "swift",
];

/// See [`ADJECTIVES`].
pub const NOUNS: [&str; 32] = [
    "auk", "barque", "brig", "cod", "coot", "crane", "curlew", "cutter", "dinghy", "dory", "eider",
    "ferry", "gannet", "grebe", "gull", "heron", "ketch", "knot", "loon", "lugger", "osprey",
    "otter", "petrel", "plover", "puffin", "schooner", "seal", "skiff", "sloop", "tern", "wherry",
    "yawl",
];

/// A name from 64 random bits. `attempt` 0 gives two words; later attempts, made because the name
/// was taken, append four hexadecimal digits.
#[must_use]
pub fn from_random(bits: u64, attempt: u32) -> Name {
    let adjective = ADJECTIVES[(bits & 31) as usize];
    let noun = NOUNS[((bits >> 5) & 31) as usize];
    Name(match attempt {
        0 => format!("{adjective}-{noun}"),
        _ => format!("{adjective}-{noun}-{:04x}", (bits >> 10) & 0xffff),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_dns_labels() {
        let longest = "a".repeat(63);
        for good in ["a", "web-1", "0day", longest.as_str()] {
            assert!(good.parse::<Name>().is_ok(), "{good}");
        }
        let too_long = "a".repeat(64);
        for bad in [
            "",
            "-a",
            "a-",
            "Web",
            "a.b",
            "a/b",
            "..",
            "a b",
            "ä",
            too_long.as_str(),
        ] {
            assert!(bad.parse::<Name>().is_err(), "{bad}");
        }
    }

    #[test]
    fn every_generated_name_is_valid() {
        for bits in 0..1024 {
            for attempt in 0..2 {
                let name = from_random(bits | 0xabcd_0000, attempt);
                assert_eq!(name.as_str().parse::<Name>().unwrap(), name);
            }
        }
    }
}
