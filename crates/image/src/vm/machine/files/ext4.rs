//! ext4, and ext2 and ext3 with it, by the `ext4-view` crate.

use std::io::Read;

use ext4_view::{Ext4, Ext4Read};

use super::{
    MAX_ENTRIES, ReadError, Window,
    links::{self, MAX_TARGET, Step},
};

/// Largest block: 1024 bytes, doubled so often.
const MAX_LOG_BLOCK_BYTES: u64 = 6;
/// Most groups of blocks: 128 TiB of the usual ones.
const MAX_GROUPS: u64 = 1 << 20;

/// A file system of the ext family.
pub(in super::super) struct Extended(Ext4);

impl Ext4Read for Window {
    fn read(
        &mut self,
        start: u64,
        bytes: &mut [u8],
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        Ok(Self::read(self, start, bytes)?)
    }
}

/// Whether the superblock asks for no more memory than a file system of this size needs: the reader
/// takes what it says for its blocks and groups. See the kernel's
/// `Documentation/filesystems/ext4/super.rst`.
fn is_plausible(window: &Window) -> bool {
    let mut superblock = [0; 1024];
    if window.read(1024, &mut superblock).is_err() {
        return false;
    }
    let word = |at: usize| {
        let bytes = superblock[at..at + 4].try_into().unwrap_or_default();
        u64::from(u32::from_le_bytes(bytes))
    };
    let (blocks, log_block_bytes, per_group) = (word(4) | word(0x150) << 32, word(24), word(32));
    if log_block_bytes > MAX_LOG_BLOCK_BYTES || per_group == 0 {
        return false;
    }
    // The upper half counts only with a feature; where it does not, it is zero.
    let block_bytes = 1024 << log_block_bytes;
    blocks <= window.bytes() / block_bytes && blocks / per_group <= MAX_GROUPS
}

impl Extended {
    /// `None` when there is none, or a damaged one.
    pub(super) fn load(window: &Window) -> Option<Self> {
        if !is_plausible(window) {
            return None;
        }
        Ext4::load(Box::new(window.again().ok()?)).ok().map(Self)
    }

    pub(super) fn uuid(&self) -> String {
        self.0.uuid().to_string()
    }

    pub(super) fn has(&self, path: &str) -> bool {
        self.resolve(path).is_some()
    }

    /// Links are followed here, for the reader would take as much memory as one says that its target is
    /// long.
    fn resolve(&self, path: &str) -> Option<String> {
        links::resolve(path, |path| {
            let meta = self.0.symlink_metadata(path).ok()?;
            if !meta.is_symlink() {
                return Some(Step::Real);
            }
            if meta.len() > MAX_TARGET {
                return None;
            }
            let target = self.0.read_link(path).ok()?;
            Some(Step::Link(target.to_str().ok()?.to_owned()))
        })
    }

    pub(super) fn bytes(&self, path: &str, limit: u64) -> Result<Vec<u8>, ReadError> {
        let real = self.resolve(path).ok_or(ReadError::Missing)?;
        let opened = self.0.open(real.as_str());
        let mut file = opened.map_err(|_| ReadError::Unreadable)?;
        if file.metadata().len() > limit {
            return Err(ReadError::TooLarge);
        }
        let mut bytes = Vec::new();
        let read = (&mut file).take(limit).read_to_end(&mut bytes);
        read.map_err(|_| ReadError::Unreadable)?;
        Ok(bytes)
    }

    pub(super) fn names(&self, directory: &str) -> Vec<String> {
        let entries = self
            .resolve(directory)
            .map(|real| self.0.read_dir(real.as_str()));
        let Some(Ok(entries)) = entries else {
            return Vec::new();
        };
        entries
            .take(MAX_ENTRIES)
            .map_while(Result::ok)
            .filter_map(|entry| entry.file_name().as_str().ok().map(str::to_owned))
            .collect()
    }
}
