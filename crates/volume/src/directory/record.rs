//! The records on disk: `pool.json` and `volume.json`. Versioned; written whole or not at all.

use std::fs::{self, File};
use std::io::{ErrorKind, Read as _, Write as _};
use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{OpenError, sync_directory};
use crate::{Kind, VolumeSpec};

/// Newest version of both records.
pub(super) const VERSION: u32 = 1;

/// Longest record that is read.
const RECORD_MAX: u64 = 64 * 1024;

/// `pool.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PoolRecord {
    pub(super) version: u32,
    /// First project id of this pool; volumes take theirs from here on.
    pub(super) first_project: u32,
}

/// `volume.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct VolumeRecord {
    pub(super) version: u32,
    pub(super) kind: Kind,
    pub(super) name: String,
    pub(super) size_bytes: Option<u64>,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mode: u32,
    /// Project id of the quota; absent where the file system had none at birth.
    pub(super) project: Option<u32>,
}

impl VolumeRecord {
    pub(super) fn new(id: &crate::VolumeId, spec: &VolumeSpec, project: Option<u32>) -> Self {
        Self {
            version: VERSION,
            kind: id.kind(),
            name: id.name().to_owned(),
            size_bytes: spec.size_bytes,
            uid: spec.uid,
            gid: spec.gid,
            mode: spec.mode & 0o7777,
            project,
        }
    }
}

impl PoolRecord {
    pub(super) fn load_or_create(root: &Path) -> Result<Self, OpenError> {
        let path = root.join("pool.json");
        match read::<Self>(&path) {
            Ok(record) if record.version <= VERSION => return Ok(record),
            Ok(record) => {
                let (path, found) = (root.to_owned(), record.version);
                return Err(OpenError::Version {
                    path,
                    found,
                    known: VERSION,
                });
            }
            Err(ReadError::Io(error)) if error.kind() == ErrorKind::NotFound => {}
            Err(ReadError::Io(source)) => {
                return Err(OpenError::Io {
                    doing: "read",
                    path,
                    source,
                });
            }
            Err(ReadError::Empty) => {
                let reason = "it is empty".to_owned();
                return Err(OpenError::Record { path, reason });
            }
            Err(ReadError::Damaged(reason)) => return Err(OpenError::Record { path, reason }),
        }
        let record = Self {
            version: VERSION,
            first_project: first_project(root),
        };
        write(&path, &record, true).map_err(|source| OpenError::Io {
            doing: "write",
            path,
            source,
        })?;
        Ok(record)
    }
}

/// Spreads the pools of one file system over the space of project ids: 2^14 places of 2^16 ids,
/// above those people choose by hand.
fn first_project(root: &Path) -> u32 {
    let hash = root
        .as_os_str()
        .as_encoded_bytes()
        .iter()
        .fold(0x811c_9dc5_u32, |hash, byte| {
            (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193)
        });
    0x4000_0000 | (hash >> 18) << 16
}

/// Why a record could not be read.
pub(super) enum ReadError {
    /// The system refused.
    Io(std::io::Error),
    /// It has no bytes.
    Empty,
    /// It is not what it should be.
    Damaged(String),
}

/// Reads a record.
pub(super) fn read<T: DeserializeOwned>(path: &Path) -> Result<T, ReadError> {
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(ReadError::Io)?;
    file.take(RECORD_MAX)
        .read_to_end(&mut bytes)
        .map_err(ReadError::Io)?;
    if bytes.is_empty() {
        return Err(ReadError::Empty);
    }
    serde_json::from_slice(&bytes).map_err(|error| ReadError::Damaged(error.to_string()))
}

/// Replaces a record; if `durable`, it is on disk afterwards. Either way a reader finds the old
/// one or the new one whole.
pub(super) fn write<T: Serialize>(
    path: &Path,
    record: &T,
    durable: bool,
) -> Result<(), std::io::Error> {
    let temporary = path.with_extension("json.new");
    write_first(&temporary, record, durable)?;
    fs::rename(&temporary, path)?;
    if durable {
        sync_directory(path.parent().unwrap_or(Path::new("/")))
    } else {
        Ok(())
    }
}

/// Writes a record where nobody looks yet.
pub(super) fn write_first<T: Serialize>(
    path: &Path,
    record: &T,
    durable: bool,
) -> Result<(), std::io::Error> {
    let mut bytes = serde_json::to_vec_pretty(record)?;
    bytes.push(b'\n');
    let mut file = File::create(path)?;
    file.write_all(&bytes)?;
    if durable { file.sync_all() } else { Ok(()) }
}
