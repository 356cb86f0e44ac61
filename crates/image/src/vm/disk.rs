//! Root disks: an image's layers as an ext4 file system in a file.
//!
//! Made once per image, beside its layers; every guest gets a copy of its own, shared block for block
//! where the host's file system can, else copied without its holes, and grows it at boot to the size it
//! was given. Why a copy, and not the base shared read-only under an overlay in the guest: the guest then
//! has a plain ext4 root (container engines, quotas and backup inside work as on any machine), its
//! directory of files is complete without the image store, and growing is one system call. The overlay
//! form stays possible for guests that keep nothing.
//!
//! `mke2fs` writes the file system without mounting it, with a journal: a guest may be killed at any
//! time.

use std::{
    fs::{self, File},
    io::{self, Read, Seek},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use rustix::fs::SeekFrom;
use serde::{Deserialize, Serialize};

use super::machine::{self, BootRecord, MachineImageError, OwnBoot};
use crate::{
    digest::Digest,
    error::{StoreError, at},
    job::{Cancelled, Event, Job, Phase},
    layer::{LayerError, piped, unpack_merged, write_merged},
    store::{FORMAT, Lease, Store, read_json, write_json},
    tar::TarError,
};

/// Raise when disks are made differently, so that older ones are made again.
const REVISION: u32 = 1;
/// The disk made of an image's files, and the one converted from an image's own.
const MADE: &str = "root.ext4";
const CONVERTED: &str = "root.img";
const BLOCK: u64 = 4096;
const MIB: u64 = 1 << 20;
/// The smallest disk: below, ext4 leaves out what it needs to grow well.
const LEAST: u64 = 256 * MIB;
/// Journal of every disk, whatever size it grows to.
const JOURNAL_MIB: u64 = 32;

/// The root disk of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootDisk {
    /// A raw disk. Not to be changed. One made from an image's files is an ext4 file system without a
    /// partition table.
    pub path: PathBuf,
    /// Its length in bytes: the least that a copy may have.
    pub bytes: u64,
    /// What it boots by itself; `None` for one made from an image's files, which has no kernel.
    pub boot: Option<OwnBoot>,
}

/// Making a root disk failed; the store is as before.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The tool that makes file systems is missing.
    #[error(
        "a virtual machine's disk is made with mkfs.ext4; on Debian and Ubuntu: apt-get install e2fsprogs"
    )]
    MissingTool,
    /// The tool failed.
    #[error("mkfs.ext4 failed ({status}): {output}")]
    Tool {
        /// Its exit status.
        status: String,
        /// The end of what it printed.
        output: String,
    },
    /// A guest wants less than the image holds.
    #[error("a disk of {wanted} bytes is too small for the image, which needs {least}")]
    TooSmall {
        /// What was asked for.
        wanted: u64,
        /// The least.
        least: u64,
    },
    /// The image is a disk that cannot be used.
    #[error(transparent)]
    Machine(#[from] MachineImageError),
    /// The layers could not be read as one tree.
    #[error("the image's layers cannot be put together")]
    Layers(#[from] LayerError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Cancelled by the caller.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

/// What is recorded beside a disk.
#[derive(Serialize, Deserialize)]
struct Record {
    version: u32,
    revision: u32,
    bytes: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    boot: Option<BootRecord>,
}

/// What a tree holds.
#[derive(Debug, Default, PartialEq, Eq)]
struct Size {
    bytes: u64,
    entries: u64,
}

impl Store {
    /// The root disk of an image, made if it is not here. Blocks: some seconds the first time.
    ///
    /// # Errors
    /// [`DiskError`].
    pub fn root_disk(&self, image: &Digest, job: &Job) -> Result<RootDisk, DiskError> {
        let lease = self.lease()?;
        let layers = lease.pin(&[*image], |store| store.layers(image))?;
        let dir = self.root().join("disks/sha256").join(image.hex());
        if let Some(disk) = existing(&dir, &layers)? {
            return Ok(disk);
        }
        job.emit(Event::Phase(Phase::Building));
        let work = lease.fresh_path("disk");
        fs::create_dir(&work).map_err(at("create", &work))?;
        let record = match machine::disk_in(&layers) {
            Some(disk) => self.extract(&disk, &work, job)?,
            None => self.make(image, &layers, &work, &lease, job)?,
        };
        job.check()?;
        write_json(&work.join("disk.json"), &record)?;
        // One of an older revision goes with the lease.
        if dir.exists() {
            let old = lease.fresh_path("old");
            fs::rename(&dir, &old).map_err(at("remove", &dir))?;
        }
        match fs::rename(&work, &dir) {
            // Somebody else made the same one meanwhile.
            Err(_) if dir.join("disk.json").exists() => {}
            result => result.map_err(at("create", &dir))?,
        }
        Ok(found(record, &dir, &layers))
    }

    /// What the disk of an image boots by itself, if the image is a disk and its root disk was made.
    ///
    /// # Errors
    /// [`StoreError`] when the image is not here, or what is recorded cannot be read.
    pub fn own_boot(&self, image: &Digest) -> Result<Option<OwnBoot>, StoreError> {
        let dir = self.root().join("disks/sha256").join(image.hex());
        let layers = self.layers(image)?;
        Ok(existing(&dir, &layers)?.and_then(|disk| disk.boot))
    }

    /// Whether an image is a machine's disk, and so no root file system.
    ///
    /// # Errors
    /// [`StoreError`] when the image is not here.
    pub fn is_machine_image(&self, image: &Digest) -> Result<bool, StoreError> {
        Ok(machine::disk_in(&self.layers(image)?).is_some())
    }

    /// Takes out of an image's disk what it boots.
    fn extract(&self, disk: &Path, work: &Path, job: &Job) -> Result<Record, DiskError> {
        let file = File::open(disk).map_err(at("open", disk))?;
        let (raw, bytes, converted) =
            machine::raw(&file, &work.join(CONVERTED), self.limits(), job)?;
        if converted {
            raw.sync_all().map_err(at("flush", work))?;
        }
        let boot = machine::extract(&raw, bytes, work)?;
        Ok(Record {
            version: FORMAT,
            revision: REVISION,
            bytes,
            boot: Some(boot),
        })
    }

    /// Makes a disk of an image's files.
    fn make(
        &self,
        image: &Digest,
        layers: &[PathBuf],
        work: &Path,
        lease: &Lease,
        job: &Job,
    ) -> Result<Record, DiskError> {
        let tree = self.tree(layers, lease, job)?;
        let disk = work.join(MADE);
        let bytes = make(&tree, &disk, image, Purpose::Root)?;
        let flush = File::open(&disk).and_then(|file| file.sync_all());
        flush.map_err(at("flush", &disk))?;
        Ok(Record {
            version: FORMAT,
            revision: REVISION,
            bytes,
            boot: None,
        })
    }

    /// The image's files as one directory: its only layer, or a copy of what its layers show together.
    fn tree(&self, layers: &[PathBuf], lease: &Lease, job: &Job) -> Result<PathBuf, DiskError> {
        if let [only] = layers {
            return Ok(only.clone());
        }
        let tree = lease.fresh_path("tree");
        let (depth, limits) = (self.limits().depth, self.limits());
        piped(
            |output| write_merged(layers, output, depth, job).map(drop),
            |input| unpack_merged(input, &tree, limits, job),
        )
        .map_err(|error: TarError| LayerError::Tar(error))?;
        job.check()?;
        Ok(tree)
    }
}

fn existing(dir: &Path, layers: &[PathBuf]) -> Result<Option<RootDisk>, StoreError> {
    let record = read_json::<Record>(&dir.join("disk.json"))?;
    let record = record.filter(|record| record.revision == REVISION);
    Ok(record.map(|record| found(record, dir, layers)))
}

/// The disk of a record. One that was imported raw stays in its layer.
fn found(record: Record, dir: &Path, layers: &[PathBuf]) -> RootDisk {
    let converted = dir.join(CONVERTED);
    let path = match &record.boot {
        None => dir.join(MADE),
        Some(_) if converted.exists() => converted,
        Some(_) => machine::disk_in(layers).unwrap_or(converted),
    };
    RootDisk {
        path,
        bytes: record.bytes,
        boot: record.boot.map(|boot| boot.own_boot(dir)),
    }
}

/// What a disk is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// A guest's root: written to, and grown.
    Root,
    /// Shared by guests that only read it, so without a journal.
    Shared,
}

/// Makes the file system, named by `id`; answers its size.
pub(super) fn make(
    tree: &Path,
    disk: &Path,
    id: &Digest,
    purpose: Purpose,
) -> Result<u64, DiskError> {
    let mut size = Size::default();
    measure(tree, &mut size).map_err(at("read", tree))?;
    let bytes = disk_bytes(&size);
    // As many inodes as the image has files, and as many again; the usual number at least.
    let per_inode = (bytes / (2 * size.entries.max(1))).clamp(BLOCK, 16 << 10);
    let file = File::create_new(disk).map_err(at("create", disk))?;
    file.set_len(bytes).map_err(at("write", disk))?;
    let hex = id.hex();
    let uuid = [
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..32],
    ]
    .join("-");
    let mut command = Command::new("mkfs.ext4");
    match purpose {
        Purpose::Root => command.args(["-L", "root", "-J", &format!("size={JOURNAL_MIB}")]),
        Purpose::Shared => command.args(["-O", "^has_journal,^resize_inode"]),
    };
    let output = command
        .args(["-q", "-F", "-m", "1", "-I", "256", "-U", &uuid])
        .args(["-b", &BLOCK.to_string(), "-i", &per_inode.to_string()])
        // The file is all holes, so what would have to be zeroed is zero.
        .args([
            "-E",
            &format!("lazy_itable_init=0,nodiscard,hash_seed={uuid}"),
        ])
        .arg("-d")
        .arg(tree)
        .arg(disk)
        // The same image gives the same disk.
        .env("E2FSPROGS_FAKE_TIME", "1")
        .env("LC_ALL", "C.UTF-8")
        .stdin(Stdio::null())
        .output();
    let output = output.map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => DiskError::MissingTool,
        _ => at("run mkfs.ext4 on", disk)(source).into(),
    })?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        let last: Vec<&str> = text.lines().rev().take(5).collect();
        return Err(DiskError::Tool {
            status: output.status.to_string(),
            output: last.into_iter().rev().collect::<Vec<_>>().join("\n"),
        });
    }
    Ok(bytes)
}

/// A third more than the files take, and what the file system takes itself.
fn disk_bytes(size: &Size) -> u64 {
    let files = size.bytes + size.entries * 256;
    let wanted = files + files / 3 + (JOURNAL_MIB + 32) * MIB;
    wanted.next_multiple_of(MIB).max(LEAST)
}

/// Adds up what a tree takes on disk.
fn measure(dir: &Path, size: &mut Size) -> io::Result<()> {
    let mut open = vec![dir.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir)? {
            let entry = entry?;
            let meta = entry.metadata()?;
            size.entries += 1;
            let share = if meta.is_dir() { 1 } else { meta.nlink() };
            size.bytes += (meta.blocks() * 512).next_multiple_of(BLOCK) / share;
            if meta.is_dir() {
                open.push(entry.path());
            }
        }
    }
    Ok(())
}

/// Makes a guest's own copy of a root disk, `bytes` long; where it has partitions, its root's grows. Shares blocks where the file system can,
/// else copies what is not a hole. Durable when it returns; `target` must not exist. Blocks.
///
/// # Errors
/// [`DiskError::TooSmall`], or that the copy could not be written; then nothing remains.
pub fn copy_disk(base: &RootDisk, target: &Path, bytes: u64) -> Result<(), DiskError> {
    if bytes < base.bytes {
        let (wanted, least) = (bytes, base.bytes);
        return Err(DiskError::TooSmall { wanted, least });
    }
    let copied = copy(base, target, bytes);
    if copied.is_err() {
        // The first error is the one to tell.
        let _ = fs::remove_file(target);
    }
    Ok(copied.map_err(at("write", target))?)
}

fn copy(base: &RootDisk, target: &Path, bytes: u64) -> io::Result<()> {
    let from = File::open(&base.path)?;
    let to = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(target)?;
    if rustix::fs::ioctl_ficlone(&to, &from).is_err() {
        copy_data(&from, &to)?;
    }
    to.set_len(bytes)?;
    if let Some(boot) = base.boot.as_ref().filter(|_| bytes > base.bytes) {
        machine::grow(&to, boot, bytes)?;
    }
    to.sync_all()
}

/// Copies what is not a hole.
fn copy_data(mut from: &File, mut to: &File) -> io::Result<()> {
    let mut end = 0;
    loop {
        let start = match rustix::fs::seek(from, SeekFrom::Data(end)) {
            Ok(start) => start,
            // Only a hole is left.
            Err(rustix::io::Errno::NXIO) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        };
        end = rustix::fs::seek(from, SeekFrom::Hole(start))?;
        from.seek(io::SeekFrom::Start(start))?;
        to.seek(io::SeekFrom::Start(start))?;
        // In the kernel where it can be.
        io::copy(&mut from.take(end - start), &mut to)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_has_room_for_its_files_and_more() {
        assert_eq!(disk_bytes(&Size::default()), LEAST);
        let large = Size {
            bytes: 3 << 30,
            entries: 100_000,
        };
        let bytes = disk_bytes(&large);
        assert!(bytes > 4 << 30 && bytes < 5 << 30);
        assert_eq!(bytes % MIB, 0);
    }
}
