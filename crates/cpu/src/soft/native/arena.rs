//! Memory for stubs: written through one mapping, executed through another, so that no page is
//! ever both. Made once, before the process gives up its right to map executable memory; bounded;
//! never reused, so a stub's address stays good for as long as the process lives.

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash, Hasher},
    io,
    ptr::NonNull,
    sync::{Mutex, OnceLock, PoisonError},
};

use rustix::mm::{MapFlags, ProtFlags};

/// Room for all stubs of a process. A running Debian needs a few thousand of about 60 bytes.
const BYTES: usize = 8 << 20;

/// Stubs begin at multiples of this.
const ALIGN: usize = 16;

/// The memory and what is in it.
pub(super) struct Arena {
    writable: NonNull<u8>,
    executable: NonNull<u8>,
    index: Mutex<Index>,
}

#[derive(Default)]
struct Index {
    used: usize,
    /// From a stub's hash to its offset and length. Of two stubs with one hash the later is kept:
    /// the earlier stays good, it is only not found again.
    stubs: HashMap<u64, (usize, usize)>,
}

// SAFETY: the writable mapping is written under the lock of `index` only, and only where no stub
// was handed out yet; the other is only read.
unsafe impl Send for Arena {}
// SAFETY: as above.
unsafe impl Sync for Arena {}

impl Arena {
    /// The one of this process; made by the first who asks.
    ///
    /// # Errors
    /// When the kernel gives no memory, or none that may be executed.
    pub(super) fn get() -> io::Result<&'static Self> {
        static ARENA: OnceLock<Arena> = OnceLock::new();
        if let Some(arena) = ARENA.get() {
            return Ok(arena);
        }
        let made = Self::new()?;
        Ok(ARENA.get_or_init(|| made))
    }

    fn new() -> io::Result<Self> {
        let file = rustix::fs::memfd_create("native-stubs", rustix::fs::MemfdFlags::CLOEXEC)?;
        rustix::fs::ftruncate(&file, BYTES as u64)?;
        let map = |protection| {
            // SAFETY: a new mapping, at an address of the kernel's choice.
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
        let executable = match map(ProtFlags::READ | ProtFlags::EXEC) {
            Ok(executable) => executable,
            Err(error) => {
                // SAFETY: mapped above, and nobody else knows of it.
                let _ = unsafe { rustix::mm::munmap(writable.as_ptr().cast(), BYTES) };
                return Err(error);
            }
        };
        Ok(Self {
            writable,
            executable,
            index: Mutex::default(),
        })
    }

    /// Where these bytes can be executed: where they are already, or where they are put now. `None`
    /// when there is no room left.
    pub(super) fn place(&self, stub: &[u8]) -> Option<usize> {
        let mut hasher = DefaultHasher::new();
        stub.hash(&mut hasher);
        let hash = hasher.finish();
        let mut index = self.index.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(&(offset, length)) = index.stubs.get(&hash)
            && self.read(offset, length) == stub
        {
            return Some(self.executable.as_ptr() as usize + offset);
        }
        let offset = index.used;
        let end = offset.checked_add(stub.len())?;
        if end > BYTES {
            return None;
        }
        // SAFETY: within the mapping, behind all that was handed out, under the lock. The
        // processor has not fetched these lines yet, so it cannot hold an older content.
        unsafe {
            let target = self.writable.add(offset);
            std::ptr::copy_nonoverlapping(stub.as_ptr(), target.as_ptr(), stub.len());
        }
        index.used = end.next_multiple_of(ALIGN);
        index.stubs.insert(hash, (offset, stub.len()));
        Some(self.executable.as_ptr() as usize + offset)
    }

    /// What was placed at an offset.
    fn read(&self, offset: usize, length: usize) -> &[u8] {
        // SAFETY: only asked for what was placed, which never changes.
        unsafe { std::slice::from_raw_parts(self.executable.add(offset).as_ptr(), length) }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn the_same_stub_is_placed_once_and_a_full_arena_refuses() {
        let arena = Arena::new().unwrap();
        let first = arena.place(&[0xc3; 40]).unwrap();
        assert_eq!(arena.place(&[0xc3; 40]), Some(first));
        assert_eq!(arena.place(&[0xc3; 41]), Some(first + 48));
        assert_eq!(arena.place(&vec![0; BYTES]), None);
        assert_eq!(arena.place(&[0xc3; 40]), Some(first));
    }
}
