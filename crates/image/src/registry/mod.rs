//! Registries: where they are, how to reach them, and who we are to them.
//!
//! Owns the configuration, the shared HTTP client and the tokens. Requests follow the OCI distribution
//! specification 1.1. `client` sends (authentication, retries, limits), `fetch` reads manifests and
//! streams blobs with resumption, `upload` writes, `login` tries credentials. Everything a registry says is bounded and untrusted.
//! Knows nothing of the store.

mod challenge;
mod client;
mod credentials;
mod endpoint;
mod fetch;
mod login;
mod upload;

use std::{path::PathBuf, sync::Arc};

pub(crate) use challenge::parse as parse_challenge;
pub(crate) use client::Target;
pub use credentials::{Credential, Credentials};
pub(crate) use upload::Sent;

use crate::{digest::Digest, job::Cancelled, reference::ReferenceError};

/// A replacement for a registry, tried before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mirror {
    /// The registry it stands for, e.g. `docker.io`.
    pub registry: String,
    /// Where it is: `host[:port]`, optionally followed by `/path` that prefixes its repositories.
    pub location: String,
}

/// Configuration of [`Registries`].
#[derive(Clone, Debug, Default)]
pub struct RegistryConfig {
    /// Mirrors in the order to try. They serve pulls only.
    pub mirrors: Vec<Mirror>,
    /// Registries (`host[:port]`) that may be spoken to without TLS. Loopback always may. TLS is tried
    /// first all the same.
    pub insecure: Vec<String>,
    /// PEM files with additional certificate authorities.
    pub ca_files: Vec<PathBuf>,
    /// Who we are.
    pub credentials: Credentials,
}

/// A client for all registries, with its connections and tokens. Cheap to clone; make one per daemon.
#[derive(Clone)]
pub struct Registries {
    inner: Arc<client::Client>,
}

/// Talking to a registry failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegistryError {
    /// The client could not be set up.
    #[error("cannot set up the registry client: {reason}")]
    Setup {
        /// Why.
        reason: String,
    },
    /// A certificate file cannot be used.
    #[error("cannot use the certificates in {}: {reason}", path.display())]
    Certificates {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A credentials file cannot be used.
    #[error("cannot use the credentials in {}: {reason}", path.display())]
    Credentials {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// No answer after several tries.
    #[error(
        "cannot reach the registry {registry}; check the name and the network, or configure a mirror"
    )]
    Unreachable {
        /// The registry.
        registry: String,
        /// The last failure.
        #[source]
        source: reqwest::Error,
    },
    /// That is no registry's name.
    #[error(transparent)]
    Name(#[from] ReferenceError),
    /// The registry does not take a credential.
    #[error(
        "the registry {registry} does not take this user name and password{}",
        said(message)
    )]
    Login {
        /// The registry.
        registry: String,
        /// What it said.
        message: String,
    },
    /// The registry wants (other) credentials.
    #[error(
        "the registry {registry} refuses access to {repository}{}; log in with `berth login {registry}`, or check the name",
        said(message)
    )]
    Denied {
        /// The registry.
        registry: String,
        /// The repository.
        repository: String,
        /// What it said.
        message: String,
    },
    /// No such image.
    #[error("the registry {registry} has no {what}; check the name and tag")]
    NotFound {
        /// The registry.
        registry: String,
        /// What was asked for.
        what: String,
    },
    /// Another refusal.
    #[error("the registry {registry} answered {status} to {what}{}", said(message))]
    Status {
        /// The registry.
        registry: String,
        /// HTTP status.
        status: u16,
        /// What was asked for.
        what: String,
        /// What it said.
        message: String,
    },
    /// The answer breaks the protocol.
    #[error("the registry {registry} answered {what} with nonsense: {reason}")]
    Protocol {
        /// The registry.
        registry: String,
        /// What was asked for.
        what: String,
        /// What is wrong.
        reason: String,
    },
    /// The content does not have the digest it was asked for by.
    #[error(
        "the registry {registry} sent {what} with the digest {found} instead of {expected}: it was damaged or altered on its way"
    )]
    Digest {
        /// The registry.
        registry: String,
        /// What was asked for.
        what: String,
        /// What was asked for.
        expected: Digest,
        /// What came.
        found: Digest,
    },
    /// A blob's transfer broke off too often.
    #[error(
        "the transfer of {what} from or to {registry} broke off at byte {offset} of {size} and could not be resumed: {reason}"
    )]
    Transfer {
        /// The registry.
        registry: String,
        /// Which blob.
        what: Digest,
        /// Where it broke off.
        offset: u64,
        /// Its length.
        size: u64,
        /// The last failure.
        reason: String,
    },
    /// A file of the store could not be read for sending.
    #[error("cannot read {what} for sending")]
    Read {
        /// Which blob.
        what: Digest,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Cancelled by the caller.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

fn said(message: &str) -> String {
    if message.is_empty() {
        String::new()
    } else {
        format!(" ({message})")
    }
}

impl Registries {
    /// Prepares the client. No connection is made yet.
    ///
    /// # Errors
    /// When a certificate file cannot be used.
    pub fn new(config: RegistryConfig) -> Result<Self, RegistryError> {
        Ok(Self {
            inner: Arc::new(client::Client::new(config)?),
        })
    }
}

impl std::fmt::Debug for Registries {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registries").finish_non_exhaustive()
    }
}
