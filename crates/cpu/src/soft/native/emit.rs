//! Writes the few instructions that stubs consist of besides the one they are made for (Intel SDM
//! 2, chapter 2). `rdi` points to the core, `rsi` to the memory operand.

use std::mem::offset_of;

use crate::soft::{
    Core,
    vector::{Vector, VectorState},
};

const RDI: u8 = 7;
const STATE: usize = offset_of!(Core, vector) + offset_of!(Vector, state);
const REGS: usize = offset_of!(Core, regs);

/// A stub as it grows.
#[derive(Default)]
pub(super) struct Emitter {
    bytes: Vec<u8>,
}

/// Offset of a field of the core as the displacement of an operand.
fn displacement(offset: usize) -> [u8; 4] {
    i32::try_from(offset)
        .expect("a core is far smaller than 2 GiB")
        .to_le_bytes()
}

impl Emitter {
    pub(super) fn finish(self) -> Vec<u8> {
        self.bytes
    }

    pub(super) fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// ModRM for `[rdi + disp32]`.
    fn field(&mut self, reg: u8, offset: usize) {
        self.bytes.push(0x80 | (reg & 7) << 3 | RDI);
        self.bytes.extend_from_slice(&displacement(offset));
    }

    /// `[REX] opcode reg, [rdi + offset]`.
    fn plain(&mut self, wide: bool, opcode: &[u8], reg: u8, offset: usize) {
        let rex = 0x40 | u8::from(wide) << 3 | (reg >> 3) << 2;
        if rex != 0x40 {
            self.bytes.push(rex);
        }
        self.bytes.extend_from_slice(opcode);
        self.field(reg, offset);
    }

    /// A VEX instruction with operands `reg, vvvv, [rdi + offset]`; `map`, `fields` (without vvvv)
    /// as in the third byte.
    fn vex(&mut self, map: u8, fields: u8, opcode: u8, reg: u8, vvvv: u8, offset: usize) {
        let inverted_r = if reg < 8 { 0x80 } else { 0 };
        self.bytes.extend_from_slice(&[
            0xc4,
            inverted_r | 0x60 | map,
            fields | (!vvvv & 15) << 3,
            opcode,
        ]);
        self.field(reg, offset);
    }

    /// Loads a 64-bit register from a guest register.
    pub(super) fn load_gpr(&mut self, host: u8, guest: u8) {
        self.plain(true, &[0x8b], host, REGS + 8 * usize::from(guest));
    }

    /// Stores all 64 bits to a guest register.
    pub(super) fn store_gpr(&mut self, host: u8, guest: u8) {
        self.plain(true, &[0x89], host, REGS + 8 * usize::from(guest));
    }

    fn xmm(number: u8) -> usize {
        STATE + offset_of!(VectorState, xmm) + 16 * usize::from(number)
    }

    fn ymm_high(number: u8) -> usize {
        STATE + offset_of!(VectorState, ymm_high) + 16 * usize::from(number)
    }

    /// `movups`.
    pub(super) fn load_xmm(&mut self, number: u8) {
        self.plain(false, &[0x0f, 0x10], number, Self::xmm(number));
    }

    /// `movups`.
    pub(super) fn store_xmm(&mut self, number: u8) {
        self.plain(false, &[0x0f, 0x11], number, Self::xmm(number));
    }

    /// `vmovups xmm`, and for the upper half `vinsertf128`.
    pub(super) fn load_ymm(&mut self, number: u8, upper: bool) {
        self.vex(1, 0, 0x10, number, 0, Self::xmm(number));
        if upper {
            self.vex(3, 0x05, 0x18, number, number, Self::ymm_high(number));
            self.raw(&[1]);
        }
    }

    /// `vmovups xmm` and `vextractf128`.
    pub(super) fn store_ymm(&mut self, number: u8) {
        self.vex(1, 0, 0x11, number, 0, Self::xmm(number));
        self.vex(3, 0x05, 0x19, number, 0, Self::ymm_high(number));
        self.raw(&[1]);
    }

    /// Loads `mxcsr` for the guest's instruction.
    pub(super) fn enter_mxcsr(&mut self) {
        self.plain(false, &[0x0f, 0xae], 2, Self::scratch(Vector::RUN_MXCSR));
    }

    /// Stores what the instruction made of `mxcsr`, and loads the host's.
    pub(super) fn leave_mxcsr(&mut self) {
        self.plain(false, &[0x0f, 0xae], 3, Self::scratch(Vector::RUN_MXCSR));
        self.host_mxcsr();
    }

    fn host_mxcsr(&mut self) {
        self.plain(false, &[0x0f, 0xae], 2, Self::scratch(Vector::HOST_MXCSR));
    }

    fn scratch(offset: usize) -> usize {
        offset_of!(Core, vector) + offset
    }

    /// `fxrstor64`: x87, MMX, XMM and `mxcsr` at once.
    pub(super) fn enter_x87(&mut self) {
        self.plain(true, &[0x0f, 0xae], 1, STATE);
    }

    /// `fxsave64`, then what the host expects of its own unit.
    pub(super) fn leave_x87(&mut self) {
        self.plain(true, &[0x0f, 0xae], 0, STATE);
        self.raw(&[0xdb, 0xe3]);
        self.host_mxcsr();
    }

    /// `push rdx; popfq`.
    pub(super) fn enter_flags(&mut self) {
        self.raw(&[0x52, 0x9d]);
    }

    /// `pushfq; pop rax`.
    pub(super) fn leave_flags(&mut self) {
        self.raw(&[0x9c, 0x58]);
    }

    /// `vzeroupper`.
    pub(super) fn vzeroupper(&mut self) {
        self.raw(&[0xc5, 0xf8, 0x77]);
    }

    /// `ret`.
    pub(super) fn ret(&mut self) {
        self.raw(&[0xc3]);
    }
}
