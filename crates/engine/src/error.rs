//! Why an engine could not do as asked.

use model::InstanceId;

/// Why an engine could not do as asked.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// A newer generation of the guest was ensured before.
    #[error("instance {id}: generation {given} is older than {current}, which is in force")]
    Stale {
        /// The guest.
        id: InstanceId,
        /// The generation given.
        given: u64,
        /// The generation in force.
        current: u64,
    },
    /// The guest does not run.
    #[error("instance {id} is not running")]
    NotRunning {
        /// The guest.
        id: InstanceId,
    },
    /// Something inside the guest that was named is not there. The message is for the user.
    #[error("{message}")]
    NotFound {
        /// What is missing, and where.
        message: String,
    },
    /// What was asked for cannot be: a program that is not there, a limit the host lacks. The
    /// message is for the user.
    #[error("{message}")]
    Refused {
        /// What happened, why, what to do.
        message: String,
    },
    /// The program cannot be executed. The message is for the user.
    #[error("{message}")]
    Program {
        /// What happened, and why.
        message: String,
        /// The exit code that shells give: 127 if it does not exist, 126 if it is not executable.
        code: u8,
    },
    /// The host failed.
    #[error("instance {id}: {action}")]
    Failed {
        /// The guest.
        id: InstanceId,
        /// What was being done.
        action: String,
        /// Why it failed.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl EngineError {
    /// The error and its causes on one line.
    #[must_use]
    pub fn chain(&self) -> String {
        model::chain(self)
    }
}
