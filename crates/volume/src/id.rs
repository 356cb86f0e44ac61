//! Names of volumes, checked once so that they are safe as file names everywhere else.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Longest name: leaves room for suffixes within the 255 bytes file systems take.
const NAME_MAX: usize = 128;

/// What a volume is for; each kind has its own space of names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Made and named by a user; outlives instances.
    Named,
    /// The writable part of an instance's root; named after the instance's id. The instance's own
    /// record is what must survive a power loss: after one, a root made or removed in the last
    /// seconds may be missing, unlimited or back, and [`crate::Pool::ensure`] or
    /// [`crate::Pool::remove`] puts that right. In exchange, nothing on the start path of an
    /// instance waits for the disk. A crash of the daemon alone loses nothing.
    Root,
}

impl Kind {
    /// Both kinds.
    pub const ALL: [Self; 2] = [Self::Named, Self::Root];

    /// The kind as one word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Named => "named",
            Self::Root => "root",
        }
    }
}

/// The name cannot be used for a volume.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "volume name {0:?} is not usable: take 1 to 128 letters, digits, '.', '_' or '-', \
     starting with a letter or digit"
)]
pub struct IdError(String);

/// A volume of a pool.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VolumeId {
    kind: Kind,
    name: String,
}

impl VolumeId {
    /// Checks `name`.
    ///
    /// # Errors
    /// [`IdError`] if it is empty, too long, or could mean something as a path.
    pub fn new(kind: Kind, name: &str) -> Result<Self, IdError> {
        let mut bytes = name.bytes();
        let head = bytes.next().is_some_and(|b| b.is_ascii_alphanumeric());
        let tail = bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
        if head && tail && name.len() <= NAME_MAX {
            Ok(Self {
                kind,
                name: name.to_owned(),
            })
        } else {
            Err(IdError(name.chars().take(NAME_MAX).collect()))
        }
    }

    /// What the volume is for.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The name within its kind: one path component, never `.` or `..`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl fmt::Display for VolumeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.kind.as_str(), self.name)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn an_accepted_name_is_one_harmless_path_component(name in "\\PC{0,12}|[./a-z_-]{0,140}") {
            if VolumeId::new(Kind::Named, &name).is_ok() {
                let path = std::path::Path::new(&name);
                let parts: Vec<_> = path.components().collect();
                prop_assert!(matches!(parts[..], [std::path::Component::Normal(_)]));
                prop_assert!(!name.starts_with(['.', '-']) && name.len() <= NAME_MAX);
            }
        }
    }

    #[test]
    fn path_tricks_are_refused() {
        for bad in ["", ".", "..", "a/b", "../a", ".hidden", "a\0", "-rf", "a b"] {
            assert!(VolumeId::new(Kind::Named, bad).is_err(), "{bad:?}");
        }
        assert_eq!(
            VolumeId::new(Kind::Root, "web.1").unwrap().to_string(),
            "root/web.1"
        );
    }
}
