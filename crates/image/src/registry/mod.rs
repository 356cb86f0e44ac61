//! Registries: where they are, how to reach them, and who we are to them.
//!
//! Owns the configuration and the shared HTTP client. Requests follow the OCI distribution
//! specification 1.1. Knows nothing of the store.

use std::path::PathBuf;

/// Credentials for registries.
#[derive(Clone, Debug, Default)]
pub struct Credentials {
    placeholder: (),
}

/// One way of proving who we are.
#[derive(Clone, PartialEq, Eq)]
pub enum Credential {
    /// User name and password.
    Basic {
        /// User name.
        username: String,
        /// Password or access token.
        password: String,
    },
    /// An OAuth 2 refresh token (`identitytoken` of Docker's configuration).
    RefreshToken(String),
}

/// A replacement for a registry, tried before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mirror {
    /// The registry it stands for, e.g. `docker.io`.
    pub registry: String,
    /// Where it is, `host[:port]`, optionally with a path prefix for repositories.
    pub location: String,
}

/// Configuration of [`Registries`].
#[derive(Clone, Debug, Default)]
pub struct RegistryConfig {
    /// Mirrors in the order to try.
    pub mirrors: Vec<Mirror>,
    /// Registries (`host[:port]`) that may be spoken to without TLS. Loopback always may.
    pub insecure: Vec<String>,
    /// PEM files with additional certificate authorities.
    pub ca_files: Vec<PathBuf>,
    /// Who we are.
    pub credentials: Credentials,
}

/// A client for all registries, with its connections and tokens. Cheap to clone; make one per daemon.
#[derive(Clone)]
pub struct Registries {
    placeholder: (),
}

/// Talking to a registry failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegistryError {}

impl Registries {
    /// Prepares the client.
    ///
    /// # Errors
    /// When a certificate file cannot be used.
    pub fn new(_config: RegistryConfig) -> Result<Self, RegistryError> {
        todo!()
    }
}
