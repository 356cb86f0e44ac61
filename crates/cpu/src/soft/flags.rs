//! `rflags` of one vCPU.
//!
//! The status flags are kept as the host computed them. Guest and host are of one kind, so `add`
//! in the guest is `add` on the host, and `lahf` with `seto` catches its flags in two cheap
//! instructions: all six, also those the manuals leave undefined. Reading a condition is then a
//! test of a constant. Nothing is lazy, and nothing has to be derived from old operands.

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

/// All flags that exist; the others read zero, but for bit 1.
const KNOWN: u64 = STATUS | TF | IF | DF | IOPL | NT | RF | VM | AC | ID | 3 << 19;
/// Status flags in the low byte of `rflags`, where `lahf` finds them.
const LOW: u64 = STATUS & 0xff;

/// The six status flags, as `lahf; seto al` leaves them in `ax`: the low byte of `rflags` above,
/// overflow in bit 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status(u16);

impl Status {
    /// What a logical instruction leaves whose result is zero.
    pub const ZERO_RESULT: Self = Self::from_image(ZF | PF);

    /// From what `lahf; seto al` left in `ax`.
    #[inline(always)]
    #[must_use]
    pub const fn from_ax(ax: u16) -> Self {
        Self(ax)
    }

    /// What to put into `ax` so that `add al, 127; sahf` restores the flags.
    #[inline(always)]
    #[must_use]
    pub const fn to_ax(self) -> u16 {
        self.0
    }

    /// The status flags of an image of `rflags`.
    #[inline(always)]
    #[must_use]
    pub const fn from_image(image: u64) -> Self {
        Self((((image & LOW) | 2) << 8) as u16 | (image >> 11) as u16 & 1)
    }

    /// The status flags in their places in `rflags`.
    #[inline(always)]
    #[must_use]
    pub const fn image(self) -> u64 {
        (self.0 >> 8) as u64 & LOW | (self.0 as u64 & 1) << 11
    }

    /// The carry flag.
    #[inline(always)]
    #[must_use]
    pub const fn carry(self) -> bool {
        self.0 & 0x100 != 0
    }

    /// The same flags with another carry.
    #[inline(always)]
    #[must_use]
    pub const fn with_carry(self, carry: bool) -> Self {
        Self(self.0 & !0x100 | (carry as u16) << 8)
    }

    /// Whether a condition holds, numbered as in opcodes: `o`, `no`, `b`, `ae`, `e`, `ne`, `be`,
    /// `a`, `s`, `ns`, `p`, `np`, `l`, `ge`, `le`, `g` (Intel SDM 2, B.1.4.7).
    #[inline(always)]
    #[must_use]
    pub const fn holds<const CONDITION: u8>(self) -> bool {
        let ax = self.0;
        let less = (ax >> 15 ^ ax) & 1 != 0;
        let holds = match CONDITION >> 1 {
            0 => ax & 1 != 0,
            1 => ax & 0x100 != 0,
            2 => ax & 0x4000 != 0,
            3 => ax & 0x4100 != 0,
            4 => ax & 0x8000 != 0,
            5 => ax & 0x400 != 0,
            6 => less,
            _ => less || ax & 0x4000 != 0,
        };
        holds != (CONDITION & 1 != 0)
    }
}

/// The flags. How status flags are kept is this module's own business; everybody else reads and
/// writes them through methods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flags {
    /// All but the status flags, with bit 1.
    control: u64,
    status: Status,
}

impl Default for Flags {
    fn default() -> Self {
        Self {
            control: 2,
            status: Status::from_image(0),
        }
    }
}

impl Flags {
    /// Offset of all but the status flags, in their places in `rflags`.
    pub(in crate::soft) const CONTROL: usize = std::mem::offset_of!(Self, control);
    /// Offset of the status flags, as `lahf; seto al` leaves them, for translated code.
    pub(in crate::soft) const STATUS: usize = std::mem::offset_of!(Self, status);
    /// All of them, as `pushfq` would store them; bit 1 is always set.
    #[inline]
    #[must_use]
    pub fn get(&self) -> u64 {
        self.control | self.status.image()
    }

    /// Sets all of them; reserved bits become what they must be.
    #[inline]
    pub fn set(&mut self, image: u64) {
        self.control = image & KNOWN & !STATUS | 2;
        self.status = Status::from_image(image);
    }

    /// One flag or several: whether any of `mask` is set.
    #[inline(always)]
    #[must_use]
    pub fn any(&self, mask: u64) -> bool {
        if mask & STATUS == 0 {
            return self.control & mask != 0;
        }
        self.get() & mask != 0
    }

    /// Sets the flags in `mask` to their bits in `value`, leaving the others.
    #[inline]
    pub fn replace(&mut self, mask: u64, value: u64) {
        self.set(self.get() & !mask | value & mask);
    }

    /// The status flags.
    #[inline(always)]
    #[must_use]
    pub fn status(&self) -> Status {
        self.status
    }

    /// Sets the status flags.
    #[inline(always)]
    pub fn set_status(&mut self, status: Status) {
        self.status = status;
    }
}
