//! One failed step: what was being done, and what the kernel said.
//!
//! Steps are described where they happen, in words a user can act on; the operations' own error enums
//! ([`crate::CreateError`] and its siblings) carry a [`Failure`] as their source.

use std::borrow::Cow;
use std::io;

/// A step that failed. Displays what was tried; the source says why.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub struct Failure {
    /// What was tried, such as `cannot mount proc at /proc`.
    pub what: Cow<'static, str>,
    /// What the kernel said.
    #[source]
    pub source: io::Error,
    /// Whether it was the user's program that could not be executed.
    pub program: bool,
}

/// The status that a shell gives for a program that does not exist.
pub const PROGRAM_NOT_FOUND: u8 = 127;
/// The status that a shell gives for a program that exists and cannot be executed.
pub const PROGRAM_NOT_EXECUTABLE: u8 = 126;

impl Failure {
    /// A step that failed for a reason of our own.
    pub fn new(what: impl Into<Cow<'static, str>>, why: impl Into<String>) -> Failure {
        Failure {
            what: what.into(),
            source: io::Error::other(why.into()),
            program: false,
        }
    }

    /// The same, of the user's program.
    pub(crate) fn of_program(self) -> Failure {
        Failure {
            program: true,
            ..self
        }
    }

    /// The status that a shell would give, if it is the program that could not be executed.
    pub fn program_status(&self) -> Option<u8> {
        use rustix::io::Errno;
        self.program.then(|| match self.errno() {
            Some(Errno::NOENT | Errno::NOTDIR) => PROGRAM_NOT_FOUND,
            _ => PROGRAM_NOT_EXECUTABLE,
        })
    }

    /// The errno behind it, if the kernel gave one.
    pub fn errno(&self) -> Option<rustix::io::Errno> {
        rustix::io::Errno::from_io_error(&self.source)
    }
}

/// Result of a step.
pub(crate) type Step<T> = Result<T, Failure>;

/// Says what was being done when a system call failed.
pub(crate) trait Context<T> {
    /// With a fixed description.
    fn ctx(self, what: &'static str) -> Step<T>;
    /// With a description made only on failure.
    fn with(self, what: impl FnOnce() -> String) -> Step<T>;
}

impl<T, E: Into<io::Error>> Context<T> for Result<T, E> {
    fn ctx(self, what: &'static str) -> Step<T> {
        self.map_err(|error| Failure {
            what: Cow::Borrowed(what),
            source: error.into(),
            program: false,
        })
    }

    fn with(self, what: impl FnOnce() -> String) -> Step<T> {
        self.map_err(|error| Failure {
            what: Cow::Owned(what()),
            source: error.into(),
            program: false,
        })
    }
}

/// An error and its causes on one line, joined by `: `, nothing said twice.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let line = cause.to_string();
        if !text.ends_with(&line) {
            text.push_str(": ");
            text.push_str(&line);
        }
        next = cause.source();
    }
    text
}

/// [`Failure::program_status`] of an error that has a failed step among its causes.
pub fn program_status(error: &(dyn std::error::Error + 'static)) -> Option<u8> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(failure) = error.downcast_ref::<Failure>() {
            return failure.program_status();
        }
        next = error.source();
    }
    None
}
