//! XFS of versions 4 and 5, as the kernel's `fs/xfs/libxfs/xfs_format.h` and `xfs_da_format.h` have it.
//!
//! Read are files, directories of every form and symbolic links that are short. The log is not replayed: a
//! disk that was not unmounted may lack what was written last. All numbers are big-endian, and none is used
//! before it was found to lie where it can.

use super::{
    MAX_ENTRIES, ReadError, Window,
    links::{self, MAX_TARGET, Step},
};

/// What a file system may have besides what is read, without being read otherwise for it: types in
/// directories, sparse inode chunks, another id in metadata, large times, a wish to be repaired, large counts
/// of extents, exchanged ranges, parent pointers.
const KNOWN_FEATURES: u32 = 0xff;
/// `XFS_SB_FEAT_INCOMPAT_FTYPE`, and `XFS_SB_VERSION2_FTYPE` of version 4.
const FTYPE: u32 = 1;
const FTYPE_OF_4: u32 = 0x200;
/// `XFS_DIFLAG2_NREXT64`.
const LARGE_COUNT: u64 = 1 << 4;
/// Forms of a data fork.
const LOCAL: u8 = 1;
const EXTENTS: u8 = 2;
const BTREE: u8 = 3;
/// Kinds of files in their modes.
const KIND: u16 = 0o170_000;
const DIRECTORY: u16 = 0o040_000;
const REGULAR: u16 = 0o100_000;
const LINK: u16 = 0o120_000;
/// Where directories keep what is no name of theirs: hashes, and free space.
const LEAF_OFFSET: u64 = 1 << 35;
/// Most extents of a file, and most blocks and levels of their tree.
const MAX_EXTENTS: usize = 1 << 16;
const MAX_NODES: usize = 1 << 12;
const MAX_LEVELS: u16 = 8;
/// Most bytes of a directory that are read.
const MAX_DIRECTORY: u64 = 4 << 20;

/// An XFS file system.
pub(in super::super) struct Xfs {
    window: Window,
    id: [u8; 16],
    block_bytes: u64,
    group_blocks: u64,
    groups: u64,
    inode_bytes: u64,
    /// Logarithms: of blocks in a group, of inodes in a block.
    group_log: u32,
    inodes_log: u32,
    directory_bytes: u64,
    root: u64,
    is_v5: bool,
    has_types: bool,
}

/// A file, of any kind.
struct Inode {
    kind: u16,
    form: u8,
    bytes: u64,
    extents: u64,
    /// Where its content is, or what it is.
    fork: Vec<u8>,
}

/// The extents of a file, as far as they are collected.
#[derive(Default)]
struct Extents {
    found: Vec<Extent>,
    /// Blocks of the tree that were looked at: one that leads back into itself has no other end.
    nodes: usize,
}

/// So many blocks of a file that lie together.
#[derive(Debug, Clone, Copy)]
struct Extent {
    /// The first, counted in the file.
    offset: u64,
    /// The first, as the file system counts.
    block: u64,
    blocks: u64,
    /// Reserved, and read as zeros.
    is_unwritten: bool,
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn long(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

impl Xfs {
    /// `None` when there is none, or one that is damaged or newer than this.
    pub(super) fn load(window: &Window) -> Option<Self> {
        let mut block = [0; 264];
        window.read(0, &mut block).ok()?;
        if !block.starts_with(b"XFSB") {
            return None;
        }
        let version = half(&block, 100)? & 0xf;
        let features = word(&block, 216)?;
        let is_v5 = version == 5;
        let has_types = match is_v5 {
            true => features & FTYPE != 0,
            false => word(&block, 200)? & FTYPE_OF_4 != 0,
        };
        if !matches!(version, 4 | 5) || is_v5 && features & !KNOWN_FEATURES != 0 {
            return None;
        }
        let [block_log, inode_log, inodes_log, group_log] =
            [120, 122, 123, 124].map(|it| block[it]);
        let directory_log = block[192];
        if !(9..=16).contains(&block_log)
            || !(8..=11).contains(&inode_log)
            || inodes_log.checked_add(inode_log) != Some(block_log)
            || group_log > 31
            || directory_log > 16 - block_log
        {
            return None;
        }
        let (group_blocks, groups) = (word(&block, 84)?.into(), word(&block, 88)?.into());
        let block_bytes = 1 << block_log;
        let blocks = long(&block, 8)?;
        // The last group may be a smaller one.
        let others = u64::checked_sub(groups, 1)? * group_blocks;
        if blocks > window.bytes() / block_bytes
            || others >= blocks
            || !(1..=1 << group_log).contains(&group_blocks)
        {
            return None;
        }
        Some(Self {
            window: window.again().ok()?,
            id: *block[32..].first_chunk()?,
            block_bytes,
            group_blocks,
            groups,
            inode_bytes: 1 << inode_log,
            group_log: group_log.into(),
            inodes_log: inodes_log.into(),
            directory_bytes: block_bytes << directory_log,
            root: long(&block, 56)?,
            is_v5,
            has_types,
        })
    }

    pub(super) fn uuid(&self) -> String {
        uuid::Uuid::from_bytes(self.id).to_string()
    }

    pub(super) fn has(&self, path: &str) -> bool {
        self.resolve(path).is_some()
    }

    pub(super) fn bytes(&self, path: &str, limit: u64) -> Result<Vec<u8>, ReadError> {
        let real = self.resolve(path).ok_or(ReadError::Missing)?;
        let inode = self.find(&real).ok_or(ReadError::Missing)?;
        if inode.kind != REGULAR {
            return Err(ReadError::Unreadable);
        }
        if inode.bytes > limit {
            return Err(ReadError::TooLarge);
        }
        self.content(&inode).ok_or(ReadError::Unreadable)
    }

    pub(super) fn names(&self, directory: &str) -> Vec<String> {
        let directory = self.resolve(directory).and_then(|it| self.find(&it));
        let entries = directory.map(|it| self.entries(&it)).unwrap_or_default();
        entries.into_iter().map(|(name, _)| name).collect()
    }

    fn resolve(&self, path: &str) -> Option<String> {
        links::resolve(path, |path| {
            let inode = self.find(path)?;
            if inode.kind != LINK {
                return Some(Step::Real);
            }
            // Longer ones have blocks of their own, which nothing on the way to a kernel needs.
            if inode.form != LOCAL || inode.bytes > MAX_TARGET {
                return None;
            }
            let target = inode.fork.get(..usize::try_from(inode.bytes).ok()?)?;
            Some(Step::Link(str::from_utf8(target).ok()?.to_owned()))
        })
    }

    /// What is at a path without links.
    fn find(&self, path: &str) -> Option<Inode> {
        let mut inode = self.inode(self.root)?;
        for part in path.split('/').filter(|part| !part.is_empty()) {
            let entries = self.entries(&inode);
            let (_, number) = entries.iter().find(|(name, _)| name == part)?;
            inode = self.inode(*number)?;
        }
        Some(inode)
    }

    fn inode(&self, number: u64) -> Option<Inode> {
        let in_block = number & ((1 << self.inodes_log) - 1);
        let at = self.place(number >> self.inodes_log)? + in_block * self.inode_bytes;
        let mut bytes = vec![0; usize::try_from(self.inode_bytes).ok()?];
        self.window.read(at, &mut bytes).ok()?;
        if !bytes.starts_with(b"IN") {
            return None;
        }
        let is_v3 = bytes[4] == 3;
        let start = if is_v3 { 176 } else { 100 };
        let large = is_v3 && long(&bytes, 120)? & LARGE_COUNT != 0;
        let end = match usize::from(bytes[82]) * 8 {
            0 => bytes.len(),
            attributes => start + attributes,
        };
        Some(Inode {
            kind: half(&bytes, 2)? & KIND,
            form: bytes[5],
            bytes: long(&bytes, 56)?,
            extents: match large {
                true => long(&bytes, 24)?,
                false => word(&bytes, 76)?.into(),
            },
            fork: bytes.get(start..end)?.to_vec(),
        })
    }

    /// Where a block lies, as the file system counts: its group, and its number there.
    fn place(&self, block: u64) -> Option<u64> {
        let (group, within) = (block >> self.group_log, block & ((1 << self.group_log) - 1));
        let exists = group < self.groups && within < self.group_blocks;
        exists.then(|| (group * self.group_blocks + within) * self.block_bytes)
    }

    /// The whole content of a file, or of a directory up to its leaves.
    fn content(&self, inode: &Inode) -> Option<Vec<u8>> {
        let mut content = vec![0; usize::try_from(inode.bytes).ok()?];
        let mut read = 0;
        for extent in self.extents(inode)? {
            let at = extent.offset.checked_mul(self.block_bytes)?;
            let left = content.len().checked_sub(usize::try_from(at).ok()?);
            let Some(left @ 1..) = left.filter(|_| !extent.is_unwritten) else {
                continue;
            };
            let bytes = (extent.blocks * self.block_bytes).min(left as u64) as usize;
            read += bytes;
            if read > content.len() {
                // They overlap.
                return None;
            }
            let part = &mut content[at as usize..][..bytes];
            self.window.read(self.place(extent.block)?, part).ok()?;
        }
        Some(content)
    }

    fn extents(&self, inode: &Inode) -> Option<Vec<Extent>> {
        let mut extents = Extents::default();
        match inode.form {
            EXTENTS => {
                let count = usize::try_from(inode.extents).ok()?;
                extents.push(&inode.fork, count)?;
            }
            BTREE => {
                let (level, count) = (half(&inode.fork, 0)?, half(&inode.fork, 2)?);
                let most = (inode.fork.len() - 4) / 16;
                self.descend(&inode.fork[4..], most, level, count, &mut extents)?;
            }
            _ => return None,
        }
        Some(extents.found)
    }

    /// Adds the extents below a node of the tree: `node` begins with as many keys as it has room for,
    /// and pointers follow.
    fn descend(
        &self,
        node: &[u8],
        most: usize,
        level: u16,
        count: u16,
        extents: &mut Extents,
    ) -> Option<()> {
        extents.nodes += usize::from(count);
        let is_too_large = level > MAX_LEVELS || extents.nodes > MAX_NODES;
        if level == 0 || is_too_large || usize::from(count) > most {
            return None;
        }
        for index in 0..usize::from(count) {
            let child = long(node, (most + index) * 8)?;
            let mut block = vec![0; usize::try_from(self.block_bytes).ok()?];
            self.window.read(self.place(child)?, &mut block).ok()?;
            let (magic, header) = match self.is_v5 {
                true => (b"BMA3", 72),
                false => (b"BMAP", 24),
            };
            let (below, records) = (half(&block, 4)?, half(&block, 6)?);
            if !block.starts_with(magic) || below != level - 1 {
                return None;
            }
            let body = &block[header..];
            match below {
                0 => extents.push(body, records.into())?,
                _ => self.descend(body, body.len() / 16, below, records, extents)?,
            }
        }
        Some(())
    }

    /// Names and inodes in a directory, as far as they can be read.
    fn entries(&self, inode: &Inode) -> Vec<(String, u64)> {
        let mut found = Vec::new();
        if inode.kind != DIRECTORY {
            return found;
        }
        if inode.form == LOCAL {
            // What was read before the end is what there is.
            let _ended = self.short_entries(&inode.fork, &mut found);
            return found;
        }
        for block in self.directory_blocks(inode).unwrap_or_default() {
            let _ended = self.block_entries(&block, &mut found);
        }
        found
    }

    /// The blocks of a directory that hold names.
    fn directory_blocks(&self, inode: &Inode) -> Option<Vec<Vec<u8>>> {
        let mut extents = self.extents(inode)?;
        extents.retain(|it| it.offset < LEAF_OFFSET / self.block_bytes);
        let last = extents.iter().map(|it| it.offset + it.blocks).max()?;
        let names = Inode {
            bytes: (last * self.block_bytes).min(MAX_DIRECTORY),
            kind: inode.kind,
            form: inode.form,
            extents: inode.extents,
            fork: inode.fork.clone(),
        };
        let content = self.content(&names)?;
        let bytes = usize::try_from(self.directory_bytes).ok()?;
        Some(content.chunks_exact(bytes).map(<[u8]>::to_vec).collect())
    }

    /// Entries in the inode itself.
    fn short_entries(&self, fork: &[u8], found: &mut Vec<(String, u64)>) -> Option<()> {
        let (count, large) = (*fork.first()?, *fork.get(1)? > 0);
        let number_bytes = if large { 8 } else { 4 };
        let mut at = 2 + number_bytes;
        for _ in 0..count {
            let length = usize::from(*fork.get(at)?);
            let name = fork.get(at + 3..at + 3 + length)?;
            at += 3 + length + usize::from(self.has_types);
            let number = match large {
                true => long(fork, at)?,
                false => word(fork, at)?.into(),
            };
            push_name(name, number, found);
            at += number_bytes;
        }
        Some(())
    }

    /// Entries in a block of names.
    fn block_entries(&self, block: &[u8], found: &mut Vec<(String, u64)>) -> Option<()> {
        let mut at = if self.is_v5 { 64 } else { 16 };
        let end = match block.first_chunk()? {
            b"XD2D" | b"XDD3" => block.len(),
            // The only one also has the hashes, at its end.
            b"XD2B" | b"XDB3" => {
                let hashes = usize::try_from(word(block, block.len() - 8)?).ok()?;
                block.len().checked_sub(8 + hashes.checked_mul(8)?)?
            }
            _ => return None,
        };
        while at < end && found.len() < MAX_ENTRIES {
            if half(block, at)? == 0xffff {
                let free = usize::from(half(block, at + 2)?);
                at += free.max(8);
                continue;
            }
            let (number, length) = (long(block, at)?, usize::from(*block.get(at + 8)?));
            push_name(block.get(at + 9..at + 9 + length)?, number, found);
            // Name, perhaps a type, and where it lies.
            at += (9 + length + usize::from(self.has_types) + 2).next_multiple_of(8);
        }
        Some(())
    }
}

/// Keeps an entry with a name that can be one here.
fn push_name(name: &[u8], number: u64, found: &mut Vec<(String, u64)>) {
    if let Ok(name) = str::from_utf8(name)
        && !matches!(name, "." | ".." | "")
        && found.len() < MAX_ENTRIES
    {
        found.push((name.to_owned(), number));
    }
}

impl Extents {
    /// Adds so many records.
    fn push(&mut self, records: &[u8], count: usize) -> Option<()> {
        if self.found.len().checked_add(count)? > MAX_EXTENTS {
            return None;
        }
        for index in 0..count {
            let (high, low) = (long(records, index * 16)?, long(records, index * 16 + 8)?);
            self.found.push(Extent {
                offset: high >> 9 & ((1 << 54) - 1),
                block: (high & 0x1ff) << 43 | low >> 21,
                blocks: low & 0x1f_ffff,
                is_unwritten: high >> 63 != 0,
            });
        }
        Some(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::{
        fmt::Write as _,
        fs::{self, File},
        io::Write as _,
        os::unix::fs::FileExt,
        path::{Path, PathBuf},
        process::Command,
    };

    use proptest::prelude::*;

    use super::{super::super::partition::Partition, *};

    const KERNEL: &[u8] = b"not really a kernel";

    /// Content of more than one block.
    fn large() -> Vec<u8> {
        (0..300_000_u32).map(|it| (it % 251) as u8).collect()
    }

    /// A file system that mkfs.xfs made with these options, with files; `None`, said loudly, without it.
    fn made(test: &str, directory: &Path, options: &[&str]) -> Option<PathBuf> {
        let content = |name: &str, bytes: &[u8]| {
            let path = directory.join(name);
            fs::write(&path, bytes).unwrap();
            path.display().to_string()
        };
        let (kernel, large) = (content("kernel", KERNEL), content("large", &large()));
        let mut files = String::new();
        for number in 0..300 {
            let name = format!("a-file-with-a-name-of-some-length-{number}");
            writeln!(files, "  {name} ---644 0 0 {kernel}").unwrap();
        }
        let proto = format!(
            "/dev/null\n0 0\nd--755 0 0\n boot d--755 0 0\n  vmlinuz ---644 0 0 {kernel}\n  large ---644 0 0 {large}\n $\n \
             usr d--755 0 0\n  many d--755 0 0\n{files}  $\n $\n lib l--777 0 0 usr/many\n \
             loop l--777 0 0 loop\n$\n"
        );
        let (proto, disk) = (content("proto", proto.as_bytes()), directory.join("disk"));
        File::create(&disk).unwrap().set_len(320 << 20).unwrap();
        let mut make = Command::new("mkfs.xfs");
        make.args(["-q", "-f", "-p", &proto]).args(options);
        match make.arg(&disk).output() {
            Ok(output) => assert!(output.status.success(), "{output:?}"),
            Err(error) => {
                let _ = writeln!(std::io::stderr(), "SKIP {test}: mkfs.xfs: {error}");
                return None;
            }
        }
        Some(disk)
    }

    fn open(disk: &Path) -> (File, Window) {
        let file = File::options().read(true).write(true).open(disk).unwrap();
        let part = Partition {
            number: 0,
            offset: 0,
            bytes: file.metadata().unwrap().len(),
        };
        let window = Window::new(&file, part).unwrap();
        (file, window)
    }

    #[test]
    fn files_of_every_version_are_read_as_they_were_written() {
        let test = "files_of_every_version_are_read_as_they_were_written";
        let kinds: [&[&str]; 4] = [
            &[],
            &["-m", "crc=0"],
            &["-b", "size=1024", "-n", "size=8192"],
            &["-i", "size=2048"],
        ];
        for options in kinds {
            let directory = tempfile::tempdir().unwrap();
            let Some(disk) = made(test, directory.path(), options) else {
                return;
            };
            let files = Xfs::load(&open(&disk).1).unwrap();
            assert_eq!(files.bytes("/boot/vmlinuz", 100).as_deref(), Ok(KERNEL));
            assert_eq!(files.bytes("boot/../boot/large", 1 << 20), Ok(large()));
            let mut names = files.names("/boot");
            names.sort();
            assert_eq!(names, ["large", "vmlinuz"]);
            // By way of a link, in a directory of many blocks.
            assert_eq!(files.names("/lib").len(), 300, "{options:?}");
            let name = "/lib/a-file-with-a-name-of-some-length-299";
            assert_eq!(files.bytes(name, 100).as_deref(), Ok(KERNEL));
            assert_eq!(files.bytes("/boot/large", 10), Err(ReadError::TooLarge));
            assert_eq!(files.bytes("/boot", 10), Err(ReadError::Unreadable));
            assert!(!files.has("/loop") && !files.has("/boot/vmlinuz/x"));
            let probe = Command::new("blkid")
                .args(["-o", "value", "-s", "UUID"])
                .arg(&disk)
                .output();
            if let Ok(probe) = probe {
                assert_eq!(String::from_utf8_lossy(&probe.stdout).trim(), files.uuid());
            }
        }
    }

    #[test]
    fn no_disk_harms_its_reader() {
        let directory = tempfile::tempdir().unwrap();
        let Some(disk) = made(
            "no_disk_harms_its_reader",
            directory.path(),
            &["-n", "ftype=1"],
        ) else {
            return;
        };
        let (file, window) = open(&disk);
        // The superblock; the inodes; and what blocks begin with, all of which lies there.
        let inodes = 128 * 512_u64;
        let places = prop_oneof![
            0..264_u64,
            inodes..inodes + 16_384,
            inodes..inodes + (4 << 20)
        ];
        let changes = prop::collection::vec((places, any::<u8>()), 0..40);
        proptest!(ProptestConfig::with_cases(200), |(changes in changes)| {
            let mut before = Vec::new();
            for (at, byte) in changes {
                let mut old = [0];
                file.read_exact_at(&mut old, at).unwrap();
                file.write_all_at(&[byte], at).unwrap();
                before.push((at, old));
            }
            if let Some(files) = Xfs::load(&window) {
                for directory in ["/", "/boot", "/lib"] {
                    for name in files.names(directory).iter().take(10) {
                        let _ = files.bytes(&format!("{directory}/{name}"), 1 << 20);
                    }
                }
            }
            for (at, old) in before.into_iter().rev() {
                file.write_all_at(&old, at).unwrap();
            }
        });
    }
}
