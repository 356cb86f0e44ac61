//! Leases: a working directory under `ingest/` and the claim that its pins are in use.
//!
//! ```text
//!   ingest/<id>/lease        flocked while the owner lives; the kernel lets go when it dies
//!   ingest/<id>/pin-<hex>    one empty file per digest that garbage collection must not take
//!   ingest/<id>/part-<hex>   what is received of a blob; kept for a while (see `partial`)
//!   ingest/<id>/…            half-unpacked layers and all else
//! ```
//! A digest is pinned *before* the owner looks whether it is present, both under the shared store lock;
//! the collector decides under the exclusive one. So either the collector sees the pin, or the owner
//! sees that the content is gone. A lease whose lock can be taken has no owner: recovery removes it.

use std::{
    collections::HashSet,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use rustix::fs::{FlockOperation, flock};
use uuid::Uuid;

use super::Store;
use crate::{
    digest::Digest,
    error::{StoreError, at},
};

const LOCK: &str = "lease";
const PIN: &str = "pin-";

/// A live lease. Dropping it removes its directory with everything unfinished in it.
pub(crate) struct Lease {
    store: Store,
    dir: PathBuf,
    next: AtomicU64,
    _lock: File,
}

/// Keeps an image from being collected while it is being put to use; released on drop. Held by whoever
/// creates an instance, from choosing the image until the instance is recorded as its user.
pub struct Hold {
    _lease: Lease,
}

impl Hold {
    pub(crate) fn new(lease: Lease) -> Self {
        Self { _lease: lease }
    }
}

/// The store's own lock, released on drop.
pub(crate) struct StoreLock(#[expect(dead_code, reason = "held, not read")] File);

impl Store {
    /// Waits for operations that pin or record; many may hold it.
    pub(crate) fn lock_shared(&self) -> Result<StoreLock, StoreError> {
        self.lock(FlockOperation::LockShared)
    }

    /// Waits until nobody pins or records. Held only briefly.
    pub(crate) fn lock_exclusive(&self) -> Result<StoreLock, StoreError> {
        self.lock(FlockOperation::LockExclusive)
    }

    fn lock(&self, operation: FlockOperation) -> Result<StoreLock, StoreError> {
        let path = self.root().join("locks/store");
        // A fresh open file description each time: flock then works between threads too.
        let file = File::open(&path).map_err(at("open", &path))?;
        loop {
            match flock(&file, operation) {
                Ok(()) => return Ok(StoreLock(file)),
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(at("lock", &path)(errno)),
            }
        }
    }

    /// Opens a lease.
    pub(crate) fn lease(&self) -> Result<Lease, StoreError> {
        let _lock = self.lock_shared()?;
        let dir = self
            .root()
            .join("ingest")
            .join(Uuid::now_v7().simple().to_string());
        fs::create_dir(&dir).map_err(at("create", &dir))?;
        let path = dir.join(LOCK);
        let file = File::create_new(&path).map_err(at("create", &path))?;
        flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(at("lock", &path))?;
        Ok(Lease {
            store: self.clone(),
            dir,
            next: AtomicU64::new(0),
            _lock: file,
        })
    }

    /// Digests pinned by live leases. The caller holds the exclusive lock.
    pub(crate) fn pinned(&self) -> Result<HashSet<Digest>, StoreError> {
        let mut pins = HashSet::new();
        for dir in self.lease_dirs()? {
            let entries = match fs::read_dir(&dir) {
                Ok(entries) => entries,
                // Its operation has just ended and recorded what it wanted to keep.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(source) => return Err(at("list", &dir)(source)),
            };
            for entry in entries {
                let name = entry.map_err(at("list", &dir))?.file_name();
                let hex = name.to_str().and_then(|name| name.strip_prefix(PIN));
                pins.extend(hex.and_then(|hex| Digest::from_hex(hex).ok()));
            }
        }
        Ok(pins)
    }

    /// Removes leases whose owner is gone; answers how many there were. Takes the exclusive lock.
    pub(crate) fn recover_leases(&self) -> Result<usize, StoreError> {
        let mut dead = Vec::new();
        {
            let _lock = self.lock_exclusive()?;
            for dir in self.lease_dirs()? {
                let abandoned = match File::open(dir.join(LOCK)) {
                    Ok(file) => flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok(),
                    // Leases are born under the lock we hold: without the file it is half removed.
                    Err(error) => error.kind() == io::ErrorKind::NotFound,
                };
                if abandoned {
                    // Once renamed it is nobody's, so a second recovery does not trip over the removal.
                    let doomed = dir.with_extension(format!("dead-{}", Uuid::now_v7().simple()));
                    match fs::rename(&dir, &doomed) {
                        Ok(()) => dead.push(doomed),
                        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                        Err(source) => return Err(at("rename", &dir)(source)),
                    }
                }
            }
        }
        for dir in &dead {
            self.keep_parts(dir)?;
            remove_tree(dir)?;
        }
        Ok(dead.len())
    }

    fn lease_dirs(&self) -> Result<Vec<PathBuf>, StoreError> {
        let ingest = self.root().join("ingest");
        let entries = fs::read_dir(&ingest).map_err(at("list", &ingest))?;
        entries
            .map(|entry| entry.map(|e| e.path()).map_err(at("list", &ingest)))
            .collect()
    }
}

impl Lease {
    /// Pins digests and answers under the same lock what `look` finds.
    pub(crate) fn pin<T>(
        &self,
        digests: &[Digest],
        look: impl FnOnce(&Store) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let _lock = self.store.lock_shared()?;
        for digest in digests {
            let path = self.dir.join(format!("{PIN}{}", digest.hex()));
            File::create(&path).map_err(at("create", &path))?;
        }
        look(&self.store)
    }

    /// Its directory.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// A path inside the lease that nobody has used.
    pub(crate) fn fresh_path(&self, kind: &str) -> PathBuf {
        self.dir.join(format!(
            "{kind}-{}",
            self.next.fetch_add(1, Ordering::Relaxed)
        ))
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Err(error) = self.store.keep_parts(&self.dir) {
            tracing::warn!(%error, "what was received of an image is not kept");
        }
        if let Err(error) = remove_tree(&self.dir) {
            tracing::warn!(%error, "an ingest directory remains until the store is next opened");
        }
    }
}

/// Removes a directory tree that may already be partly gone.
pub(crate) fn remove_tree(path: &Path) -> Result<(), StoreError> {
    match fs::remove_dir_all(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(at("remove", path)(source)),
    }
}
