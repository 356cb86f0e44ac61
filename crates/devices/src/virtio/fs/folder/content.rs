//! What is in files. Content goes between guest memory and files in place.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
    sync::Arc,
};

use memory::GuestMemory;
use rustix::{
    fs::{FallocateFlags, FileType, Mode, OFlags, SeekFrom},
    io::Errno,
};

use super::{
    Folder,
    handles::Handle,
    system::{kind, stat},
};
use crate::virtio::{
    Buffers, HostBuffer, MAX_VECTORS,
    fs::fuse::{Operation, ROOT, Reply},
};

/// Most bytes copied for one request; the guest asks for the rest.
const MAX_COPY: u64 = 16 << 20;
/// `SEEK_DATA` and `SEEK_HOLE` of `lseek(2)`, the only ones a guest cannot do itself.
const SEEK_DATA: u32 = 3;
const SEEK_HOLE: u32 = 4;
/// Set-user-id, and set-group-id with the bit that makes it more than a mark.
const SET_UID: u16 = 0o4000;
const SET_GID: u16 = 0o2010;

impl Folder {
    /// Requests on files that are open, or are to be.
    pub(super) fn content(
        &mut self,
        node: u64,
        operation: &Operation<'_>,
        reply: &mut Reply,
    ) -> Result<(), Errno> {
        match *operation {
            Operation::Open {
                flags,
                kill_privileges,
            } => self.open(node, flags, kill_privileges, reply),
            Operation::Release { handle } => {
                self.handles.close(handle);
                Ok(())
            }
            Operation::Fsync { handle, data_only } => {
                let file = self.handles.any(handle)?;
                match data_only {
                    true => rustix::fs::fdatasync(&*file),
                    false => rustix::fs::fsync(&*file),
                }
            }
            Operation::SyncFs => {
                let root = self.nodes.file(ROOT)?;
                rustix::fs::syncfs(super::system::open_directory(&root)?)
            }
            Operation::Fallocate {
                handle,
                offset,
                length,
                mode,
            } => {
                let mode = FallocateFlags::from_bits_retain(mode);
                let known = FallocateFlags::KEEP_SIZE
                    | FallocateFlags::PUNCH_HOLE
                    | FallocateFlags::ZERO_RANGE;
                if !known.contains(mode) {
                    return Err(Errno::OPNOTSUPP);
                }
                rustix::fs::fallocate(&*self.handles.file(handle)?, mode, offset, length)
            }
            Operation::Seek {
                handle,
                offset,
                whence,
            } => {
                let to = match whence {
                    SEEK_DATA => SeekFrom::Data(offset),
                    SEEK_HOLE => SeekFrom::Hole(offset),
                    _ => return Err(Errno::INVAL),
                };
                reply.offset(rustix::fs::seek(&*self.handles.file(handle)?, to)?);
                Ok(())
            }
            Operation::CopyRange {
                from,
                mut from_offset,
                to,
                mut to_offset,
                length,
            } => {
                let (from, to) = (self.handles.file(from)?, self.handles.file(to)?);
                let copied = rustix::fs::copy_file_range(
                    &*from,
                    Some(&mut from_offset),
                    &*to,
                    Some(&mut to_offset),
                    usize::try_from(length.min(MAX_COPY)).unwrap_or(usize::MAX),
                )?;
                reply.count(u32::try_from(copied).unwrap_or(u32::MAX));
                Ok(())
            }
            _ => Err(Errno::NOSYS),
        }
    }

    fn open(
        &mut self,
        node: u64,
        flags: u32,
        kill_privileges: bool,
        reply: &mut Reply,
    ) -> Result<(), Errno> {
        self.handles.has_room()?;
        let flags = self.open_flags(flags)?;
        let file = self.own.reopen(&*self.nodes.file(node)?, flags)?;
        if kind(&stat(&file)?) == FileType::Directory {
            return Err(Errno::ISDIR);
        }
        if kill_privileges && flags.contains(OFlags::TRUNC) {
            drop_privileges(&file)?;
        }
        reply.open(self.handles.add(Handle::File(Arc::new(file))));
        Ok(())
    }

    /// Fills `buffers` from a file, as far as it goes; says how far.
    ///
    /// # Errors
    /// What to answer instead.
    pub fn read(
        &self,
        handle: u64,
        offset: u64,
        memory: &GuestMemory,
        buffers: &Buffers,
    ) -> Result<usize, Errno> {
        let file = self.handles.file(handle)?;
        let host = buffers.host(memory);
        let read = moved(&host, offset, |vectors, count, offset| {
            // SAFETY: the vectors are guest memory, borrowed for the call.
            unsafe { libc::preadv(file.as_raw_fd(), vectors, count, offset) }
        });
        // Also when it failed: some of it may have been read.
        let changed = read.map_or(buffers.bytes(), |bytes| bytes as u64);
        buffers.mark_dirty(memory, changed);
        read
    }

    /// Writes `buffers` to a file; says how much of them.
    ///
    /// # Errors
    /// What to answer instead.
    pub fn write(
        &self,
        (handle, offset): (u64, u64),
        kill_privileges: bool,
        memory: &GuestMemory,
        buffers: &Buffers,
    ) -> Result<usize, Errno> {
        self.writable()?;
        let file = self.handles.file(handle)?;
        let host = buffers.host(memory);
        let written = moved(&host, offset, |vectors, count, offset| {
            // SAFETY: as for reading.
            unsafe { libc::pwritev(file.as_raw_fd(), vectors, count, offset) }
        })?;
        if kill_privileges {
            drop_privileges(&file)?;
        }
        Ok(written)
    }
}

/// Calls until all is moved or no more comes: a call takes so many vectors at most.
fn moved(
    buffers: &[HostBuffer<'_>],
    offset: u64,
    call: impl Fn(*const libc::iovec, libc::c_int, libc::off_t) -> libc::ssize_t,
) -> Result<usize, Errno> {
    let mut total = 0;
    for vectors in HostBuffer::vectors(buffers).chunks(MAX_VECTORS) {
        let at = offset.checked_add(total as u64).map(i64::try_from);
        let Some(Ok(at)) = at else {
            return Err(Errno::INVAL);
        };
        let asked: usize = vectors.iter().map(|it| it.iov_len).sum();
        let done = call(vectors.as_ptr(), vectors.len() as libc::c_int, at);
        let Ok(done) = usize::try_from(done) else {
            // What was moved before is told, and the error when it comes again.
            return if total > 0 {
                Ok(total)
            } else {
                Err(last_error())
            };
        };
        total += done;
        if done < asked {
            break;
        }
    }
    Ok(total)
}

fn last_error() -> Errno {
    Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO)
}

/// Takes set-user-id and set-group-id from a file that was changed by who may not keep them. The kernel
/// does so too where this process has no right to keep them either.
pub(super) fn drop_privileges(file: &OwnedFd) -> Result<(), Errno> {
    let mode = stat(file)?.stx_mode;
    let mut left = mode & !SET_UID;
    if mode & SET_GID == SET_GID {
        left &= !(SET_GID & 0o7000);
    }
    if left == mode {
        return Ok(());
    }
    rustix::fs::fchmod(file, Mode::from_raw_mode(u32::from(left) & 0o7777))
}
