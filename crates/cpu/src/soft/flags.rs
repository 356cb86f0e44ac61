//! `rflags` of one vCPU.

/// Carry.
pub const CF: u64 = 1 << 0;
/// Parity.
pub const PF: u64 = 1 << 2;
/// Auxiliary carry.
pub const AF: u64 = 1 << 4;
/// Zero.
pub const ZF: u64 = 1 << 6;
/// Sign.
pub const SF: u64 = 1 << 7;
/// Trap after each instruction.
pub const TF: u64 = 1 << 8;
/// Interrupts are taken.
pub const IF: u64 = 1 << 9;
/// String instructions count down.
pub const DF: u64 = 1 << 10;
/// Overflow.
pub const OF: u64 = 1 << 11;
/// Privilege needed for port access.
pub const IOPL: u64 = 3 << 12;
/// Nested task.
pub const NT: u64 = 1 << 14;
/// Resume: instruction breakpoints are ignored once.
pub const RF: u64 = 1 << 16;
/// Virtual 8086 mode.
pub const VM: u64 = 1 << 17;
/// Alignment check, or access to user pages allowed (SMAP).
pub const AC: u64 = 1 << 18;
/// `cpuid` exists; guests toggle it to find out.
pub const ID: u64 = 1 << 21;
/// What arithmetic sets.
pub const STATUS: u64 = CF | PF | AF | ZF | SF | OF;

/// The flags. How status flags are kept is this module's own business; everybody else reads and
/// writes them through methods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flags {
    image: u64,
}

impl Default for Flags {
    fn default() -> Self {
        Self { image: 2 }
    }
}

impl Flags {
    /// All of them, as `pushfq` would store them; bit 1 is always set.
    #[inline]
    #[must_use]
    pub fn get(&self) -> u64 {
        self.image
    }

    /// Sets all of them; reserved bits become what they must be.
    #[inline]
    pub fn set(&mut self, image: u64) {
        const KNOWN: u64 = STATUS | TF | IF | DF | IOPL | NT | RF | VM | AC | ID | 3 << 19;
        self.image = image & KNOWN | 2;
    }

    /// One flag or several: whether any of `mask` is set.
    #[inline]
    #[must_use]
    pub fn any(&self, mask: u64) -> bool {
        self.get() & mask != 0
    }

    /// Sets the flags in `mask` to their bits in `value`, leaving the others.
    #[inline]
    pub fn replace(&mut self, mask: u64, value: u64) {
        self.set(self.get() & !mask | value & mask);
    }
}
