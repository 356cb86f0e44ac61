//! Typed ids. An id never changes and is never used again; names are for people.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Identity of an instance: a UUIDv7 (RFC 9562), so ids sort by the time they were made.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct InstanceId(Uuid);

/// Text that is not an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not an instance id (a UUID such as 0192f0c1-7d3e-7aa2-9c41-5b6f2a10c3d4)")]
pub struct ParseIdError {
    /// What was given.
    pub text: String,
}

impl InstanceId {
    /// Wraps a UUID. The caller makes it, because making one reads the clock.
    #[must_use]
    pub const fn from_uuid(uuid: Uuid) -> Self {
        Self(uuid)
    }

    /// The last twelve hexadecimal digits: the random part, short enough for interface names and
    /// unique enough on one host.
    #[must_use]
    pub fn short(self) -> String {
        let text = self.0.simple().to_string();
        text[20..].to_owned()
    }
}

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

impl fmt::Debug for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "InstanceId({self})")
    }
}

impl FromStr for InstanceId {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        Uuid::try_parse(text).map(Self).map_err(|_| ParseIdError {
            text: text.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_survives_text_and_json() {
        let id: InstanceId = "0192f0c1-7d3e-7aa2-9c41-5b6f2a10c3d4".parse().unwrap();
        assert_eq!(id.to_string().parse::<InstanceId>().unwrap(), id);
        assert_eq!(serde_json::to_string(&id).unwrap(), format!("\"{id}\""));
        assert_eq!(id.short(), "5b6f2a10c3d4");
        assert!("web".parse::<InstanceId>().is_err());
    }
}
