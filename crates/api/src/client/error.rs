//! What can go wrong between a caller and a daemon.

use crate::{ErrorCode, Problem};

/// The result of every call.
pub type Result<T, E = ClientError> = std::result::Result<T, E>;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The daemon answered with an error.
    #[error("{0}")]
    Problem(Box<Problem>),
    /// No daemon answers there, or the connection broke.
    #[error("cannot reach the Berth daemon at {address}: {why}")]
    Unreachable {
        /// Where it was looked for.
        address: String,
        /// Why it failed.
        why: String,
        /// What to do.
        hint: String,
    },
    /// The daemon's certificate is not trusted.
    #[error("the certificate of {address} is not trusted: {why}")]
    Certificate {
        /// Where the daemon is.
        address: String,
        /// SHA-256 of the certificate presented, as `sha256:<hex>`.
        fingerprint: String,
        /// Why it is refused.
        why: String,
    },
    /// The daemon did not answer in time. What was asked may still happen.
    #[error("the daemon at {address} did not answer within {seconds} s")]
    Timeout {
        /// Where the daemon is.
        address: String,
        /// How long was waited.
        seconds: u64,
    },
    /// The answer is not one a Berth daemon gives, or larger than accepted.
    #[error("the answer from {address} makes no sense: {what}")]
    Protocol {
        /// Where it came from.
        address: String,
        /// What is wrong with it.
        what: String,
    },
    /// The address, token or credentials file cannot be used.
    #[error("{message}")]
    Config {
        /// What is wrong.
        message: String,
        /// What to do.
        hint: String,
    },
    /// Local input or output failed while a body was streamed.
    #[error("{what} failed: {source}")]
    Local {
        /// What was done.
        what: &'static str,
        /// The cause; part of the message.
        #[source]
        source: std::io::Error,
    },
}

impl ClientError {
    /// What kind of failure it was, when the daemon said so.
    #[must_use]
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::Problem(problem) => Some(problem.code),
            _ => None,
        }
    }

    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Problem(problem) => problem.hint.clone(),
            Self::Unreachable { hint, .. } | Self::Config { hint, .. } => Some(hint.clone()),
            Self::Certificate { fingerprint, .. } => Some(format!(
                "compare this fingerprint with the one the daemon printed at its start:\n    \
                 {fingerprint}\n  \
                 if they are equal, set BERTH_FINGERPRINT to it; otherwise someone else answers there"
            )),
            Self::Timeout { .. } => {
                Some("see what it is busy with: `berth op list`, or the daemon's log".into())
            }
            Self::Protocol { .. } => Some(
                "check that the address is that of a Berth daemon, and that `berth version` shows \
                 the same version for both"
                    .into(),
            ),
            Self::Local { .. } => None,
        }
    }
}
