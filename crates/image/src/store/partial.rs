//! What was received of layers whose pull broke off, was cancelled or died with its process: kept for a
//! while, so that the next pull goes on where this one stopped.
//!
//! ```text
//!   ingest/<lease>/part-<hex>    being received; becomes blobs/sha256/<hex> when it is whole and right
//!   partial/<hex>                nobody's: the first bytes of that blob, as far as they came
//! ```
//! Moving a file from one place to the other is what makes it somebody's, so two pulls never write one
//! file. Nothing vouches for the bytes: whoever goes on with them hashes them first, like any others, and
//! starts anew when the whole turns out wrong. Bounded by age and size, and taken by [`Store::gc`].

use std::{
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use super::{BlobWriter, Lease, Store};
use crate::{
    digest::Digest,
    error::{StoreError, at},
};

const PART: &str = "part-";
/// How long a part is kept after its last byte came.
const MAX_AGE: Duration = Duration::from_secs(24 * 60 * 60);
/// Most bytes of parts kept together; the oldest go first.
const MAX_BYTES: u64 = 4 << 30;

/// A blob that is being received, and what is there of it.
pub(crate) struct Part {
    /// Takes all of the blob, from its first byte on; what is there already is only hashed.
    pub(crate) writer: BlobWriter,
    /// What is there already.
    pub(crate) there: io::Take<File>,
}

impl Part {
    /// How many bytes are there already.
    pub(crate) fn len(&self) -> u64 {
        self.there.limit()
    }
}

impl Store {
    fn partial_dir(&self) -> PathBuf {
        self.root().join("partial")
    }

    /// Begins with a blob of `size` bytes, or goes on with what an earlier attempt received.
    pub(crate) fn receive(
        &self,
        lease: &Lease,
        digest: &Digest,
        size: u64,
    ) -> Result<Part, StoreError> {
        let path = lease.dir().join(format!("{PART}{}", digest.hex()));
        if !path.exists() {
            let kept = self.partial_dir().join(digest.hex());
            missing_is_fine(fs::rename(&kept, &path)).map_err(at("take", &kept))?;
        }
        let (writer, length) = BlobWriter::go_on(&path, size)?;
        let there = File::open(&path).map_err(at("open", &path))?.take(length);
        Ok(Part { writer, there })
    }

    /// Keeps the parts of a lease that ends.
    pub(super) fn keep_parts(&self, lease: &Path) -> Result<(), StoreError> {
        let entries = match fs::read_dir(lease) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(source) => return Err(at("list", lease)(source)),
        };
        let mut kept = false;
        for entry in entries {
            let entry = entry.map_err(at("list", lease))?;
            let name = entry.file_name();
            let hex = name.to_str().and_then(|name| name.strip_prefix(PART));
            let Some(digest) = hex.and_then(|hex| Digest::from_hex(hex).ok()) else {
                continue;
            };
            let to = self.partial_dir().join(digest.hex());
            let more = length(&entry.path()) > length(&to);
            if more && self.blob_size(&digest)?.is_none() {
                fs::rename(entry.path(), &to).map_err(at("keep", &to))?;
                kept = true;
            }
        }
        match kept {
            true => self.tidy_parts(),
            false => Ok(()),
        }
    }

    /// Removes the parts that are too old, and the oldest of too many.
    pub(super) fn tidy_parts(&self) -> Result<(), StoreError> {
        let dir = self.partial_dir();
        let mut parts = Vec::new();
        for entry in fs::read_dir(&dir).map_err(at("list", &dir))? {
            let entry = entry.map_err(at("list", &dir))?;
            // One that is taken just now is not ours to count.
            if let Ok(meta) = entry.metadata() {
                let changed = meta.modified().unwrap_or(SystemTime::UNIX_EPOCH);
                parts.push((changed, meta.len(), entry.path()));
            }
        }
        for path in superfluous(parts, SystemTime::now()) {
            missing_is_fine(fs::remove_file(&path)).map_err(at("remove", &path))?;
        }
        Ok(())
    }

    /// Where parts are, for the collection, which takes them all: those of running pulls are elsewhere.
    pub(super) fn idle_parts(&self) -> PathBuf {
        self.partial_dir()
    }
}

/// Which of the parts (last change, length, path) have to go.
fn superfluous(mut parts: Vec<(SystemTime, u64, PathBuf)>, now: SystemTime) -> Vec<PathBuf> {
    // Newest first.
    parts.sort_by(|one, other| other.cmp(one));
    let mut total: u64 = 0;
    let mut doomed = Vec::new();
    for (changed, length, path) in parts {
        total = total.saturating_add(length);
        // A clock that was set back makes none of them old.
        let old = now.duration_since(changed).is_ok_and(|age| age > MAX_AGE);
        if old || total > MAX_BYTES {
            doomed.push(path);
        }
    }
    doomed
}

/// The length of a file; 0 when there is none.
fn length(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |meta| meta.len())
}

fn missing_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn part_of(store: &Store, lease: &Lease, digest: &Digest, size: u64) -> (Part, Vec<u8>) {
        let mut part = store.receive(lease, digest, size).unwrap();
        let mut there = Vec::new();
        part.there.read_to_end(&mut there).unwrap();
        (part, there)
    }

    #[test]
    fn what_was_received_is_gone_on_with_by_the_next_and_only_once() {
        let scratch = tempfile::tempdir().unwrap();
        let store = Store::open(scratch.path()).unwrap();
        let whole = b"all of it".as_slice();
        let (digest, size) = (Digest::of(whole), whole.len() as u64);
        let lease = store.lease().unwrap();
        let (mut part, there) = part_of(&store, &lease, &digest, size);
        assert!(there.is_empty());
        part.writer.write_all(b"all ").unwrap();
        drop(lease);
        assert_eq!(length(&store.partial_dir().join(digest.hex())), 4);

        let (lease, other) = (store.lease().unwrap(), store.lease().unwrap());
        let (mut part, there) = part_of(&store, &lease, &digest, size);
        assert_eq!(there, b"all ");
        let (_, theirs) = part_of(&store, &other, &digest, size);
        assert!(theirs.is_empty(), "two write to one file");
        // Given whole again, in pieces that do not end where the part did.
        part.writer.write_all(&whole[..6]).unwrap();
        part.writer.write_all(&whole[6..]).unwrap();
        let sealed = part.writer.seal().unwrap();
        assert_eq!((sealed.digest, sealed.size), (digest, size));
        sealed.publish(&store).unwrap();
        assert_eq!(store.read_blob(&digest, size).unwrap(), whole);
        drop((lease, other));
        assert_eq!(fs::read_dir(store.partial_dir()).unwrap().count(), 0);
    }

    #[test]
    fn parts_of_the_dead_are_kept_until_the_collection_and_too_long_ones_are_not_used() {
        let scratch = tempfile::tempdir().unwrap();
        let store = Store::open(scratch.path()).unwrap();
        let digest = Digest::of(b"abc");
        let dead = store.root().join("ingest/dead");
        fs::create_dir(&dead).unwrap();
        fs::write(dead.join("lease"), "").unwrap();
        fs::write(dead.join(format!("{PART}{}", digest.hex())), "abcd").unwrap();
        drop(store);
        let store = Store::open(scratch.path()).unwrap();
        let kept = store.partial_dir().join(digest.hex());
        assert_eq!(length(&kept), 4);
        let lease = store.lease().unwrap();
        assert_eq!(part_of(&store, &lease, &digest, 3).1, b"");
        drop(lease);
        fs::write(&kept, "ab").unwrap();
        let freed = store.gc(&Default::default()).unwrap().freed_bytes;
        assert!(freed > 0 && !kept.exists());
    }

    #[test]
    fn the_old_and_the_oldest_of_too_many_go() {
        let now = SystemTime::now();
        let ago = |seconds| now.checked_sub(Duration::from_secs(seconds)).unwrap();
        let part = |seconds, bytes, name: &str| (ago(seconds), bytes, PathBuf::from(name));
        let doomed = superfluous(
            vec![
                part(10, MAX_BYTES / 2, "new"),
                part(100_000, 1, "old"),
                part(20, MAX_BYTES / 2, "next"),
                part(30, 1, "one too many"),
                (now + Duration::from_secs(99), 0, "of the future".into()),
            ],
            now,
        );
        assert_eq!(doomed, [Path::new("one too many"), Path::new("old")]);
    }
}
