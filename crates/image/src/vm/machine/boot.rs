//! What a disk boots by itself: kernel, initial file system and command line, found as its boot loader
//! would find them.
//!
//! Everything is read from the disk's file systems by readers of our own process ([`super::files`]), never by
//! mounting: a disk comes from strangers, and a kernel's file system code trusts what it mounts. Looked for,
//! in this order: entries of the Boot Loader Specification, extlinux.conf, grub.cfg, and then the newest
//! `vmlinuz`.

use std::{fs::File, os::unix::fs::FileExt};

use super::{
    files::{Files, ReadError, Window},
    loader::{Entry, by_version, command_line, extlinux, grub, specification},
    partition::partitions,
};

/// Largest kernel.
const MAX_KERNEL: u64 = 256 << 20;
/// Largest initial file system.
const MAX_INITRD: u64 = 512 << 20;
/// Largest configuration of a boot loader that is read.
const MAX_CONFIG: u64 = 1 << 20;
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
        "no ext4, XFS or FAT file system was found on the disk, so neither was a kernel; import a tar of \
         its root file system instead"
    )]
    NoFileSystem,
    /// There is no kernel on what was read, and one may be on what was not.
    #[error(
        "the disk has {}, which cannot be read here, and no kernel on any ext4, XFS or FAT file system; \
         import a tar of its root file system instead, and start it with Berth's own kernel, or with \
         its own by --kernel and --initrd",
        .0.join(" and ")
    )]
    Unread(Vec<&'static str>),
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

/// A file system of the disk.
struct Volume {
    number: u32,
    files: Files,
}

/// Finds what the disk, `bytes` long, boots.
pub(super) fn find(disk: &File, bytes: u64) -> Result<Found, BootError> {
    let damaged = |error: std::io::Error| BootError::Damaged(error.to_string());
    let (mut volumes, mut unread) = (Vec::new(), Vec::new());
    for part in partitions(disk, bytes).map_err(damaged)? {
        let window = Window::new(disk, part).map_err(damaged)?;
        // Others, and damaged ones, cannot be what it boots from.
        match Files::open(&window) {
            Some(files) => volumes.push(Volume {
                number: part.number,
                files,
            }),
            None => unread.extend(Files::unread(&window)),
        }
    }
    let root = volumes.iter().find(|it| it.is_root());
    for volume in &volumes {
        for place in PLACES {
            if let Some(entry) = volume.entry(place) {
                return volume.take(place, &entry, root);
            }
        }
    }
    unread.dedup();
    Err(match (unread.is_empty(), volumes.is_empty()) {
        (false, _) => BootError::Unread(unread),
        (true, true) => BootError::NoFileSystem,
        (true, false) => BootError::NoKernel,
    })
}

impl Volume {
    /// Whether it looks like a system's root.
    fn is_root(&self) -> bool {
        let has = |path: &str| self.files.has(path);
        has("/etc")
            && (has("/sbin/init") || has("/usr/lib/systemd/systemd") || has("/usr/sbin/init"))
    }

    /// How a kernel is told that this is its root.
    fn root(&self, has_initrd: bool) -> String {
        match (self.files.uuid().filter(|_| has_initrd), self.number) {
            // Only what runs before the root is mounted knows file systems by their ids.
            (Some(uuid), _) => format!("UUID={uuid}"),
            (None, 0) => "/dev/vda".to_owned(),
            (None, number) => format!("/dev/vda{number}"),
        }
    }

    fn text(&self, path: &str) -> Option<String> {
        let bytes = self.bytes(path, MAX_CONFIG).ok()?;
        String::from_utf8(bytes).ok()
    }

    /// A whole file of at most `limit` bytes.
    fn bytes(&self, path: &str, limit: u64) -> Result<Vec<u8>, BootError> {
        let read = self.files.bytes(path, limit);
        read.map_err(|error| BootError::File {
            path: path.to_owned(),
            problem: match error {
                ReadError::Missing => "is not there",
                ReadError::TooLarge => "is too large",
                ReadError::Unreadable => "cannot be read",
            },
        })
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
        let mut names = self.files.names(&directory);
        names.retain(|name| name.ends_with(".conf") && !name.contains("rescue"));
        names.sort_by(|a, b| by_version(b, a));
        names
            .iter()
            .find_map(|name| specification(&self.text(&format!("{directory}/{name}"))?, variables))
    }

    /// The newest kernel by its name, and the initial file system named like it.
    fn newest(&self, place: &str) -> Option<Entry> {
        let names = self.files.names(place);
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
