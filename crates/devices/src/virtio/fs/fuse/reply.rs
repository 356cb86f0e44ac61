//! The structures of answers.

use rustix::fs::Statx;

use super::{MAJOR, MAX_IO, MINOR, init};

/// How long a guest may believe a name or attributes without asking again, in seconds: host and
/// guest both change files.
const VALID_SECONDS: u64 = 1;
/// Bytes of `struct fuse_dirent` before its name.
const DIRENT: usize = 24;
/// Bytes of `struct fuse_entry_out`.
const ENTRY: usize = 128;

/// What `struct fuse_attr` tells of a file.
#[derive(Debug, Clone, Copy)]
pub struct Attributes(Statx);

impl From<Statx> for Attributes {
    fn from(stat: Statx) -> Self {
        Self(stat)
    }
}

/// A file that was looked up.
#[derive(Debug, Clone, Copy)]
pub struct Entry {
    /// Its node; 0 for none, in listings only.
    pub node: u64,
    /// What it is.
    pub attributes: Attributes,
}

/// A directory's entry does not fit any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room;

/// An answer without its header.
#[derive(Debug, Default)]
pub struct Reply(Vec<u8>);

impl Reply {
    /// What was written.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Starts anew.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// Bytes as they are: values, targets of links.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    fn words(&mut self, words: &[u32]) {
        words.iter().for_each(|it| self.raw(&it.to_le_bytes()));
    }

    fn longs(&mut self, longs: &[u64]) {
        longs.iter().for_each(|it| self.raw(&it.to_le_bytes()));
    }

    /// `struct fuse_init_out`. `minor` is the guest's.
    pub fn init(&mut self, minor: u32, max_readahead: u32, flags: u32) {
        let minor = minor.min(MINOR);
        self.words(&[MAJOR, minor, max_readahead, flags & init::WANTED]);
        // Requests the guest may have under way in the background, and how many are many.
        let (background, congestion) = (64u32, 48u32);
        self.words(&[background | congestion << 16, MAX_IO]);
        let (granularity_ns, max_pages) = (1, MAX_IO / 4096);
        self.words(&[granularity_ns, max_pages]);
        self.words(&[0; 8]);
    }

    /// `struct fuse_init_out` to a guest of a later major version, which then asks again.
    pub fn other_major(&mut self) {
        self.words(&[MAJOR, MINOR]);
        self.raw(&[0; 56]);
    }

    fn attr(&mut self, Attributes(stat): &Attributes) {
        self.longs(&[stat.stx_ino, stat.stx_size, stat.stx_blocks]);
        let times = [stat.stx_atime, stat.stx_mtime, stat.stx_ctime];
        times
            .iter()
            .for_each(|it| self.longs(&[it.tv_sec.cast_unsigned()]));
        times.iter().for_each(|it| self.words(&[it.tv_nsec]));
        let (major, minor) = (stat.stx_rdev_major, stat.stx_rdev_minor);
        // As the kernel's `new_encode_dev`.
        let device = minor & 0xff | major << 8 | (minor & !0xff) << 12;
        let (mode, nlink) = (u32::from(stat.stx_mode), stat.stx_nlink);
        self.words(&[
            mode,
            nlink,
            stat.stx_uid,
            stat.stx_gid,
            device,
            stat.stx_blksize,
            0,
        ]);
    }

    /// `struct fuse_attr_out`.
    pub fn attributes(&mut self, attributes: &Attributes) {
        self.longs(&[VALID_SECONDS, 0]);
        self.attr(attributes);
    }

    /// `struct fuse_entry_out`.
    pub fn entry(&mut self, entry: &Entry) {
        // Numbers of nodes are not used twice: there is one generation.
        self.longs(&[entry.node, 0, VALID_SECONDS, VALID_SECONDS, 0]);
        self.attr(&entry.attributes);
    }

    /// `struct fuse_open_out`.
    pub fn open(&mut self, handle: u64) {
        self.longs(&[handle, 0]);
    }

    /// `struct fuse_write_out`, and `struct fuse_getxattr_out`.
    pub fn count(&mut self, bytes: u32) {
        self.words(&[bytes, 0]);
    }

    /// `struct fuse_lseek_out`.
    pub fn offset(&mut self, offset: u64) {
        self.longs(&[offset]);
    }

    /// `struct fuse_statfs_out`.
    pub fn statfs(&mut self, stat: &rustix::fs::StatVfs) {
        self.longs(&[
            stat.f_blocks,
            stat.f_bfree,
            stat.f_bavail,
            stat.f_files,
            stat.f_ffree,
        ]);
        let narrow = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
        self.words(&[
            narrow(stat.f_bsize),
            narrow(stat.f_namemax),
            narrow(stat.f_frsize),
        ]);
        self.words(&[0; 7]);
    }

    /// Whether an entry of a listing of at most `most` bytes still fits.
    ///
    /// # Errors
    /// When it does not.
    pub fn fits(&self, name: &[u8], plus: bool, most: usize) -> Result<(), Room> {
        let bytes = DIRENT + name.len() + if plus { ENTRY } else { 0 };
        (self.0.len() + bytes.next_multiple_of(8) <= most)
            .then_some(())
            .ok_or(Room)
    }

    /// `struct fuse_dirent`, after the `entry` of a `struct fuse_direntplus` where there is to be one.
    /// `next` is where the listing goes on after it, `kind` its `d_type`.
    pub fn dirent(&mut self, name: &[u8], inode: u64, next: u64, kind: u32) {
        self.longs(&[inode, next]);
        self.words(&[u32::try_from(name.len()).unwrap_or(0), kind]);
        self.raw(name);
        self.0.resize(self.0.len().next_multiple_of(8), 0);
    }

    /// An entry of a listing of which nothing is known: the guest looks it up when it wants it.
    pub fn no_entry(&mut self) {
        self.raw(&[0; ENTRY]);
    }
}
