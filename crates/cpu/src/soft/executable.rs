//! Memory for code made here: written through one mapping and executed through another, so that no
//! page is ever both. Made before the process gives up its right to map executable memory.
//!
//! `native` keeps stubs in one of the whole process, `translate` the translations of a vCPU in one of
//! its own. What lies where, and that nothing is written where something runs, is their business.

use std::{ffi::CStr, io, ptr::NonNull};

use rustix::mm::{MapFlags, ProtFlags};

/// Memory mapped twice. What was never written takes none of the host's.
pub(in crate::soft) struct Executable {
    writable: NonNull<u8>,
    executable: NonNull<u8>,
    bytes: usize,
}

// SAFETY: it is two addresses of memory that it owns.
unsafe impl Send for Executable {}
// SAFETY: writing through a shared reference is unsafe, and the caller's to order.
unsafe impl Sync for Executable {}

impl Executable {
    /// So many bytes, shown to the host's administrator by a name.
    ///
    /// # Errors
    /// When the kernel gives no memory, or none that may be executed.
    pub(in crate::soft) fn new(name: &CStr, bytes: usize) -> io::Result<Self> {
        let file = rustix::fs::memfd_create(name, rustix::fs::MemfdFlags::CLOEXEC)?;
        rustix::fs::ftruncate(&file, bytes as u64)?;
        let map = |protection| -> io::Result<NonNull<u8>> {
            // SAFETY: a new mapping, at an address of the kernel's choice.
            let at = unsafe {
                rustix::mm::mmap(
                    std::ptr::null_mut(),
                    bytes,
                    protection,
                    MapFlags::SHARED,
                    &file,
                    0,
                )
            }?;
            NonNull::new(at.cast::<u8>()).ok_or(io::Error::from(io::ErrorKind::OutOfMemory))
        };
        let writable = map(ProtFlags::READ | ProtFlags::WRITE)?;
        match map(ProtFlags::READ | ProtFlags::EXEC) {
            Ok(executable) => Ok(Self {
                writable,
                executable,
                bytes,
            }),
            Err(error) => {
                // SAFETY: mapped above, and nobody else knows of it.
                let _ = unsafe { rustix::mm::munmap(writable.as_ptr().cast(), bytes) };
                Err(error)
            }
        }
    }

    /// Where it is executed.
    pub(in crate::soft) fn address(&self) -> usize {
        self.executable.as_ptr() as usize
    }

    /// Writes code, to be executed at `offset`.
    ///
    /// # Safety
    /// Nobody writes or executes these bytes meanwhile.
    ///
    /// # Panics
    /// When it is past the end.
    pub(in crate::soft) unsafe fn write(&self, offset: usize, code: &[u8]) {
        let end = offset.checked_add(code.len());
        assert!(
            end.is_some_and(|end| end <= self.bytes),
            "code is written where there is room"
        );
        // SAFETY: within the mapping, and the caller keeps others away.
        unsafe {
            let target = self.writable.add(offset);
            std::ptr::copy_nonoverlapping(code.as_ptr(), target.as_ptr(), code.len());
        }
    }

    /// Returns whole pages behind `offset` to the kernel. They are zero when they are next written
    /// to.
    ///
    /// # Safety
    /// Nobody writes or executes these bytes meanwhile.
    pub(in crate::soft) unsafe fn clear(&self, offset: usize) {
        let first = offset.next_multiple_of(rustix::param::page_size());
        let Some(bytes) = self.bytes.checked_sub(first) else {
            return;
        };
        // SAFETY: within the mapping, and the caller keeps others away.
        let _kept = unsafe {
            libc::madvise(
                self.writable.as_ptr().add(first).cast(),
                bytes,
                libc::MADV_REMOVE,
            )
        };
    }
}

impl Drop for Executable {
    fn drop(&mut self) {
        for mapping in [self.writable, self.executable] {
            // SAFETY: mapped by `new`; who made it no longer executes it.
            let _ = unsafe { rustix::mm::munmap(mapping.as_ptr().cast(), self.bytes) };
        }
    }
}
