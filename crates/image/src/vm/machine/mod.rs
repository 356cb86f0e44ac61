//! Machine images: disks with a kernel of their own, as images of the store.
//!
//! ```text
//!   disk.img, disk.qcow2 ──import──▶ an image whose one layer holds /disk/disk.img, sparse
//!                                        │ first machine of it, or the import itself
//!                                        ▼
//!                        disks/sha256/<image>/   vmlinuz, initrd, what it is told; root.img if it was qcow2
//! ```
//! The form is the one that KubeVirt calls a container disk: an ordinary image with nothing in it but
//! `/disk/<one file>`, so registries, archives, names and the collector need to know nothing of it, and
//! images of others boot. The kernel is taken out of the disk's own file system, see `boot`; a machine
//! then starts it directly, without a boot loader. Knows nothing of instances.

pub(crate) mod boot;
mod files;
pub(crate) mod loader;
pub(crate) mod partition;
pub(crate) mod qcow2;

use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

pub use self::{boot::BootError, qcow2::Qcow2Error};
use crate::{
    error::{StoreError, at},
    job::{Cancelled, Job},
    limits::Limits,
    store::write_private,
    tar::{Entry, Kind, Segment, Writer},
};

/// The directory with the disk in an image of one, and the only thing in it.
pub(crate) const DIRECTORY: &str = "disk";
/// What an import calls the disk.
const FILE: &str = "disk.img";
/// Stretches of zeros from this length on are holes.
const HOLE: u64 = 1 << 20;
/// Most stretches of data of a disk: half of what readers take.
const MAX_SEGMENTS: u64 = 32 << 10;

/// A disk cannot be made an image, or an image's disk cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum MachineImageError {
    /// It is qcow2, and refused.
    #[error(transparent)]
    Qcow2(#[from] Qcow2Error),
    /// It does not boot by itself.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Cancelled by the caller.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

/// What a disk boots by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnBoot {
    /// Its kernel.
    pub kernel: PathBuf,
    /// Its initial file system.
    pub initrd: Option<PathBuf>,
    /// What its kernel is told.
    pub command_line: String,
    /// The partition with its root file system, where it is known.
    pub root_partition: Option<u32>,
}

/// What is recorded of [`OwnBoot`] beside its files.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct BootRecord {
    command_line: String,
    initrd: bool,
    root_partition: Option<u32>,
}

impl BootRecord {
    /// What the files in `dir` boot.
    pub(super) fn own_boot(self, dir: &Path) -> OwnBoot {
        let plain = dir.join("vmlinux");
        OwnBoot {
            kernel: if plain.exists() {
                plain
            } else {
                dir.join("vmlinuz")
            },
            initrd: self.initrd.then(|| dir.join("initrd")),
            command_line: self.command_line,
            root_partition: self.root_partition,
        }
    }
}

/// The disk in an image's layers, topmost first; `None` when the image is a root file system.
pub(crate) fn disk_in(layers: &[PathBuf]) -> Option<PathBuf> {
    let mut found = None;
    for layer in layers {
        for entry in fs::read_dir(layer).ok()? {
            let entry = entry.ok()?;
            if entry.file_name() != DIRECTORY || !entry.file_type().ok()?.is_dir() {
                return None;
            }
            for inside in fs::read_dir(entry.path()).ok()? {
                let inside = inside.ok()?;
                // Links lead elsewhere, and of two disks none is the one.
                if found.is_some() || !inside.file_type().ok()?.is_file() {
                    return None;
                }
                found = Some(inside.path());
            }
        }
    }
    found
}

/// Whether a file looks like a disk: qcow2, or raw with a partition table or a file system that is read.
pub(crate) fn is_disk(file: &File) -> bool {
    let mut start = [0; 2048];
    let got = file.read_at(&mut start, 0).unwrap_or(0);
    if got < start.len() {
        return start.starts_with(&qcow2::MAGIC);
    }
    // A tar may have anything in the names of its members, but not this mark.
    let tar = &start[257..262] == b"ustar";
    let table = start[510..512] == [0x55, 0xaa];
    let ext4 = start[1080..1082] == [0x53, 0xef];
    let xfs = start.starts_with(b"XFSB");
    start.starts_with(&qcow2::MAGIC) || (!tar && (table || ext4 || xfs))
}

/// The disk as a raw file: `file` itself, or what it holds written to `fresh`. Answers its length, and
/// whether it was written.
pub(crate) fn raw(
    file: &File,
    fresh: &Path,
    limits: &Limits,
    job: &Job,
) -> Result<(File, u64, bool), MachineImageError> {
    let mut magic = [0; 4];
    let read = file.read_at(&mut magic, 0).map_err(at("read", fresh))?;
    if read < 4 || magic != qcow2::MAGIC {
        let bytes = file.metadata().map_err(at("read", fresh))?.len();
        let own = file.try_clone().map_err(at("read", fresh))?;
        return Ok((own, bytes, false));
    }
    let bounds = qcow2::Bounds {
        disk_bytes: limits.file_bytes,
        data_bytes: limits.layer_bytes,
    };
    let raw = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(fresh);
    let raw = raw.map_err(at("create", fresh))?;
    let bytes = qcow2::convert(file, &raw, bounds, job)?;
    Ok((raw, bytes, true))
}

/// Refuses a raw disk that boots nothing.
pub(crate) fn check(disk: &File, bytes: u64) -> Result<(), MachineImageError> {
    boot::find(disk, bytes)?;
    Ok(())
}

/// Finds what a raw disk boots and writes it into `dir`.
pub(super) fn extract(
    disk: &File,
    bytes: u64,
    dir: &Path,
) -> Result<BootRecord, MachineImageError> {
    let found = boot::find(disk, bytes)?;
    write_private(&dir.join("vmlinuz"), &found.kernel)?;
    // One that cannot be decompressed here is by the machine's process, or refused there.
    if let Ok(Some(plain)) = bzimage::vmlinux(&found.kernel) {
        write_private(&dir.join("vmlinux"), &plain)?;
    }
    if let Some(initrd) = &found.initrd {
        write_private(&dir.join("initrd"), initrd)?;
    }
    Ok(BootRecord {
        command_line: found.command_line,
        initrd: found.initrd.is_some(),
        root_partition: found.root_partition,
    })
}

/// Writes the one layer of a disk's image.
pub(crate) fn write_layer(disk: &File, bytes: u64, output: impl io::Write) -> io::Result<()> {
    let mut tar = Writer::new(output);
    tar.entry(&Entry {
        path: format!("{DIRECTORY}/").into_bytes(),
        kind: Kind::Directory,
        mode: 0o755,
        ..Entry::default()
    })?;
    let segments = segments(disk, bytes)?;
    tar.entry(&Entry {
        path: format!("{DIRECTORY}/{FILE}").into_bytes(),
        mode: 0o644,
        size: bytes,
        sparse: Some(segments.clone()),
        ..Entry::default()
    })?;
    let mut buffer = vec![0; HOLE as usize];
    for segment in segments {
        let mut offset = segment.offset;
        let end = segment.offset + segment.length;
        while offset < end {
            let count =
                usize::try_from(end - offset).map_or(buffer.len(), |it| it.min(buffer.len()));
            disk.read_exact_at(&mut buffer[..count], offset)?;
            tar.data(&buffer[..count])?;
            offset += count as u64;
        }
    }
    tar.finish()?;
    Ok(())
}

/// Where a disk has data: in pieces of [`HOLE`], or larger ones where there would be too many.
fn segments(disk: &File, bytes: u64) -> io::Result<Vec<Segment>> {
    let piece = HOLE.max(bytes.div_ceil(MAX_SEGMENTS).next_multiple_of(HOLE));
    let mut segments: Vec<Segment> = Vec::new();
    let mut buffer = vec![0; usize::try_from(piece).map_err(io::Error::other)?];
    let mut offset = 0;
    while offset < bytes {
        let length = piece.min(bytes - offset);
        let part = &mut buffer[..usize::try_from(length).map_err(io::Error::other)?];
        disk.read_exact_at(part, offset)?;
        if part.iter().any(|&byte| byte != 0) {
            match segments.last_mut() {
                Some(last) if last.offset + last.length == offset => last.length += length,
                _ => segments.push(Segment { offset, length }),
            }
        }
        offset += length;
    }
    Ok(segments)
}

/// Makes the root partition of a machine's own disk as large as the disk is now.
pub(super) fn grow(disk: &File, boot: &OwnBoot, bytes: u64) -> io::Result<()> {
    match boot.root_partition {
        Some(number @ 1..) => partition::grow(disk, number, bytes).map(drop),
        _ => Ok(()),
    }
}
