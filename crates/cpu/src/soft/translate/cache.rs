//! The memory of the translations of one vCPU.

use std::io;

use crate::soft::executable::Executable;

/// Room for translations. What was never written takes no memory.
pub(super) const BYTES: usize = 40 << 20;

/// Memory that one vCPU executes.
pub(super) struct Memory(Executable);

impl Memory {
    /// # Errors
    /// When the kernel refuses.
    pub(super) fn new() -> io::Result<Self> {
        Executable::new(c"translations", BYTES).map(Self)
    }

    /// Where it is executed.
    pub(super) fn address(&self) -> usize {
        self.0.address()
    }

    /// Returns the memory behind `offset`, nothing of which is executed any more.
    pub(super) fn clear(&mut self, offset: usize) {
        // SAFETY: its owner alone has it, and executes nothing of it meanwhile.
        unsafe { self.0.clear(offset) }
    }

    /// Writes code, to be executed at `offset`.
    pub(super) fn write(&mut self, offset: usize, code: &[u8]) {
        // SAFETY: its owner alone has it, and executes nothing of it meanwhile.
        unsafe { self.0.write(offset, code) }
    }
}
