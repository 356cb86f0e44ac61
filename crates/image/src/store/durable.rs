//! Small durable files: written whole or not at all.
//!
//! Owns the order tmp file, fsync, rename, fsync directory. Used by every record of the store.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use serde::{Serialize, de::DeserializeOwned};
use uuid::Uuid;

use crate::error::{StoreError, at};

/// Records are small; anything larger was not written by us.
const MAX_RECORD: u64 = 4 << 20;

/// Prefix of files that were never finished; [`sweep`] removes them.
const TMP: &str = ".tmp-";

/// Flushes a directory's entries.
pub(crate) fn sync_dir(path: &Path) -> Result<(), StoreError> {
    File::open(path)
        .and_then(|dir| dir.sync_all())
        .map_err(at("flush the directory", path))
}

/// Replaces `path` with `bytes`; after a crash it holds the old or the new content. The file is
/// readable by its owner only.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    let dir = path
        .parent()
        .expect("durable files are named with their directory");
    let tmp = dir.join(format!("{TMP}{}", Uuid::now_v7().simple()));
    let result = (|| {
        let mut file = File::options()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&tmp)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&tmp, path)
    })();
    if let Err(source) = result {
        // The first error is the one to tell; the leftover is swept at the next open.
        let _ = fs::remove_file(&tmp);
        return Err(at("write", path)(source));
    }
    sync_dir(dir)
}

/// Writes a record as JSON.
pub(crate) fn write_json(path: &Path, record: &impl Serialize) -> Result<(), StoreError> {
    let mut bytes = serde_json::to_vec_pretty(record)
        .map_err(|source| at("encode", path)(io::Error::other(source)))?;
    bytes.push(b'\n');
    write(path, &bytes)
}

/// Reads a JSON record; `None` when the file does not exist.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, StoreError> {
    let bytes = match read_limited(path, MAX_RECORD) {
        Ok(bytes) => bytes,
        Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(at("read", path)(source)),
    };
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|error| StoreError::Damaged {
            path: path.to_owned(),
            reason: error.to_string(),
        })
}

/// Reads a file of at most `limit` bytes.
pub(crate) fn read_limited(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let file = File::open(path)?;
    let mut bytes = Vec::new();
    io::Read::read_to_end(&mut io::Read::take(file, limit + 1), &mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("more than {limit} bytes"),
        ));
    }
    Ok(bytes)
}

/// Removes a file if it is there, durably. Tells whether it was.
pub(crate) fn remove(path: &Path) -> Result<bool, StoreError> {
    match fs::remove_file(path) {
        Ok(()) => sync_dir(
            path.parent()
                .expect("durable files are named with their directory"),
        )
        .map(|()| true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(at("remove", path)(source)),
    }
}

/// Removes unfinished files of a directory of records.
pub(crate) fn sweep(dir: &Path) -> Result<(), StoreError> {
    for entry in fs::read_dir(dir).map_err(at("list", dir))? {
        let entry = entry.map_err(at("list", dir))?;
        if entry
            .file_name()
            .as_encoded_bytes()
            .starts_with(TMP.as_bytes())
        {
            fs::remove_file(entry.path()).map_err(at("remove", entry.path()))?;
        }
    }
    Ok(())
}
