//! A folder of the host as a file system for a guest: what `virtiofsd` does in a process of its own.
//!
//! ```text
//!   Request ─► Folder ─┬─ names       lookup, create, rename, remove
//!                      ├─ attributes  stat, change, extended attributes
//!                      ├─ content     open, read, write
//!                      └─ listing     directories
//!                          │
//!               nodes, handles: what the guest knows and has open, both bounded
//!                          │
//!               system: one name at a time in an open directory, links never followed
//! ```
//! The guest's kernel has checked who may do what (`default_permissions`), so requests are carried out
//! with the rights of this process; new files belong to who asks. What is not a regular file,
//! a directory or a link can be seen, and never opened here: pipes and sockets live in the guest's
//! kernel. Nothing in here takes a path of more than one name, and nothing follows a link.
//!
//! Called by one thread, which may wait for the host's disk and for nothing else.

mod attributes;
mod content;
mod handles;
mod listing;
mod names;
mod nodes;
mod system;
#[cfg(test)]
mod tests;

use std::{fmt, os::fd::OwnedFd};

use rustix::{fs::OFlags, io::Errno};

use self::{handles::Handles, nodes::Nodes, system::User};
use super::{
    FsState,
    fuse::{self, Operation, Reply, Request},
};

pub use system::{Descriptors, keep_capabilities};

/// What a guest may make the host hold for a folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FolderLimits {
    /// Most files it may know: beyond, looking up fails with `ENFILE`.
    pub nodes: usize,
    /// Most of them the host keeps descriptors of.
    pub cached_files: usize,
    /// Most files it may have open: beyond, opening fails with `ENFILE`.
    pub open_files: usize,
}

impl Default for FolderLimits {
    fn default() -> Self {
        Self {
            nodes: 1 << 18,
            cached_files: 1024,
            open_files: 2048,
        }
    }
}

/// A folder in use.
pub struct Folder {
    nodes: Nodes,
    handles: Handles,
    own: Descriptors,
    user: User,
    read_only: bool,
    /// Whether the guest has said hello, and not goodbye since.
    greeted: bool,
}

impl fmt::Debug for Folder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Folder")
            .field("read_only", &self.read_only)
            .finish_non_exhaustive()
    }
}

impl Folder {
    /// The folder `root`, a directory opened in any way. `own` is the way to the process's own
    /// descriptors.
    ///
    /// # Errors
    /// When it cannot be looked at.
    pub fn new(
        root: OwnedFd,
        own: Descriptors,
        read_only: bool,
        limits: &FolderLimits,
    ) -> std::io::Result<Self> {
        if system::kind(&system::stat(&root)?) != rustix::fs::FileType::Directory {
            return Err(Errno::NOTDIR.into());
        }
        Ok(Self {
            nodes: Nodes::new(root, limits.nodes, limits.cached_files)?,
            handles: Handles::new(limits.open_files),
            own,
            user: User::own(),
            read_only,
            greeted: false,
        })
    }

    /// What is saved of it.
    #[must_use]
    pub fn state(&self) -> FsState {
        FsState {
            greeted: self.greeted,
            next_node: self.nodes.next(),
            next_handle: self.handles.next(),
        }
    }

    /// Goes on with a guest that was saved elsewhere.
    pub fn set_state(&mut self, state: FsState) {
        self.forget_all();
        self.greeted = state.greeted;
        self.nodes.begin_at(state.next_node);
        self.handles.begin_at(state.next_handle);
    }

    /// Forgets everything of a guest.
    pub fn forget_all(&mut self) {
        self.nodes.clear();
        self.handles.clear();
        self.greeted = false;
    }

    /// Does what is asked, but for what moves content of files: [`Folder::read`] and
    /// [`Folder::write`]. `most` is how many bytes an answer may have.
    ///
    /// # Errors
    /// What to answer instead.
    pub fn call(
        &mut self,
        request: &Request<'_>,
        most: usize,
        reply: &mut Reply,
    ) -> Result<(), Errno> {
        let node = request.header.node;
        if !self.greeted && !matches!(request.operation, Operation::Init { .. }) {
            return Err(Errno::IO);
        }
        if changes(&request.operation) {
            self.writable()?;
        }
        match request.operation {
            Operation::Init {
                major,
                minor,
                max_readahead,
                flags,
            } => self.hello(major, minor, max_readahead, flags, reply),
            Operation::Destroy => {
                self.forget_all();
                Ok(())
            }
            Operation::Forget { lookups } => {
                self.nodes.forget(node, lookups);
                Ok(())
            }
            Operation::BatchForget { list } => {
                self.forget_list(list);
                Ok(())
            }
            Operation::Interrupt => Ok(()),
            Operation::Lookup { .. }
            | Operation::Symlink { .. }
            | Operation::MakeNode { .. }
            | Operation::MakeDirectory { .. }
            | Operation::Unlink { .. }
            | Operation::RemoveDirectory { .. }
            | Operation::Rename { .. }
            | Operation::Link { .. }
            | Operation::Create { .. } => self.name(request, reply),
            Operation::GetAttr { .. }
            | Operation::SetAttr(_)
            | Operation::ReadLink
            | Operation::SetXattr { .. }
            | Operation::GetXattr { .. }
            | Operation::ListXattr { .. }
            | Operation::RemoveXattr { .. }
            | Operation::StatFs => self.attribute(node, &request.operation, reply),
            Operation::Open { .. }
            | Operation::Release { .. }
            | Operation::Fsync { .. }
            | Operation::SyncFs
            | Operation::Fallocate { .. }
            | Operation::Seek { .. }
            | Operation::CopyRange { .. } => self.content(node, &request.operation, reply),
            Operation::OpenDirectory => self.open_directory(node, reply),
            Operation::ReadDirectory {
                handle,
                offset,
                size,
                plus,
            } => {
                let most = most.min(size as usize);
                self.list(handle, offset, most, plus, reply)
            }
            // Those that move content do not come here; all others the guest does without.
            Operation::Read { .. } | Operation::Write { .. } | Operation::Unknown => {
                Err(Errno::NOSYS)
            }
        }
    }

    fn hello(
        &mut self,
        major: u32,
        minor: u32,
        max_readahead: u32,
        flags: u32,
        reply: &mut Reply,
    ) -> Result<(), Errno> {
        if major > fuse::MAJOR {
            reply.other_major();
            return Ok(());
        }
        if major < fuse::MAJOR || minor < fuse::OLDEST_MINOR {
            return Err(Errno::PROTO);
        }
        self.forget_all();
        self.greeted = true;
        reply.init(minor, max_readahead, flags);
        Ok(())
    }

    fn forget_list(&mut self, list: &[u8]) {
        for one in list.chunks_exact(16) {
            let long =
                |at: usize| u64::from_le_bytes([0, 1, 2, 3, 4, 5, 6, 7].map(|byte| one[at + byte]));
            self.nodes.forget(long(0), long(8));
        }
    }

    fn writable(&self) -> Result<(), Errno> {
        if self.read_only {
            Err(Errno::ROFS)
        } else {
            Ok(())
        }
    }

    /// How to open a file as a guest asks for it: what concerns the guest alone is left out.
    fn open_flags(&self, flags: u32) -> Result<OFlags, Errno> {
        let asked = OFlags::from_bits_retain(flags);
        let access = asked & OFlags::ACCMODE;
        if access == OFlags::ACCMODE {
            return Err(Errno::INVAL);
        }
        let taken = OFlags::APPEND | OFlags::TRUNC | OFlags::SYNC | OFlags::DSYNC;
        let flags = access | asked & taken;
        if access != OFlags::RDONLY || flags.contains(OFlags::TRUNC) {
            self.writable()?;
        }
        Ok(flags)
    }
}

/// Whether a request changes the folder, whatever else it says.
fn changes(operation: &Operation<'_>) -> bool {
    matches!(
        operation,
        Operation::SetAttr(_)
            | Operation::Symlink { .. }
            | Operation::MakeNode { .. }
            | Operation::MakeDirectory { .. }
            | Operation::Unlink { .. }
            | Operation::RemoveDirectory { .. }
            | Operation::Rename { .. }
            | Operation::Link { .. }
            | Operation::Create { .. }
            | Operation::Write { .. }
            | Operation::Fallocate { .. }
            | Operation::CopyRange { .. }
            | Operation::SetXattr { .. }
            | Operation::RemoveXattr { .. }
    )
}
