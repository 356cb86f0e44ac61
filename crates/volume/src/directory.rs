//! Volumes as directories of whatever file system the pool lies on.
//!
//! ```text
//! ROOT/lock                     held while the pool is open
//! ROOT/pool.json                version of this layout, first project id
//! ROOT/volumes/KIND/NAME/       volume.json, data/ (what is mounted)
//! ROOT/new/N                    volumes being made
//! ROOT/trash/N                  volumes being removed
//! ```
//! A volume is made in `new` and renamed into place when complete and on disk; it is removed by
//! renaming it to `trash` first. So `volumes` only ever has whole ones, and opening the pool
//! empties the other two.

mod crash;
mod operations;
mod record;

use std::collections::BTreeSet;
use std::ffi::CString;
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::{FlockOperation, flock};

use crate::{Enforcement, Kind, quota, tree};
use crash::Steps;
use record::PoolRecord;

/// Project ids one pool hands out.
const PROJECTS: u32 = 1 << 16;

/// Why a pool could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it open.
    #[error("pool {0} is in use by another daemon; stop that one, or give this one another root")]
    Busy(PathBuf),
    /// Made by a newer version.
    #[error(
        "pool {path} has layout version {found}, and this program knows up to {known}; upgrade"
    )]
    Version {
        /// The pool.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// The newest version known here.
        known: u32,
    },
    /// Its record cannot be understood.
    #[error("{path} is damaged: {reason}; restore it from a backup")]
    Record {
        /// The record.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The system refused.
    #[error("could not {doing} {path}")]
    Io {
        /// What was attempted, as a verb.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// A pool of directories. One process has it open at a time.
#[derive(Debug)]
pub struct DirectoryPool {
    root: PathBuf,
    record: PoolRecord,
    quota: Enforcement,
    /// Makes names in `new` and `trash` unique within this opening.
    counter: AtomicU64,
    /// Held by whatever changes which volumes exist or their records. What it guards: project ids
    /// of removed volumes whose files are still being freed, not to be handed out again yet.
    changes: Mutex<BTreeSet<u32>>,
    steps: Steps,
    _lock: File,
}

impl DirectoryPool {
    /// Opens the pool at `root`, making it if need be, and removes what a crash left half done.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(root: &Path) -> Result<Self, OpenError> {
        let io = |doing: &'static str, path: &Path| {
            let path = path.to_owned();
            move |source: std::io::Error| OpenError::Io {
                doing,
                path,
                source,
            }
        };
        let mut builder = fs::DirBuilder::new();
        // Guests' files may have any mode and owner: nobody else gets to see them by path.
        builder.recursive(true).mode(0o700);
        let kinds = Kind::ALL.map(|kind| Path::new("volumes").join(kind.as_str()));
        for directory in kinds
            .into_iter()
            .chain([PathBuf::from("new"), PathBuf::from("trash")])
        {
            let path = root.join(directory);
            builder.create(&path).map_err(io("create", &path))?;
        }
        let path = root.join("lock");
        let lock = File::create(&path).map_err(io("create", &path))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(OpenError::Busy(root.to_owned())),
            Err(errno) => return Err(io("lock", &path)(errno.into())),
        }
        let record = PoolRecord::load_or_create(root)?;
        let directory = File::open(root).map_err(io("open", root))?;
        let quota = match quota::probe(&directory) {
            Ok(()) => Enforcement::Enforced,
            Err(reason) => Enforcement::Unsupported { reason },
        };
        let pool = Self {
            root: root.to_owned(),
            record,
            quota,
            counter: AtomicU64::new(0),
            changes: Mutex::default(),
            steps: Steps::default(),
            _lock: lock,
        };
        for leftover in ["new", "trash"] {
            let path = root.join(leftover);
            pool.empty(&path).map_err(io("empty", &path))?;
        }
        Ok(pool)
    }

    /// Removes everything in `new` or `trash`.
    fn empty(&self, directory: &Path) -> Result<(), std::io::Error> {
        let handle = File::open(directory)?;
        // A removal cut short may have left names like those `scratch_name` makes: collect all
        // first, and skip the numbers they have.
        let mut names = Vec::new();
        for entry in fs::read_dir(directory)? {
            let name = entry?.file_name();
            if let Some(number) = name.to_str().and_then(|name| name.parse::<u64>().ok()) {
                self.counter
                    .fetch_max(number.saturating_add(1), Ordering::Relaxed);
            }
            names.push(CString::new(name.into_encoded_bytes())?);
        }
        for name in names {
            tree::remove(handle.as_fd(), name, &mut || self.scratch_name())?;
        }
        Ok(())
    }

    /// A name for `new` or `trash` that is not in use.
    fn scratch_name(&self) -> CString {
        let number = self.counter.fetch_add(1, Ordering::Relaxed);
        CString::new(number.to_string()).expect("a number has no zero byte")
    }

    fn scratch(&self, directory: &str) -> PathBuf {
        let number = self.counter.fetch_add(1, Ordering::Relaxed);
        self.root.join(directory).join(number.to_string())
    }

    fn changing(&self) -> MutexGuard<'_, BTreeSet<u32>> {
        // What a panic left half done is on disk, and swept at the next opening.
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes a directory's entries durable.
fn sync_directory(path: &Path) -> Result<(), std::io::Error> {
    File::open(path)?.sync_all()
}

#[cfg(test)]
mod tests;
