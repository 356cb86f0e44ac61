//! The registers, laid out as `xsave` stores them in standard form.

use crate::soft::Fault;

/// Bits of `mxcsr` that exist; setting another one raises `#GP`.
pub const MXCSR_MASK: u32 = 0xffff;

/// Bytes of an XSAVE area in standard form with x87, SSE and AVX components.
pub(in crate::soft) const AREA_BYTES: usize = 832;

/// Offset of the XSAVE header in an area, and the size of what lies before it: the area of
/// `fxsave`.
pub(in crate::soft) const HEADER: usize = 512;

/// Offset of the upper halves of the YMM registers in an area in standard form.
pub(in crate::soft) const YMM_HIGH: usize = 576;

/// The exception flags of the status word, and their masks in the control word.
const X87_EXCEPTIONS: u16 = 0x3f;

/// ES and B.
const X87_SUMMARY: u16 = 0x8080;

/// An XSAVE area in standard form.
pub type Area = [u8; AREA_BYTES];

/// All registers of the x87 and vector units, as an XSAVE area in standard form (Intel SDM 1,
/// 13.4): components x87, SSE and AVX. Its header always says that all three are there.
#[derive(Debug, Clone, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct VectorState {
    /// x87 control word.
    pub fcw: u16,
    /// x87 status word.
    pub fsw: u16,
    /// x87 tag word, abridged: a set bit for each physical register that is not empty.
    pub ftw: u8,
    reserved_0: u8,
    /// Opcode of the last x87 instruction; reads zero unless the guest restored another one.
    pub fop: u16,
    /// Its address; likewise.
    pub fip: u64,
    /// Address of its operand; likewise.
    pub fdp: u64,
    /// Control and status of SSE and AVX.
    pub mxcsr: u32,
    /// Bits of `mxcsr` that exist.
    pub mxcsr_mask: u32,
    /// `st(0)` to `st(7)`, whose low halves are the MMX registers; ten bytes each.
    pub st: [[u8; 16]; 8],
    /// `xmm0` to `xmm15`.
    pub xmm: [[u8; 16]; 16],
    reserved_1: [u8; 96],
    xstate_bv: u64,
    reserved_2: [u64; 7],
    /// Bits 255 to 128 of `ymm0` to `ymm15`.
    pub ymm_high: [[u8; 16]; 16],
}

const _: () = assert!(size_of::<VectorState>() == AREA_BYTES);
const _: () = assert!(std::mem::offset_of!(VectorState, xstate_bv) == HEADER);
const _: () = assert!(std::mem::offset_of!(VectorState, ymm_high) == YMM_HIGH);

impl Default for VectorState {
    /// After reset and `fninit`.
    fn default() -> Self {
        Self {
            fcw: 0x37f,
            fsw: 0,
            ftw: 0,
            reserved_0: 0,
            fop: 0,
            fip: 0,
            fdp: 0,
            mxcsr: 0x1f80,
            mxcsr_mask: MXCSR_MASK,
            st: [[0; 16]; 8],
            xmm: [[0; 16]; 16],
            reserved_1: [0; 96],
            xstate_bv: 7,
            reserved_2: [0; 7],
            ymm_high: [[0; 16]; 16],
        }
    }
}

impl VectorState {
    /// Its bytes.
    #[must_use]
    pub fn area(&self) -> &Area {
        // SAFETY: `repr(C)`, of this size, without padding (asserted by the sizes of the fields),
        // and any byte of it may be read.
        unsafe { &*std::ptr::from_ref(self).cast::<Area>() }
    }

    /// From an area in standard form that `xsave` of some CPU wrote. Components it says are in
    /// their initial state are set to that, whatever their bytes; bits of `mxcsr` that do not exist
    /// are dropped.
    #[must_use]
    pub fn from_area(area: &Area) -> Self {
        let mut state = Self::default();
        let present = u64::from_le_bytes(array(area, HEADER));
        if present & 1 != 0 {
            state.set_x87(area);
        }
        if present & 2 != 0 {
            for (index, register) in state.xmm.iter_mut().enumerate() {
                *register = array(area, 160 + 16 * index);
            }
        }
        if present & 6 != 0 {
            state.mxcsr = u32::from_le_bytes(array(area, 24)) & MXCSR_MASK;
        }
        if present & 4 != 0 {
            for (index, register) in state.ymm_high.iter_mut().enumerate() {
                *register = array(area, YMM_HIGH + 16 * index);
            }
        }
        state
    }

    /// Takes the x87 component of an area that begins as that of `fxsave` does.
    pub fn set_x87(&mut self, area: &[u8]) {
        self.fcw = u16::from_le_bytes(array(area, 0)) & 0x1f7f | 0x40;
        self.fsw = u16::from_le_bytes(array(area, 2));
        self.ftw = area[4];
        self.fop = u16::from_le_bytes(array(area, 6)) & 0x7ff;
        self.fip = u64::from_le_bytes(array(area, 8));
        self.fdp = u64::from_le_bytes(array(area, 16));
        for (index, register) in self.st.iter_mut().enumerate() {
            register[..10].copy_from_slice(&area[32 + 16 * index..][..10]);
        }
        self.summarize();
    }

    /// Refuses an instruction that waits for x87 while an exception is pending there.
    ///
    /// # Errors
    /// `#MF`, as with `cr0.NE` set; the external interrupt of the time before is not known here.
    #[inline(always)]
    pub fn check_pending(&self) -> Result<(), Fault> {
        if self.fsw & !self.fcw & X87_EXCEPTIONS != 0 {
            return Err(Fault::X87);
        }
        Ok(())
    }

    /// Makes the summary bits of the status word (ES and B) say what flags and masks say.
    pub fn summarize(&mut self) {
        if self.fsw & !self.fcw & X87_EXCEPTIONS != 0 {
            self.fsw |= X87_SUMMARY;
        } else {
            self.fsw &= !X87_SUMMARY;
        }
    }

    /// What every MMX instruction does: the top of the stack is register 0, and no
    /// register is empty (`emms` empties them then).
    pub fn enter_mmx(&mut self) {
        self.st.rotate_right(usize::from(self.fsw >> 11 & 7));
        self.fsw &= !(7 << 11);
        self.ftw = 0xff;
    }

    /// Drops what the host's unit remembers of its last instruction: addresses of the host.
    #[inline(always)]
    pub fn forget_last_x87(&mut self) {
        (self.fop, self.fip, self.fdp) = (0, 0, 0);
        self.mxcsr_mask = MXCSR_MASK;
    }

    /// A YMM register, low half first.
    #[must_use]
    pub fn ymm(&self, number: usize) -> [u8; 32] {
        let mut whole = [0; 32];
        whole[..16].copy_from_slice(&self.xmm[number]);
        whole[16..].copy_from_slice(&self.ymm_high[number]);
        whole
    }

    /// Sets a YMM register, low half first.
    pub fn set_ymm(&mut self, number: usize, whole: &[u8; 32]) {
        self.xmm[number].copy_from_slice(&whole[..16]);
        self.ymm_high[number].copy_from_slice(&whole[16..]);
    }
}

/// `N` bytes of `from` at `offset`.
pub(in crate::soft) fn array<const N: usize>(from: &[u8], offset: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&from[offset..offset + N]);
    out
}
