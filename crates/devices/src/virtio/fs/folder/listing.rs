//! Directories listed.

use std::{mem::MaybeUninit, os::fd::OwnedFd, sync::Arc};

use rustix::{
    fs::{RawDir, SeekFrom},
    io::Errno,
};

use super::{
    Folder,
    handles::Handle,
    system::{open_directory, stat_at},
};
use crate::virtio::fs::fuse::{Entry, ROOT, Reply};

/// Bytes of entries the host's kernel is asked for at once.
const PIECE: usize = 16 << 10;
/// Most bytes of one answer.
const MAX_LISTING: usize = 128 << 10;

impl Folder {
    /// Opens a directory for listing.
    pub(super) fn open_directory(&mut self, node: u64, reply: &mut Reply) -> Result<(), Errno> {
        self.handles.has_room()?;
        let place = self.nodes.file(node)?;
        let directory = Arc::new(open_directory(&place)?);
        reply.open(self.handles.add(Handle::Directory(directory, node)));
        Ok(())
    }

    /// Entries of a directory from `offset` on, which is 0 or what came with an entry, as many as go
    /// into `most` bytes. With `plus` the guest is told of each as if it had looked it up.
    pub(super) fn list(
        &mut self,
        handle: u64,
        offset: u64,
        most: usize,
        plus: bool,
        reply: &mut Reply,
    ) -> Result<(), Errno> {
        let (directory, node) = self.handles.directory(handle)?;
        let most = most.min(MAX_LISTING);
        rustix::fs::seek(&*directory, SeekFrom::Start(offset))?;
        let mut piece = [MaybeUninit::uninit(); PIECE];
        let mut entries = RawDir::new(&*directory, &mut piece);
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let name = entry.file_name();
            if reply.fits(name.to_bytes(), plus, most).is_err() {
                // The guest comes again with the last offset it got; without any it never would.
                return if reply.bytes().is_empty() {
                    Err(Errno::INVAL)
                } else {
                    Ok(())
                };
            }
            let parent = name.to_bytes() == b"..";
            let mut told = (entry.ino(), u32::from(d_type(&entry)));
            if parent && node == ROOT {
                // What lies above the folder is not the guest's to know.
                told.0 = ROOT;
            }
            if plus {
                match self.told(&directory, node, name) {
                    Some(entry) => reply.entry(&entry),
                    None => reply.no_entry(),
                }
            }
            reply.dirent(name.to_bytes(), told.0, entry.next_entry_cookie(), told.1);
        }
        Ok(())
    }

    /// Tells of an entry, if that can be now: else the guest looks it up when it wants it.
    fn told(&mut self, directory: &OwnedFd, parent: u64, name: &std::ffi::CStr) -> Option<Entry> {
        if matches!(name.to_bytes(), b"." | b"..") {
            return None;
        }
        let stat = stat_at(directory, name).ok()?;
        let node = self.nodes.found(parent, name, &stat).ok()?;
        Some(Entry {
            node,
            attributes: stat.into(),
        })
    }
}

/// The `d_type` of `readdir(3)`: a file's type as in its mode, without the permissions.
fn d_type(entry: &rustix::fs::RawDirEntry<'_>) -> u8 {
    let mode = entry.file_type().as_raw_mode();
    u8::try_from(mode >> 12 & 0o17).unwrap_or(0)
}
