//! Access tokens: what a remote caller may do.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What a token allows; each scope includes those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Look at everything but secrets.
    Read,
    /// Create, change, use and delete instances, images, networks and volumes.
    Operate,
    /// All of it, tokens included.
    Admin,
}

/// Text that is not a scope.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a scope: use read, operate or admin")]
pub struct ParseScopeError {
    /// What was given.
    pub text: String,
}

impl Scope {
    /// The word shown to people and written on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Operate => "operate",
            Self::Admin => "admin",
        }
    }
}

impl FromStr for Scope {
    type Err = ParseScopeError;

    fn from_str(text: &str) -> Result<Self, ParseScopeError> {
        [Self::Read, Self::Operate, Self::Admin]
            .into_iter()
            .find(|scope| scope.as_str() == text)
            .ok_or_else(|| ParseScopeError {
                text: text.to_owned(),
            })
    }
}
