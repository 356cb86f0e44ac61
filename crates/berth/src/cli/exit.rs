//! Exit codes, and the failures that lead to them.

use std::io;

use api::{ErrorCode, client::ClientError};

/// How a command ends. `run` and `exec` end with their program's code instead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// All done.
    Ok = 0,
    /// It failed.
    Error = 1,
    /// The command line or the request is malformed.
    Usage = 2,
    /// There is no such thing.
    NotFound = 3,
    /// It contradicts what is.
    Conflict = 4,
    /// The caller may not do this.
    Denied = 5,
    /// No daemon answers.
    Unreachable = 6,
    /// It did not happen in time.
    Timeout = 7,
    /// The program exists in the instance and cannot be executed.
    ProgramNotExecutable = 126,
    /// The program does not exist in the instance.
    ProgramNotFound = 127,
}

/// The table that `berth help exit-codes` and docs/cli.md show.
pub const TABLE: [(Exit, &str); 10] = [
    (Exit::Ok, "all done"),
    (Exit::Error, "it failed; the message says why"),
    (Exit::Usage, "the command line or a value in it is wrong"),
    (
        Exit::NotFound,
        "there is no such instance, image, network, volume or operation",
    ),
    (
        Exit::Conflict,
        "it contradicts what is: a name taken, a thing in use, a change in between",
    ),
    (
        Exit::Denied,
        "the caller may not do this, or is unknown to the daemon",
    ),
    (Exit::Unreachable, "no daemon answers"),
    (
        Exit::Timeout,
        "it did not happen in time; it may still happen",
    ),
    (
        Exit::ProgramNotExecutable,
        "run, exec and shell: the program is there and cannot be executed",
    ),
    (
        Exit::ProgramNotFound,
        "run, exec and shell: there is no such program in the instance",
    ),
];

/// Why a command did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// A call to the daemon failed.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// Said by this command itself.
    #[error("{what}")]
    Said {
        /// How to end.
        exit: Exit,
        /// What happened, and why.
        what: String,
        /// What to do.
        hint: Option<String>,
    },
    /// Each part that failed has been reported already; the command ends as the first did.
    #[error("some of it failed")]
    Reported(Exit),
    /// The user interrupted it.
    #[error("interrupted")]
    Interrupted,
    /// Writing the output failed.
    #[error("the output cannot be written: {0}")]
    Output(#[from] io::Error),
}

impl Failure {
    /// A failure that ends with 1.
    pub fn error(what: impl Into<String>) -> Self {
        Self::said(Exit::Error, what)
    }

    /// A failure that ends with 2.
    pub fn usage(what: impl Into<String>) -> Self {
        Self::said(Exit::Usage, what)
    }

    /// A failure that ends with a code.
    pub fn said(exit: Exit, what: impl Into<String>) -> Self {
        Self::Said {
            exit,
            what: what.into(),
            hint: None,
        }
    }

    /// Says what to do about it.
    #[must_use]
    pub fn advise(self, advice: impl Into<String>) -> Self {
        match self {
            Self::Said { exit, what, .. } => Self::Said {
                exit,
                what,
                hint: Some(advice.into()),
            },
            Self::Client(ClientError::Problem(mut problem)) => {
                problem.hint = Some(advice.into());
                Self::Client(ClientError::Problem(problem))
            }
            other => other,
        }
    }

    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Client(error) => error.hint(),
            Self::Said { hint, .. } => hint.clone(),
            _ => None,
        }
    }

    /// Whether the daemon knows no such thing.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Client(error) if error.code() == Some(ErrorCode::NotFound))
    }

    /// Whether it is a matter of patience.
    pub fn is_timeout(&self) -> bool {
        self.exit() == Exit::Timeout as u8
    }

    /// The exit code.
    pub fn exit(&self) -> u8 {
        match self {
            Self::Client(error) => match error {
                ClientError::Problem(problem) => of(problem.code) as u8,
                ClientError::Unreachable { .. } | ClientError::Certificate { .. } => {
                    Exit::Unreachable as u8
                }
                ClientError::Timeout { .. } => Exit::Timeout as u8,
                ClientError::Config { .. } => Exit::Usage as u8,
                ClientError::Protocol { .. } | ClientError::Local { .. } => Exit::Error as u8,
            },
            Self::Said { exit, .. } | Self::Reported(exit) => *exit as u8,
            Self::Interrupted => 130,
            Self::Output(_) => Exit::Error as u8,
        }
    }
}

/// How a command ends whose request was answered with an error.
pub const fn of(code: ErrorCode) -> Exit {
    match code {
        ErrorCode::Invalid => Exit::Usage,
        ErrorCode::Unauthenticated | ErrorCode::Denied | ErrorCode::RateLimited => Exit::Denied,
        ErrorCode::NotFound => Exit::NotFound,
        ErrorCode::Conflict => Exit::Conflict,
        ErrorCode::Timeout => Exit::Timeout,
        ErrorCode::ProgramNotFound => Exit::ProgramNotFound,
        ErrorCode::ProgramNotExecutable => Exit::ProgramNotExecutable,
        ErrorCode::Cancelled
        | ErrorCode::TooLarge
        | ErrorCode::Unsupported
        | ErrorCode::Failed
        | ErrorCode::Internal => Exit::Error,
    }
}

impl From<u8> for Exit {
    fn from(code: u8) -> Self {
        TABLE
            .iter()
            .map(|(exit, _)| *exit)
            .find(|exit| *exit as u8 == code)
            .unwrap_or(Self::Error)
    }
}

/// The result of a command.
pub type Outcome<T = ()> = Result<T, Failure>;
