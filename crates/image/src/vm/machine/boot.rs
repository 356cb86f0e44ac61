//! What a disk boots by itself: kernel, initial file system and command line, found as its boot loader
//! would find them.
//!
//! Everything is read from the disk's ext4 file systems by a reader of our own process, never by mounting:
//! a disk comes from strangers, and a kernel's file system code trusts what it mounts. Looked for, in this
//! order: entries of the Boot Loader Specification, extlinux.conf, grub.cfg, and then the newest
//! `vmlinuz`.

use std::{fs::File, io::Read, os::unix::fs::FileExt};

use ext4_view::{Ext4, Ext4Read};

use super::{
    loader::{Entry, by_version, command_line, extlinux, grub, specification},
    partition::{Partition, partitions},
};

/// Largest kernel.
const MAX_KERNEL: u64 = 256 << 20;
/// Largest initial file system.
const MAX_INITRD: u64 = 512 << 20;
/// Largest configuration of a boot loader that is read.
const MAX_CONFIG: u64 = 1 << 20;
/// Largest block: 1024 bytes, doubled so often.
const MAX_LOG_BLOCK_BYTES: u64 = 6;
/// Most groups of blocks: 128 TiB of the usual ones.
const MAX_GROUPS: u64 = 1 << 20;
/// Most symbolic links on the way to a file, and longest target of one.
const MAX_LINKS: usize = 40;
const MAX_LINK_BYTES: u64 = 4096;
/// Most entries of a directory that are looked at.
const MAX_ENTRIES: usize = 4096;
/// Where boot loaders are told: in the root file system, or in one of its own for `/boot`.
const PLACES: [&str; 2] = ["/boot", ""];

/// What was found on a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    /// The kernel.
    pub kernel: Vec<u8>,
    /// Its initial file system.
    pub initrd: Option<Vec<u8>>,
    /// What it is told, `root=` included.
    pub command_line: String,
    /// The partition with the root file system, when it could be told; 0 for a disk without a table.
    pub root_partition: Option<u32>,
}

/// A disk does not boot by itself.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// No file system could be read.
    #[error(
        "no ext4 file system was found on the disk, so neither was a kernel; import a tar of its root \
         file system instead"
    )]
    NoFileSystem,
    /// There is no kernel where one is looked for.
    #[error(
        "the disk has no kernel in /boot that could be started: neither a boot loader's \
         configuration nor a vmlinuz was found"
    )]
    NoKernel,
    /// What a configuration names is not there, or is too large.
    #[error("the disk's boot loader names {path:?}, which {problem}")]
    File {
        /// What it names.
        path: String,
        /// What is wrong.
        problem: &'static str,
    },
    /// The kernel's command line is none.
    #[error("the disk's kernel is to be told something that is no line of plain text, or too long")]
    CommandLine,
    /// The disk or its file system is damaged.
    #[error("the disk cannot be read: {0}")]
    Damaged(String),
}

/// A part of a disk as a file system's reader sees it: nothing outside of it.
struct Window {
    disk: File,
    part: Partition,
}

impl Window {
    /// Whether the superblock asks for no more memory than a file system of this size needs: the reader
    /// takes what it says for its blocks and groups. See the kernel's
    /// `Documentation/filesystems/ext4/super.rst`.
    fn is_plausible(&self) -> bool {
        let mut superblock = [0; 1024];
        let read = self.part.offset.checked_add(1024);
        let read = read.map(|at| self.disk.read_exact_at(&mut superblock, at));
        if !matches!(read, Some(Ok(()))) || self.part.bytes < 2048 {
            return false;
        }
        let word = |at: usize| {
            let bytes = superblock[at..at + 4].try_into().unwrap_or_default();
            u64::from(u32::from_le_bytes(bytes))
        };
        let (blocks, log_block_bytes, per_group) =
            (word(4) | word(0x150) << 32, word(24), word(32));
        if log_block_bytes > MAX_LOG_BLOCK_BYTES || per_group == 0 {
            return false;
        }
        // The upper half counts only with a feature; where it does not, it is zero.
        let block_bytes = 1024 << log_block_bytes;
        blocks <= self.part.bytes / block_bytes && blocks / per_group <= MAX_GROUPS
    }
}

impl Ext4Read for Window {
    fn read(
        &mut self,
        start: u64,
        bytes: &mut [u8],
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let end = start.checked_add(bytes.len() as u64);
        if end.is_none_or(|end| end > self.part.bytes) {
            return Err("beyond the end of the partition".into());
        }
        Ok(self.disk.read_exact_at(bytes, self.part.offset + start)?)
    }
}

/// A file system of the disk.
struct Volume {
    number: u32,
    files: Ext4,
}

/// Finds what the disk, `bytes` long, boots.
pub(super) fn find(disk: &File, bytes: u64) -> Result<Found, BootError> {
    let damaged = |error: std::io::Error| BootError::Damaged(error.to_string());
    let mut volumes = Vec::new();
    for part in partitions(disk, bytes).map_err(damaged)? {
        let window = Window {
            disk: disk.try_clone().map_err(damaged)?,
            part,
        };
        // Others, and damaged ones, cannot be what it boots from.
        if window.is_plausible()
            && let Ok(files) = Ext4::load(Box::new(window))
        {
            let number = part.number;
            volumes.push(Volume { number, files });
        }
    }
    if volumes.is_empty() {
        return Err(BootError::NoFileSystem);
    }
    let root = volumes.iter().find(|it| it.is_root());
    for volume in &volumes {
        for place in PLACES {
            if let Some(entry) = volume.entry(place) {
                return volume.take(place, &entry, root);
            }
        }
    }
    Err(BootError::NoKernel)
}

impl Volume {
    /// Whether it looks like a system's root.
    fn is_root(&self) -> bool {
        let has = |path: &str| self.resolve(path).is_some();
        has("/etc")
            && (has("/sbin/init") || has("/usr/lib/systemd/systemd") || has("/usr/sbin/init"))
    }

    /// How a kernel is told that this is its root.
    fn root(&self, has_initrd: bool) -> String {
        match (has_initrd, self.number) {
            // Only what runs before the root is mounted knows file systems by their ids.
            (true, _) => format!("UUID={}", self.files.uuid()),
            (false, 0) => "/dev/vda".to_owned(),
            (false, number) => format!("/dev/vda{number}"),
        }
    }

    /// The path without symbolic links, if it leads to something. Links are followed here, for the reader
    /// would take as much memory as one says that its target is long.
    fn resolve(&self, path: &str) -> Option<String> {
        let parts = |path: &str| path.split('/').rev().map(str::to_owned).collect::<Vec<_>>();
        let (mut left, mut links) = (parts(path), 0);
        let mut real: Vec<String> = Vec::new();
        while let Some(part) = left.pop() {
            match part.as_str() {
                "" | "." => continue,
                ".." => {
                    real.pop();
                    continue;
                }
                _ => {}
            }
            let here = format!(
                "/{}",
                [&real[..], std::slice::from_ref(&part)].concat().join("/")
            );
            let meta = self.files.symlink_metadata(here.as_str()).ok()?;
            if !meta.is_symlink() {
                real.push(part);
                continue;
            }
            links += 1;
            if links > MAX_LINKS || meta.len() > MAX_LINK_BYTES {
                return None;
            }
            let target = self.files.read_link(here.as_str()).ok()?;
            let target = target.to_str().ok()?;
            if target.starts_with('/') {
                real.clear();
            }
            left.extend(parts(target));
        }
        Some(format!("/{}", real.join("/")))
    }

    fn text(&self, path: &str) -> Option<String> {
        let bytes = self.bytes(path, MAX_CONFIG).ok()?;
        String::from_utf8(bytes).ok()
    }

    /// A whole file of at most `limit` bytes.
    fn bytes(&self, path: &str, limit: u64) -> Result<Vec<u8>, BootError> {
        let wrong = |problem| BootError::File {
            path: path.to_owned(),
            problem,
        };
        let real = self.resolve(path).ok_or_else(|| wrong("is not there"))?;
        let mut file = self
            .files
            .open(real.as_str())
            .map_err(|_| wrong("cannot be read"))?;
        if file.metadata().len() > limit {
            return Err(wrong("is too large"));
        }
        let mut bytes = Vec::new();
        let read = (&mut file).take(limit).read_to_end(&mut bytes);
        read.map_err(|_| wrong("cannot be read"))?;
        Ok(bytes)
    }

    /// The names in a directory.
    fn names(&self, directory: &str) -> Vec<String> {
        let entries = self
            .resolve(directory)
            .map(|real| self.files.read_dir(real.as_str()));
        let Some(Ok(entries)) = entries else {
            return Vec::new();
        };
        entries
            .take(MAX_ENTRIES)
            .map_while(Result::ok)
            .filter_map(|entry| entry.file_name().as_str().ok().map(str::to_owned))
            .collect()
    }

    /// What is started from below `place`.
    fn entry(&self, place: &str) -> Option<Entry> {
        let text = |path: &str| self.text(&format!("{place}{path}"));
        let variables = ["/grub2/grubenv", "/grub/grubenv"]
            .iter()
            .find_map(|it| text(it));
        let variables = variables.unwrap_or_default();
        let specified = self.specified(place, &variables);
        let extlinux = || {
            let paths = ["/extlinux/extlinux.conf", "/syslinux/syslinux.cfg"];
            paths.iter().find_map(|path| extlinux(&text(path)?))
        };
        let grub = || {
            let paths = ["/grub/grub.cfg", "/grub2/grub.cfg"];
            paths.iter().find_map(|path| grub(&text(path)?))
        };
        specified
            .or_else(extlinux)
            .or_else(grub)
            .or_else(|| self.newest(place))
    }

    /// The newest entry of the Boot Loader Specification.
    fn specified(&self, place: &str, variables: &str) -> Option<Entry> {
        let directory = format!("{place}/loader/entries");
        let mut names = self.names(&directory);
        names.retain(|name| name.ends_with(".conf") && !name.contains("rescue"));
        names.sort_by(|a, b| by_version(b, a));
        names
            .iter()
            .find_map(|name| specification(&self.text(&format!("{directory}/{name}"))?, variables))
    }

    /// The newest kernel by its name, and the initial file system named like it.
    fn newest(&self, place: &str) -> Option<Entry> {
        let names = self.names(place);
        let mut kernels: Vec<&String> = names
            .iter()
            .filter(|name| name.starts_with("vmlinuz") && !name.contains("rescue"))
            .collect();
        kernels.sort_by(|a, b| by_version(b, a));
        let kernel = kernels.first()?;
        let version = kernel.trim_start_matches("vmlinuz");
        let like = [
            format!("initrd.img{version}"),
            format!("initramfs{version}.img"),
            format!("initrd{version}"),
            format!("initramfs{version}"),
        ];
        Some(Entry {
            kernel: format!("/{kernel}"),
            initrd: like
                .iter()
                .find(|name| names.contains(name))
                .map(|name| format!("/{name}")),
            options: String::new(),
        })
    }

    /// Takes what an entry names. A boot loader's paths begin at the file system's root; where `/boot`
    /// is no file system of its own, some are written as if it were.
    fn take(&self, place: &str, entry: &Entry, root: Option<&Self>) -> Result<Found, BootError> {
        let read = |path: &str, limit| {
            let path = format!("/{}", path.trim_start_matches('/'));
            let within = format!("{place}{path}");
            match self.bytes(&within, limit) {
                Err(BootError::File { .. }) if within != path => self.bytes(&path, limit),
                result => result,
            }
        };
        let kernel = read(&entry.kernel, MAX_KERNEL)?;
        let initrd = entry.initrd.as_deref();
        let initrd = initrd.map(|path| read(path, MAX_INITRD)).transpose()?;
        let root_word = root.map(|it| it.root(initrd.is_some()));
        let command_line = command_line(&entry.options, root_word.as_deref())?;
        Ok(Found {
            kernel,
            initrd,
            command_line,
            root_partition: root.map(|it| it.number),
        })
    }
}

/// Whatever a disk's file systems hold, looking for a kernel on it ends.
pub(crate) fn fuzz(data: &[u8]) {
    let file = rustix::fs::memfd_create("disk", rustix::fs::MemfdFlags::CLOEXEC).map(File::from);
    let Ok(file) = file else { return };
    if file.write_all_at(data, 0).is_ok() {
        let _ = find(&file, data.len() as u64);
    }
}
