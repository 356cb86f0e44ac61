//! FAT12, FAT16 and FAT32, as Microsoft's "FAT: General Overview of On-Disk Format" (1.03) has them, with
//! long names. Paths are found whatever the case of their letters.
//!
//! A reader of our own, and not the crate that makes seeds: that one takes the boot sector's numbers at
//! their word, and follows chains of clusters for as long as they go on.

use std::io;

use super::{MAX_ENTRIES, ReadError, Window};

/// Bytes of a directory's entry.
const ENTRY: usize = 32;
/// Longest directory: 65,536 entries.
const MAX_DIRECTORY: u64 = 2 << 20;
/// Most pieces of a long name, of 13 characters each.
const MAX_PIECES: usize = 20;
/// Attributes of an entry: a volume's label, a directory, a piece of a long name.
const LABEL: u8 = 0x08;
const DIRECTORY: u8 = 0x10;
const PIECE: u8 = 0x0f;
/// Clusters are counted from here.
const FIRST_CLUSTER: u32 = 2;
/// From so many clusters on, entries of the table are of 16 bits, and of 32.
const FAT16_CLUSTERS: u64 = 4085;
const FAT32_CLUSTERS: u64 = 65_525;

/// A file system of the FAT family.
pub(in super::super) struct Fat {
    window: Window,
    /// Bits of an entry of the table.
    bits: u64,
    /// Where the table begins.
    table: u64,
    /// Where the first cluster begins.
    data: u64,
    cluster_bytes: u64,
    /// How many there are.
    clusters: u64,
    root: Root,
}

/// Where the root directory is.
enum Root {
    /// Before all clusters: where, and how long.
    Fixed(u64, u64),
    /// In a chain of them.
    Chain(u32),
}

/// What an entry of a directory is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Node {
    is_directory: bool,
    first: u32,
    bytes: u64,
}

impl Fat {
    /// `None` when there is none, or one whose boot sector contradicts itself or its partition.
    pub(super) fn load(window: &Window) -> Option<Self> {
        let mut boot = [0; 512];
        window.read(0, &mut boot).ok()?;
        let half = |at: usize| u64::from(u16::from_le_bytes([boot[at], boot[at + 1]]));
        let word = |at: usize| half(at) | half(at + 2) << 16;
        let either = |short: u64, long: u64| if short == 0 { long } else { short };
        let jumps = matches!(boot[0], 0xeb | 0xe9);
        let (sector, per_cluster) = (half(11), u64::from(boot[13]));
        let (reserved, tables, root_entries) = (half(14), u64::from(boot[16]), half(17));
        if !jumps
            || boot[510..] != [0x55, 0xaa]
            || !(512..=4096).contains(&sector)
            || !sector.is_power_of_two()
            || !per_cluster.is_power_of_two()
            || reserved == 0
            || !(1..=2).contains(&tables)
        {
            return None;
        }
        let (sectors, per_table) = (either(half(19), word(32)), either(half(22), word(36)));
        let root_sectors = (root_entries * ENTRY as u64).div_ceil(sector);
        let root_sector = reserved + tables * per_table;
        let data_sector = root_sector + root_sectors;
        let clusters = sectors.checked_sub(data_sector)? / per_cluster;
        let bits = if clusters < FAT16_CLUSTERS {
            12
        } else if clusters < FAT32_CLUSTERS {
            16
        } else {
            32
        };
        let table_bytes = per_table * sector;
        let needed = ((clusters + u64::from(FIRST_CLUSTER)) * bits).div_ceil(8);
        if clusters == 0 || sectors * sector > window.bytes() || needed > table_bytes {
            return None;
        }
        let root = match bits {
            32 => Root::Chain(u32::try_from(word(44)).ok()?),
            _ => Root::Fixed(root_sector * sector, root_entries * ENTRY as u64),
        };
        Some(Self {
            window: window.again().ok()?,
            bits,
            table: reserved * sector,
            data: data_sector * sector,
            cluster_bytes: per_cluster * sector,
            clusters,
            root,
        })
    }

    pub(super) fn has(&self, path: &str) -> bool {
        self.find(path).is_some()
    }

    pub(super) fn bytes(&self, path: &str, limit: u64) -> Result<Vec<u8>, ReadError> {
        let node = self.find(path).ok_or(ReadError::Missing)?;
        if node.is_directory {
            return Err(ReadError::Unreadable);
        }
        if node.bytes > limit {
            return Err(ReadError::TooLarge);
        }
        let content = self.chain(node.first, node.bytes);
        let content = content.map_err(|_| ReadError::Unreadable)?;
        match content.len() as u64 == node.bytes {
            true => Ok(content),
            false => Err(ReadError::Unreadable),
        }
    }

    pub(super) fn names(&self, directory: &str) -> Vec<String> {
        let Some(node) = self.find(directory).filter(|it| it.is_directory) else {
            return Vec::new();
        };
        self.list(node).into_iter().map(|(name, _)| name).collect()
    }

    /// What is at a path; there are no links.
    fn find(&self, path: &str) -> Option<Node> {
        let mut here = vec![self.root()];
        for part in path.split('/') {
            match part {
                "" | "." => {}
                ".." => {
                    here.pop().filter(|_| !here.is_empty())?;
                }
                name => {
                    let directory = here.last().filter(|it| it.is_directory)?;
                    let found = self.list(*directory);
                    let found = found.iter().find(|it| it.0.eq_ignore_ascii_case(name))?;
                    here.push(found.1);
                }
            }
        }
        here.pop()
    }

    fn root(&self) -> Node {
        let first = match self.root {
            Root::Fixed(..) => 0,
            Root::Chain(first) => first,
        };
        Node {
            is_directory: true,
            first,
            bytes: 0,
        }
    }

    /// The entries of a directory, as far as they can be read.
    fn list(&self, directory: Node) -> Vec<(String, Node)> {
        let content = match (directory.first, &self.root) {
            (0, Root::Fixed(at, bytes)) => {
                let mut content = vec![0; usize::try_from(*bytes).unwrap_or_default()];
                self.window.read(*at, &mut content).map(|()| content)
            }
            (first, _) => self.chain(first, MAX_DIRECTORY),
        };
        entries(&content.unwrap_or_default())
    }

    /// The first `limit` bytes of a chain of clusters, or all of a shorter one.
    fn chain(&self, first: u32, limit: u64) -> io::Result<Vec<u8>> {
        let mut content = Vec::new();
        let mut next = (limit > 0).then_some(first);
        // One that leads back into itself ends at the limit.
        while let Some(cluster) = next {
            let number = cluster.checked_sub(FIRST_CLUSTER).map(u64::from);
            let Some(number) = number.filter(|it| *it < self.clusters) else {
                break;
            };
            let length = content.len();
            let wanted = self.cluster_bytes.min(limit - length as u64);
            content.resize(length + wanted as usize, 0);
            let at = self.data + number * self.cluster_bytes;
            self.window.read(at, &mut content[length..])?;
            if content.len() as u64 == limit {
                break;
            }
            next = Some(self.after(cluster)?);
        }
        Ok(content)
    }

    /// What the table says comes after a cluster; anything that is none ends the chain.
    fn after(&self, cluster: u32) -> io::Result<u32> {
        let bit = u64::from(cluster) * self.bits;
        let mut bytes = [0; 4];
        let length = if self.bits == 32 { 4 } else { 2 };
        let at = self.table + bit / 8;
        self.window.read(at, &mut bytes[..length])?;
        let entry = u32::from_le_bytes(bytes);
        Ok(match self.bits {
            // Two of them share three bytes.
            12 => entry >> (bit % 8) & 0xfff,
            16 => entry,
            _ => entry & 0x0fff_ffff,
        })
    }
}

/// The entries in the content of a directory, but for itself, its parent and the label.
fn entries(content: &[u8]) -> Vec<(String, Node)> {
    let mut found = Vec::new();
    let mut long = LongName::default();
    for entry in content.as_chunks::<ENTRY>().0 {
        match (entry[0], entry[11]) {
            (0, _) => break,
            // Was deleted.
            (0xe5, _) => long = LongName::default(),
            (_, PIECE) => long.push(entry),
            (b'.', _) => {}
            (_, attributes) if attributes & LABEL != 0 => long = LongName::default(),
            (_, attributes) => {
                let name = std::mem::take(&mut long).of(entry);
                let half = |at: usize| u32::from(u16::from_le_bytes([entry[at], entry[at + 1]]));
                let node = Node {
                    is_directory: attributes & DIRECTORY != 0,
                    first: half(26) | half(20) << 16,
                    bytes: u64::from(half(28) | half(30) << 16),
                };
                found.push((name, node));
                if found.len() == MAX_ENTRIES {
                    break;
                }
            }
        }
    }
    found
}

/// The pieces of a long name, which stand before the entry it is of, the last one first.
#[derive(Debug, Default)]
struct LongName {
    pieces: Vec<[u16; 13]>,
    /// The number of the piece that comes next; 0 when all are there.
    next: usize,
    checksum: u8,
}

impl LongName {
    fn push(&mut self, entry: &[u8; ENTRY]) {
        let (number, is_last) = (usize::from(entry[0] & 0x3f), entry[0] & 0x40 != 0);
        if is_last {
            *self = Self {
                pieces: Vec::new(),
                next: number,
                checksum: entry[13],
            };
        }
        if !(1..=MAX_PIECES).contains(&number) || number != self.next || entry[13] != self.checksum
        {
            *self = Self::default();
            return;
        }
        let places = (1..11).chain(14..26).chain(28..32).step_by(2);
        let mut piece = [0; 13];
        for (unit, at) in piece.iter_mut().zip(places) {
            *unit = u16::from_le_bytes([entry[at], entry[at + 1]]);
        }
        self.pieces.push(piece);
        self.next = number - 1;
    }

    /// The name of an entry: this one if it belongs to it, else its short one.
    fn of(self, entry: &[u8; ENTRY]) -> String {
        let sum = entry[..11]
            .iter()
            .fold(0_u8, |sum, byte| sum.rotate_right(1).wrapping_add(*byte));
        if self.pieces.is_empty() || self.next != 0 || self.checksum != sum {
            return short_name(entry);
        }
        let units = self.pieces.iter().rev().flatten().copied();
        let units: Vec<u16> = units.take_while(|unit| *unit != 0).collect();
        String::from_utf16_lossy(&units)
    }
}

/// A name of eight letters and three; two bits say that they are small ones.
fn short_name(entry: &[u8; ENTRY]) -> String {
    let part = |bytes: &[u8], small: bool| {
        let text: String = bytes.iter().map(|byte| char::from(*byte)).collect();
        let text = text.trim_end_matches(' ');
        match small {
            true => text.to_ascii_lowercase(),
            false => text.to_owned(),
        }
    };
    let base = part(&entry[..8], entry[12] & 0x08 != 0);
    let extension = part(&entry[8..11], entry[12] & 0x10 != 0);
    match extension.is_empty() {
        true => base,
        false => format!("{base}.{extension}"),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::{
        fs::File,
        io::{Cursor, Write},
        os::unix::fs::FileExt,
    };

    use fatfs::{FatType, FileSystem, FormatVolumeOptions, FsOptions, format_volume};
    use proptest::prelude::*;

    use super::{super::super::partition::Partition, *};

    const LONG: &str = "an-entry-with-a-name-of-more-than-thirteen-letters.conf";

    /// A file system of each kind that another implementation made, with files.
    fn made(kind: FatType, mib: usize) -> Vec<u8> {
        let mut disk = vec![0; mib << 20];
        let options = FormatVolumeOptions::new().fat_type(kind);
        format_volume(Cursor::new(&mut disk), options).unwrap();
        let files = FileSystem::new(Cursor::new(&mut disk), FsOptions::new()).unwrap();
        let root = files.root_dir();
        let entries = root
            .create_dir("loader")
            .unwrap()
            .create_dir("entries")
            .unwrap();
        // Enough to need more than one cluster.
        for number in 0..40 {
            entries
                .create_file(&format!("other-{number}.conf"))
                .unwrap();
        }
        let write = |name: &str, content: &[u8]| {
            let mut file = root.create_file(name).unwrap();
            file.write_all(content).unwrap();
        };
        write(&format!("loader/entries/{LONG}"), b"linux /VMLINUZ");
        write("VMLINUZ", &large());
        write("empty", b"");
        drop(entries);
        drop(root);
        files.unmount().unwrap();
        disk
    }

    /// Content of more than one cluster.
    fn large() -> Vec<u8> {
        (0..300_000_u32).map(|it| (it % 251) as u8).collect()
    }

    fn window(disk: &[u8]) -> Window {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(disk, 0).unwrap();
        whole(&file, disk.len() as u64)
    }

    fn whole(file: &File, bytes: u64) -> Window {
        let part = Partition {
            number: 0,
            offset: 0,
            bytes,
        };
        Window::new(file, part).unwrap()
    }

    #[test]
    fn files_of_every_kind_of_fat_are_read_as_they_were_written() {
        for (kind, mib) in [
            (FatType::Fat12, 2),
            (FatType::Fat16, 16),
            (FatType::Fat32, 64),
        ] {
            let files = Fat::load(&window(&made(kind, mib))).unwrap();
            assert_eq!(files.bytes("/vmlinuz", 1 << 20), Ok(large()), "{kind:?}");
            let directory = "/Loader/../loader/./Entries";
            let names = files.names(directory);
            assert_eq!(names.len(), 41, "{names:?}");
            assert!(names.contains(&LONG.to_owned()), "{names:?}");
            let entry = files.bytes(&format!("{directory}/{LONG}"), 100);
            assert_eq!(entry, Ok(b"linux /VMLINUZ".to_vec()));
            assert_eq!(files.bytes("empty", 0), Ok(Vec::new()));
            assert_eq!(files.bytes("/vmlinuz", 1000), Err(ReadError::TooLarge));
            assert_eq!(files.bytes("/loader", 1000), Err(ReadError::Unreadable));
            assert_eq!(files.bytes("/vmlinuz/x", 1000), Err(ReadError::Missing));
            assert!(!files.has("/loader/../../x") && files.names("/none").is_empty());
        }
    }

    #[test]
    fn a_chain_that_leads_back_into_itself_ends() {
        let mut disk = made(FatType::Fat16, 16);
        // Every cluster is followed by the third.
        let (table, bytes) = (512, 4096);
        for entry in disk[table..table + bytes].as_chunks_mut::<2>().0 {
            *entry = [3, 0];
        }
        let files = Fat::load(&window(&disk)).unwrap();
        assert!(files.names("/loader").len() <= MAX_ENTRIES);
        assert_eq!(files.bytes("/vmlinuz", 1 << 20).unwrap().len(), 300_000);
    }

    proptest! {
        /// Whatever a few bytes of it say.
        #[test]
        fn no_disk_harms_its_reader(
            changes in prop::collection::vec((0..40_000_usize, any::<u8>()), 0..40),
            boot in prop::collection::vec((11..60_usize, any::<u8>()), 0..4),
        ) {
            thread_local! {
                static DISK: Vec<u8> = made(FatType::Fat12, 1);
            }
            let mut disk = DISK.with(Clone::clone);
            for (at, byte) in changes.into_iter().chain(boot) {
                disk[at] = byte;
            }
            if let Some(files) = Fat::load(&window(&disk)) {
                for directory in ["/", "/loader", "/loader/entries"] {
                    for name in files.names(directory) {
                        let _ = files.bytes(&format!("{directory}/{name}"), 1 << 20);
                    }
                }
            }
        }
    }
}
