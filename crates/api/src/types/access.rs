//! Tokens for callers from other machines, and logins of the daemon at registries.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Body of a create request.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TokenCreate {
    /// Name for people.
    pub name: String,
    /// `read`, `operate` or `admin`.
    pub scope: String,
    /// Seconds until it stops working; never when absent.
    pub ttl_s: Option<u64>,
}

/// A token, without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Token {
    /// Name for people.
    pub name: String,
    /// What it allows.
    pub scope: String,
    /// When it was made (RFC 3339).
    pub created_at: String,
    /// When it stops working (RFC 3339).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<String>,
}

/// A new token, with its secret: shown once, stored nowhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TokenCreated {
    /// The token.
    #[serde(flatten)]
    pub token: Token,
    /// The secret: `Authorization: Bearer <secret>`.
    pub secret: String,
}

/// Body of a login at a registry.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct LoginCreate {
    /// `host` or `host:port`; `docker.io` for Docker Hub.
    pub registry: String,
    /// User name.
    pub username: String,
    /// Password or access token. The daemon keeps it in a file only root can read.
    pub password: String,
}

impl std::fmt::Debug for LoginCreate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LoginCreate")
            .field("registry", &self.registry)
            .field("username", &self.username)
            .finish_non_exhaustive()
    }
}

/// A registry the daemon is logged in at, without the password.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Login {
    /// `host` or `host:port`.
    pub registry: String,
    /// User name; absent where only a token is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub username: Option<String>,
}
