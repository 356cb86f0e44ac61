//! Exceptions, as a handler raises them (Intel SDM 3A, chapter 6).

/// An exception raised by the instruction at the current `rip`, before it had any effect. What
/// `cr2` must hold for a page fault is in the core already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fault {
    /// Vector, 0 to 31.
    pub vector: u8,
    /// The error code, for vectors that push one. All of them fit in 16 bits, and a
    /// [`super::Flow`] or a fault then fits in one register.
    pub code: Option<u16>,
}

impl Fault {
    /// `#DE`: divide error.
    pub const DIVIDE: Self = Self::plain(0);
    /// `#DB`: single step or a breakpoint.
    pub const DEBUG: Self = Self::plain(1);
    /// `#BR`: bound range exceeded.
    pub const BOUND: Self = Self::plain(5);
    /// `#UD`: invalid opcode.
    pub const INVALID_OPCODE: Self = Self::plain(6);
    /// `#NM`: x87 or vector unit not available (`cr0.TS`).
    pub const DEVICE_NOT_AVAILABLE: Self = Self::plain(7);
    /// `#MF`: x87 floating-point error.
    pub const X87: Self = Self::plain(16);
    /// `#XM`: SIMD floating-point error.
    pub const SIMD: Self = Self::plain(19);
    /// `#GP(0)`.
    pub const GP0: Self = Self::gp(0);

    /// `#DF`: double fault.
    pub const DOUBLE: Self = Self::coded(8, 0);

    const fn plain(vector: u8) -> Self {
        Self { vector, code: None }
    }

    const fn coded(vector: u8, code: u16) -> Self {
        Self {
            vector,
            code: Some(code),
        }
    }

    /// `#TS`: invalid task state segment.
    #[must_use]
    pub const fn ts(selector: u16) -> Self {
        Self::coded(10, selector)
    }

    /// `#NP`: segment not present.
    #[must_use]
    pub const fn np(selector: u16) -> Self {
        Self::coded(11, selector)
    }

    /// `#SS`: stack fault.
    #[must_use]
    pub const fn ss(selector: u16) -> Self {
        Self::coded(12, selector)
    }

    /// `#GP`: general protection.
    #[must_use]
    pub const fn gp(selector: u16) -> Self {
        Self::coded(13, selector)
    }

    /// `#PF`: page fault; the address is in `cr2`.
    #[must_use]
    pub const fn pf(code: u16) -> Self {
        Self::coded(14, code)
    }

    /// `#AC(0)`: alignment check.
    #[must_use]
    pub const fn ac() -> Self {
        Self::coded(17, 0)
    }
}
