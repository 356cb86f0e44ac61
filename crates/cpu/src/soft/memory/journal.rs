//! What a run of some instructions wrote to memory, so that it can be taken back: for the comparison of the tiers only.
//!
//! While a core has a journal no store goes past the slow path, and that notes here what was there before. Whoever began
//! the journal looks at it in the end. What cannot be taken back is noted as such.

use std::ptr::NonNull;

/// The bytes of a store, before it.
#[derive(Debug, Clone, Copy)]
pub(in crate::soft) struct Written {
    /// Where the guest stored to; `None` where it did so by physical address.
    pub(in crate::soft) linear: Option<u64>,
    host: NonNull<u8>,
    /// 64 at most.
    pub(in crate::soft) bytes: usize,
    before: [u8; 64],
}

/// Stores in their order.
#[derive(Debug, Default)]
pub(in crate::soft) struct Journal {
    written: Vec<Written>,
    /// Something happened that cannot be taken back: a device was accessed, page tables were changed by a walk, or code
    /// was written.
    pub(in crate::soft) is_final: bool,
}

// SAFETY: the pointers lead into RAM, which outlives the core that holds this.
unsafe impl Send for Journal {}

impl Journal {
    /// Notes what lies where `bytes` are about to be stored.
    pub(super) fn note(&mut self, linear: Option<u64>, host: NonNull<u8>, bytes: usize) {
        let mut before = [0; 64];
        let Some(room) = before.get_mut(..bytes) else {
            self.is_final = true;
            return;
        };
        // SAFETY: the caller found so many bytes of RAM there.
        unsafe { std::ptr::copy_nonoverlapping(host.as_ptr(), room.as_mut_ptr(), bytes) };
        self.written.push(Written {
            linear,
            host,
            bytes,
            before,
        });
    }

    /// The stores.
    pub(in crate::soft) fn written(&self) -> &[Written] {
        &self.written
    }

    /// What lies at each of them now.
    pub(in crate::soft) fn now(&self) -> Vec<[u8; 64]> {
        let read = |it: &Written| {
            let mut now = [0; 64];
            // SAFETY: as when it was noted.
            unsafe {
                std::ptr::copy_nonoverlapping(it.host.as_ptr(), now.as_mut_ptr(), it.bytes);
            };
            now
        };
        self.written.iter().map(read).collect()
    }

    /// Takes all of them back.
    pub(in crate::soft) fn undo(&self) {
        for it in self.written.iter().rev() {
            // SAFETY: as when it was noted.
            unsafe {
                std::ptr::copy_nonoverlapping(it.before.as_ptr(), it.host.as_ptr(), it.bytes);
            };
        }
    }
}
