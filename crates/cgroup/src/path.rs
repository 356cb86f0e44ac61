//! The path of a group below the root of a hierarchy, validated.
//!
//! The text comes from bundles and API requests, so it is hostile until parsed here.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// The longest path accepted, in bytes.
const MAX_LEN: usize = 2048;
/// The deepest nesting accepted; the kernel's own default for `cgroup.max.depth` is unlimited.
const MAX_DEPTH: usize = 32;

/// A group's path relative to the root of each hierarchy, such as `berth/web-1`.
///
/// Never empty, never absolute in storage, no `.` or `..`, no NUL or newline. A leading `/` of the
/// input is dropped: the OCI runtime specification has `cgroupsPath` start at the mount point.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CgroupPath(String);

/// Why a text is not the path of a group.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PathError {
    /// Nothing but slashes.
    #[error("the cgroup path is empty; give one below the root such as \"/berth/web-1\"")]
    Empty,
    /// Longer than accepted.
    #[error("the cgroup path has {len} bytes, more than the {MAX_LEN} accepted")]
    TooLong {
        /// Bytes of the text.
        len: usize,
    },
    /// Deeper than accepted.
    #[error("the cgroup path is nested deeper than the {MAX_DEPTH} levels accepted")]
    TooDeep,
    /// A component that is unsafe or that the kernel would refuse.
    #[error(
        "the cgroup path {path:?} has the component {component:?}, which is not allowed; \
         use names without \"..\", NUL and newline, of at most 255 bytes"
    )]
    Component {
        /// The text.
        path: String,
        /// The offending part.
        component: String,
    },
}

impl CgroupPath {
    /// Validates `text` (see the type).
    ///
    /// # Errors
    /// [`PathError`] names what is wrong.
    pub fn parse(text: &str) -> Result<CgroupPath, PathError> {
        if text.len() > MAX_LEN {
            return Err(PathError::TooLong { len: text.len() });
        }
        let mut clean = String::with_capacity(text.len());
        let parts = text.split('/').filter(|p| !p.is_empty() && *p != ".");
        for (depth, part) in parts.enumerate() {
            if depth == MAX_DEPTH {
                return Err(PathError::TooDeep);
            }
            if part == ".." || part.len() > 255 || part.contains(['\0', '\n']) {
                return Err(PathError::Component {
                    path: text.to_owned(),
                    component: part.to_owned(),
                });
            }
            if depth > 0 {
                clean.push('/');
            }
            clean.push_str(part);
        }
        if clean.is_empty() {
            Err(PathError::Empty)
        } else {
            Ok(CgroupPath(clean))
        }
    }

    /// The path without a leading slash.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Where the group is when its hierarchy is mounted at `mount`.
    pub fn below(&self, mount: &Path) -> PathBuf {
        mount.join(&self.0)
    }

    /// This path with one more validated level.
    ///
    /// # Errors
    /// As [`CgroupPath::parse`].
    pub fn join(&self, child: &str) -> Result<CgroupPath, PathError> {
        CgroupPath::parse(&format!("{}/{child}", self.0))
    }
}

impl fmt::Display for CgroupPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}", self.0)
    }
}

impl TryFrom<String> for CgroupPath {
    type Error = PathError;
    fn try_from(text: String) -> Result<Self, PathError> {
        CgroupPath::parse(&text)
    }
}

impl From<CgroupPath> for String {
    fn from(path: CgroupPath) -> String {
        format!("/{}", path.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normalizes_and_refuses_escapes() {
        let ok = |t: &str| CgroupPath::parse(t).map(|p| p.0).ok();
        assert_eq!(ok("/a//b/./c/").as_deref(), Some("a/b/c"));
        assert_eq!(ok("a...b").as_deref(), Some("a...b"));
        for bad in [
            "",
            "/",
            "./.",
            "a/../b",
            "..",
            "a\0b",
            "a\nb",
            &"x/".repeat(33),
        ] {
            assert_eq!(ok(bad), None, "{bad:?}");
        }
        assert!(CgroupPath::parse(&"x".repeat(256)).is_err());
        assert!(CgroupPath::parse("a").and_then(|p| p.join("../b")).is_err());
    }
}
