//! When the units may be used: `cr0`, `cr4` and `xcr0` decide (Intel SDM 3A, 2.5 and 14.4).

use super::VectorState;
use crate::soft::Fault;

const CR0_PE: u64 = 1 << 0;
const CR0_MP: u64 = 1 << 1;
const CR0_EM: u64 = 1 << 2;
const CR0_TS: u64 = 1 << 3;
const CR4_OSFXSR: u64 = 1 << 9;
const CR4_OSXSAVE: u64 = 1 << 18;
const XCR0_AVX: u64 = 6;

/// Who executes an instruction: what the control registers must allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Unit {
    /// None of the units below: always allowed.
    Integer = 0,
    /// x87.
    X87 = 1 << 0,
    /// MMX.
    Mmx = 1 << 1,
    /// SSE, in legacy encoding.
    Sse = 1 << 2,
    /// AVX: vector instructions in VEX encoding; not in real mode.
    Avx = 1 << 3,
    /// `wait`.
    Wait = 1 << 4,
    /// The XSAVE family.
    Xsave = 1 << 5,
}

/// The vector and x87 units of a vCPU.
#[derive(Debug, Clone)]
pub struct Vector {
    /// Their registers.
    pub state: VectorState,
    /// `mxcsr` while the host executes a guest's instruction, and what became of it.
    pub(in crate::soft) run_mxcsr: u32,
    /// `mxcsr` to go on with after it: all exceptions masked, rounding to nearest, as the host's
    /// own code expects it.
    pub(in crate::soft) host_mxcsr: u32,
    closed: u8,
    cr0: u64,
    cr4: u64,
    xcr0: u64,
}

impl Default for Vector {
    /// As an operating system leaves them: SSE and AVX in use.
    fn default() -> Self {
        let mut unit = Self {
            state: VectorState::default(),
            run_mxcsr: 0,
            host_mxcsr: 0x1f80,
            closed: 0,
            cr0: 0,
            cr4: 0,
            xcr0: 1,
        };
        unit.set_controls(CR0_PE | CR0_MP, CR4_OSFXSR | 1 << 10 | CR4_OSXSAVE, 7);
        unit
    }
}

impl Vector {
    /// Offset of `run_mxcsr`, for generated code.
    pub(in crate::soft) const RUN_MXCSR: usize = std::mem::offset_of!(Self, run_mxcsr);
    /// Offset of the lower halves of the vector registers, for generated code.
    pub(in crate::soft) const XMM: usize =
        std::mem::offset_of!(Self, state) + std::mem::offset_of!(VectorState, xmm);
    /// Offset of the upper halves.
    pub(in crate::soft) const YMM_HIGH: usize =
        std::mem::offset_of!(Self, state) + std::mem::offset_of!(VectorState, ymm_high);
    /// Offset of `host_mxcsr`, for generated code.
    pub(in crate::soft) const HOST_MXCSR: usize = std::mem::offset_of!(Self, host_mxcsr);

    /// Says what the control registers hold; to be called at each change of one of them.
    pub fn set_controls(&mut self, cr0: u64, cr4: u64, xcr0: u64) {
        (self.cr0, self.cr4, self.xcr0) = (cr0, cr4, xcr0);
        self.closed = 0;
        for unit in [
            Unit::X87,
            Unit::Mmx,
            Unit::Sse,
            Unit::Avx,
            Unit::Wait,
            Unit::Xsave,
        ] {
            if self.refusal(unit).is_some() {
                self.closed |= unit as u8;
            }
        }
    }

    /// Whether an instruction of this unit would be admitted.
    #[inline(always)]
    pub(in crate::soft) fn is_open(&self, unit: Unit) -> bool {
        self.closed & unit as u8 == 0
    }

    /// Extended control register 0, as it was last told.
    #[must_use]
    pub fn xcr0(&self) -> u64 {
        self.xcr0
    }

    /// `cr4`, as it was last told.
    #[must_use]
    pub fn cr4(&self) -> u64 {
        self.cr4
    }

    /// Whether an instruction of this unit may be executed now.
    ///
    /// # Errors
    /// `#UD` or `#NM` when it may not.
    #[inline(always)]
    pub fn admit(&self, unit: Unit) -> Result<(), Fault> {
        if self.closed & unit as u8 != 0 {
            return Err(self.refusal(unit).unwrap_or(Fault::INVALID_OPCODE));
        }
        Ok(())
    }

    /// Why an instruction of this unit may not be executed now.
    #[cold]
    fn refusal(&self, unit: Unit) -> Option<Fault> {
        let emulated = self.cr0 & CR0_EM != 0;
        let switched = self.cr0 & CR0_TS != 0;
        let invalid = match unit {
            Unit::Integer | Unit::X87 | Unit::Wait => false,
            Unit::Mmx => emulated,
            Unit::Sse => emulated || self.cr4 & CR4_OSFXSR == 0,
            Unit::Avx => {
                self.cr0 & CR0_PE == 0
                    || self.cr4 & CR4_OSXSAVE == 0
                    || self.xcr0 & XCR0_AVX != XCR0_AVX
            }
            Unit::Xsave => self.cr4 & CR4_OSXSAVE == 0,
        };
        let unavailable = match unit {
            Unit::Integer => false,
            Unit::X87 => emulated || switched,
            Unit::Wait => self.cr0 & CR0_MP != 0 && switched,
            Unit::Mmx | Unit::Sse | Unit::Avx | Unit::Xsave => switched,
        };
        match (invalid, unavailable) {
            (true, _) => Some(Fault::INVALID_OPCODE),
            (_, true) => Some(Fault::DEVICE_NOT_AVAILABLE),
            _ => None,
        }
    }
}
