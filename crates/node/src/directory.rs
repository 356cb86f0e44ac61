//! An instance's directory: everything that defines it, so that a database can be rebuilt from
//! directories, and a directory copied elsewhere can be registered there.
//!
//! ```text
//! instances/<id>/
//!   instance.json     its record, versioned
//!   root/upper, work  a container's own changes to the root file system
//!   disk.img          a virtual machine's, as a sparse ext4 disk
//!   etc/              resolv.conf, hosts, hostname as mounted inside
//!   log/              what its program wrote
//! ```
//!
//! Called by control's operations (make, remove) and by passes (the record after a change).

use std::{
    fs, io,
    io::Write,
    net::IpAddr,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use model::record::InstanceRecord;
use serde::{Deserialize, Serialize};

use crate::{NodeError, Paths, resolve};

/// Version of `instance.json`.
const FORMAT: u32 = 1;

/// Files of `etc` that are written for an instance.
pub const OWN_FILES: [&str; 3] = ["resolv.conf", "hosts", "hostname"];

/// Largest `instance.json` that is read.
const MAX_BYTES: u64 = 2 << 20;

#[derive(Serialize)]
struct Written<'a> {
    version: u32,
    instance: &'a InstanceRecord,
}

#[derive(Deserialize)]
struct Stored {
    version: u32,
    instance: InstanceRecord,
}

/// Where the instance's own changes are.
#[must_use]
pub fn upper(directory: &Path) -> PathBuf {
    directory.join("root/upper")
}

/// The overlay's scratch directory.
#[must_use]
pub fn work(directory: &Path) -> PathBuf {
    directory.join("root/work")
}

/// The disk with a virtual machine's own changes.
#[must_use]
pub fn disk(directory: &Path) -> PathBuf {
    directory.join("disk.img")
}

/// A file of `etc`.
#[must_use]
pub fn own_file(directory: &Path, name: &str) -> PathBuf {
    directory.join("etc").join(name)
}

/// Makes, or completes, the directory of a record. Idempotent. Blocks.
///
/// # Errors
/// When something cannot be written; what was made stays for the next attempt or for [`remove`].
pub fn make(
    paths: &Paths,
    record: &InstanceRecord,
    nameservers: &[IpAddr],
) -> Result<(), NodeError> {
    let directory = paths.instance(record.id);
    for part in ["root/upper", "root/work", "etc", "log"] {
        let path = directory.join(part);
        // The upper directory is the root inside: anybody there may look at it.
        let mode = if part == "root/upper" { 0o755 } else { 0o700 };
        fs::DirBuilder::new()
            .recursive(true)
            .mode(mode)
            .create(&path)
            .map_err(NodeError::file("make the directory", &path))?;
    }
    write_own_files(&directory, record, nameservers)?;
    write_record(paths, record)
}

/// Writes `instance.json`. Durable, unless the instance goes away with its program. Blocks.
///
/// # Errors
/// When it cannot be written; the former one is then still there.
pub fn write_record(paths: &Paths, record: &InstanceRecord) -> Result<(), NodeError> {
    let directory = paths.instance(record.id);
    let path = directory.join("instance.json");
    let write = || -> io::Result<()> {
        let text = serde_json::to_vec_pretty(&Written {
            version: FORMAT,
            instance: record,
        })?;
        let fresh = directory.join("instance.json.new");
        let mut file = fs::File::create(&fresh)?;
        file.write_all(&text)?;
        let lasts = !record.spec.remove_on_exit;
        if lasts {
            file.sync_all()?;
        }
        fs::rename(&fresh, &path)?;
        if lasts {
            fs::File::open(&directory)?.sync_all()
        } else {
            Ok(())
        }
    };
    write().map_err(NodeError::file("write", &path))
}

/// The generation of the record in an instance's directory, if it can be read. Blocks.
#[must_use]
pub fn generation(paths: &Paths, id: model::InstanceId) -> Option<u64> {
    read_record(&paths.instance(id))
        .ok()
        .map(|record| record.generation)
}

fn write_own_files(
    directory: &Path,
    record: &InstanceRecord,
    nameservers: &[IpAddr],
) -> Result<(), NodeError> {
    let hostname = resolve::hostname(record);
    let addresses = record
        .lease
        .as_ref()
        .map_or(&[][..], |lease| &lease.addresses);
    let resolv_conf = if nameservers.is_empty() {
        // Without a network of its own it may only have the host's.
        fs::read_to_string("/etc/resolv.conf").unwrap_or_default()
    } else {
        network::files::resolv_conf(nameservers, &[crate::wiring::DOMAIN])
    };
    let texts = [
        resolv_conf,
        network::files::hosts(&hostname, Some(crate::wiring::DOMAIN), addresses, &[]),
        network::files::hostname(&hostname),
    ];
    for (name, text) in OWN_FILES.iter().zip(texts) {
        let path = own_file(directory, name);
        fs::write(&path, text).map_err(NodeError::file("write", &path))?;
    }
    Ok(())
}

/// Removes the directory of an instance: moved out of the way at once, then removed. Idempotent.
/// Blocks.
///
/// # Errors
/// When something cannot be removed; calling again goes on.
pub fn remove(paths: &Paths, id: model::InstanceId) -> Result<(), NodeError> {
    let directory = paths.instance(id);
    let doomed = paths.trash().join(id.to_string());
    match fs::rename(&directory, &doomed) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        moved => moved.map_err(NodeError::file("move to the trash", &directory))?,
    }
    remove_tree(&doomed)
}

/// Empties the trash of what a crash left there. Blocks.
///
/// # Errors
/// When something cannot be removed.
pub fn empty_trash(paths: &Paths) -> Result<(), NodeError> {
    let trash = paths.trash();
    let entries = fs::read_dir(&trash).map_err(NodeError::file("list", &trash))?;
    for entry in entries.flatten() {
        remove_tree(&entry.path())?;
    }
    Ok(())
}

fn remove_tree(path: &Path) -> Result<(), NodeError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.map_err(NodeError::file("remove", path)),
    }
}

/// What a scan of the directories found.
#[derive(Debug, Default)]
pub struct Found {
    /// Records, as written.
    pub records: Vec<InstanceRecord>,
    /// Directories that hold none that can be used, and why.
    pub unusable: Vec<(PathBuf, String)>,
}

/// Reads every instance's directory. Blocks.
///
/// # Errors
/// When the directories cannot be listed.
pub fn scan(paths: &Paths) -> Result<Found, NodeError> {
    let instances = paths.instances();
    let entries = fs::read_dir(&instances).map_err(NodeError::file("list", &instances))?;
    let mut found = Found::default();
    for entry in entries.flatten() {
        let directory = entry.path();
        match read_record(&directory) {
            Ok(record) => found.records.push(record),
            Err(reason) => found.unusable.push((directory, reason)),
        }
    }
    found.records.sort_by_key(|record| record.id);
    Ok(found)
}

fn read_record(directory: &Path) -> Result<InstanceRecord, String> {
    let path = directory.join("instance.json");
    let length = fs::metadata(&path)
        .map_err(|error| error.to_string())?
        .len();
    if length > MAX_BYTES {
        return Err(format!(
            "instance.json has {length} bytes, at most {MAX_BYTES} are read"
        ));
    }
    let text = fs::read(&path).map_err(|error| error.to_string())?;
    let stored: Stored = serde_json::from_slice(&text).map_err(|error| error.to_string())?;
    if stored.version > FORMAT {
        return Err(format!(
            "it was written by a newer Berth (version {})",
            stored.version
        ));
    }
    let named = directory.file_name().and_then(|name| name.to_str());
    if named != Some(stored.instance.id.to_string().as_str()) {
        return Err(format!(
            "it holds instance {}, which its name does not say",
            stored.instance.id
        ));
    }
    Ok(stored.instance)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_says_all_there_is_to_know() {
        let temporary = tempfile::tempdir().unwrap();
        let paths = Paths::new(temporary.path().join("root"), temporary.path().join("run"));
        paths.make().unwrap();
        let record: InstanceRecord =
            serde_json::from_str(include_str!("../tests/golden/instance_record_v1.json")).unwrap();
        make(&paths, &record, &["10.77.0.1".parse().unwrap()]).unwrap();
        make(&paths, &record, &["10.77.0.1".parse().unwrap()]).unwrap();
        let found = scan(&paths).unwrap();
        assert_eq!(found.records, std::slice::from_ref(&record));
        let resolv = own_file(&paths.instance(record.id), "resolv.conf");
        assert!(
            fs::read_to_string(resolv)
                .unwrap()
                .contains("nameserver 10.77.0.1")
        );

        let copied = paths.instances().join("somewhere-else");
        fs::create_dir(&copied).unwrap();
        let original = paths.instance(record.id).join("instance.json");
        fs::copy(original, copied.join("instance.json")).unwrap();
        assert_eq!(
            scan(&paths).unwrap().unusable.len(),
            1,
            "a directory goes by its id"
        );

        remove(&paths, record.id).unwrap();
        remove(&paths, record.id).unwrap();
        assert!(scan(&paths).unwrap().records.is_empty());
        assert_eq!(fs::read_dir(paths.trash()).unwrap().count(), 0);
    }

    #[test]
    fn the_stored_form_is_pinned() {
        let golden = include_str!("../tests/golden/instance_record_v1.json");
        let record: InstanceRecord = serde_json::from_str(golden).unwrap();
        let written = serde_json::to_string_pretty(&record).unwrap();
        assert_eq!(
            written.trim(),
            golden.trim(),
            "a stored record changed: raise its version"
        );
    }
}
