//! The memory of translations: written through one mapping, executed through another, so that no
//! page is ever both. Made before the process gives up its right to map executable memory.

use std::{io, ptr::NonNull};

use rustix::mm::{MapFlags, ProtFlags};

/// Room for translations. What was never written takes no memory.
pub(super) const BYTES: usize = 12 << 20;

/// Memory that one vCPU executes.
pub(super) struct Memory {
    writable: NonNull<u8>,
    executable: NonNull<u8>,
}

// SAFETY: its owner alone writes to it.
unsafe impl Send for Memory {}

impl Memory {
    pub(super) fn new() -> io::Result<Self> {
        let file = rustix::fs::memfd_create("translations", rustix::fs::MemfdFlags::CLOEXEC)?;
        rustix::fs::ftruncate(&file, BYTES as u64)?;
        let map = |protection| -> io::Result<NonNull<u8>> {
            // SAFETY: a new mapping where the kernel likes it.
            let at = unsafe {
                rustix::mm::mmap(
                    std::ptr::null_mut(),
                    BYTES,
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
            }),
            Err(error) => {
                // SAFETY: mapped above, and nobody else knows of it.
                let _ = unsafe { rustix::mm::munmap(writable.as_ptr().cast(), BYTES) };
                Err(error)
            }
        }
    }

    /// Where it is executed.
    pub(super) fn address(&self) -> usize {
        self.executable.as_ptr() as usize
    }

    /// Writes code, to be executed at `offset`. Nothing is executed meanwhile.
    pub(super) fn write(&mut self, offset: usize, code: &[u8]) {
        assert!(
            offset + code.len() <= BYTES,
            "code is written where there is room"
        );
        // SAFETY: within the mapping, which only the owner of `self` writes to.
        unsafe {
            let target = self.writable.add(offset);
            std::ptr::copy_nonoverlapping(code.as_ptr(), target.as_ptr(), code.len());
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        for mapping in [self.writable, self.executable] {
            // SAFETY: mapped by `new`; what is executed there was left.
            let _ = unsafe { rustix::mm::munmap(mapping.as_ptr().cast(), BYTES) };
        }
    }
}
