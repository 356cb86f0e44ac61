//! Why files could not be copied.

use rustix::io::Errno;

/// Why files could not be copied. Paths of the instance are as inside.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// Nothing is there.
    #[error("there is no {path:?} inside")]
    Missing {
        /// The path asked for.
        path: String,
    },
    /// A directory was meant.
    #[error("{path:?} inside is not a directory")]
    NotADirectory {
        /// The path asked for.
        path: String,
    },
    /// It makes no path.
    #[error("{path:?} is no path inside: {reason}")]
    Path {
        /// The path asked for.
        path: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// It cannot be copied whatever the circumstances.
    #[error("{path:?} inside is {what}, which cannot be copied")]
    Kind {
        /// The path asked for.
        path: String,
        /// What it is.
        what: &'static str,
    },
    /// The instance has something mounted there when it runs; what is below is never seen.
    #[error(
        "{path:?} is inside {mount:?}, where something is mounted while the instance runs, and it \
         does not run now"
    )]
    Hidden {
        /// The path asked for or the archive's entry.
        path: String,
        /// Where it is mounted.
        mount: String,
    },
    /// The root or a mount may only be read.
    #[error("{path:?} inside can only be read")]
    ReadOnly {
        /// The path.
        path: String,
    },
    /// An entry of the archive was refused.
    #[error("the archive's entry {entry:?} was refused: {reason}")]
    Entry {
        /// The entry.
        entry: String,
        /// Why.
        reason: &'static str,
    },
    /// More of something than is copied at once.
    #[error("at {path:?}: more than {limit} {what} are not copied at once")]
    Limit {
        /// Where.
        path: String,
        /// What there is too much of.
        what: &'static str,
        /// How many are copied.
        limit: u64,
    },
    /// The archive is broken or exceeds a limit.
    #[error(transparent)]
    Archive(#[from] image::tar::TarError),
    /// The kernel refused.
    #[error("cannot {action} {path:?} inside")]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// The path.
        path: String,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
    /// Nobody takes the archive any more.
    #[error("the archive could not be sent")]
    Output(#[source] std::io::Error),
}

impl FilesError {
    pub(super) fn io(action: &'static str, path: &[u8], errno: Errno) -> Self {
        let path = image::tar::display(path);
        if errno == Errno::ROFS {
            return Self::ReadOnly { path };
        }
        Self::Io {
            action,
            path,
            source: errno.into(),
        }
    }

    pub(super) fn entry(entry: &[u8], reason: &'static str) -> Self {
        Self::Entry {
            entry: image::tar::display(entry),
            reason,
        }
    }
}
