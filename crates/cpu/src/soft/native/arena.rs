//! Memory for stubs. Made once, before the process gives up its right to map executable memory;
//! bounded; never reused, so a stub's address stays good for as long as the process lives. Only the slot at
//! its end is written again and again, for what came when all else was full.

use std::{
    io,
    sync::{Mutex, OnceLock, PoisonError},
};

use crate::soft::executable::Executable;

/// Room for all stubs of a process. A running Debian needs a few thousand of about 60 bytes.
const BYTES: usize = 8 << 20;

/// Room for one stub at the end.
const SLOT_BYTES: usize = 4096;

/// Stubs begin at multiples of this.
const ALIGN: usize = 16;

/// The memory and what is in it.
pub(super) struct Arena {
    /// Written under a lock only: of `used` where no stub was handed out yet, of `slot` in the slot.
    memory: Executable,
    /// Bytes handed out.
    used: Mutex<usize>,
    slot: Mutex<()>,
}

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
        Ok(Self {
            memory: Executable::new(c"native-stubs", BYTES)?,
            used: Mutex::default(),
            slot: Mutex::default(),
        })
    }

    /// Puts a stub where it can be executed. `None` when there is no room left.
    pub(super) fn place(&self, stub: &[u8]) -> Option<usize> {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let offset = *used;
        let end = offset.checked_add(stub.len())?;
        if end > BYTES - SLOT_BYTES {
            return None;
        }
        // The processor has not fetched these lines yet, so it cannot hold an older content.
        self.write(offset, stub);
        *used = end.next_multiple_of(ALIGN);
        Some(self.memory.address() + offset)
    }

    /// Puts a stub into the slot while `body` runs, which gets its address. Slow: one at a time in
    /// the whole process.
    pub(super) fn borrow<T>(&self, stub: &[u8], body: impl FnOnce(usize) -> T) -> Option<T> {
        if stub.len() > SLOT_BYTES {
            return None;
        }
        let _slot = self.slot.lock().unwrap_or_else(PoisonError::into_inner);
        let offset = BYTES - SLOT_BYTES;
        self.write(offset, stub);
        // Code that was executed at this address before is changed by another one: the processor
        // must be told (Intel SDM 3A, 9.1.3). `cpuid` serializes.
        let _ = std::arch::x86_64::__cpuid(0);
        Some(body(self.memory.address() + offset))
    }

    fn write(&self, offset: usize, stub: &[u8]) {
        // SAFETY: both callers hold the lock of that part of the memory, where nothing runs
        // meanwhile.
        unsafe { self.memory.write(offset, stub) }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn a_full_arena_still_lends_its_slot() {
        /// `mov eax, n; ret`
        fn stub(n: u8) -> [u8; 6] {
            [0xb8, n, 0, 0, 0, 0xc3]
        }
        fn call(entry: usize) -> u32 {
            // SAFETY: the stub above.
            unsafe { std::mem::transmute::<usize, extern "sysv64" fn() -> u32>(entry)() }
        }
        let arena = Arena::new().unwrap();
        let first = arena.place(&stub(1)).unwrap();
        let second = arena.place(&stub(2)).unwrap();
        assert_eq!(arena.place(&vec![0; BYTES - SLOT_BYTES]), None);
        for n in 3..100 {
            assert_eq!(arena.borrow(&stub(n), call), Some(u32::from(n)));
        }
        assert_eq!(arena.borrow(&[0xc3; SLOT_BYTES + 1], call), None);
        assert_eq!((call(first), call(second)), (1, 2));
    }
}
