//! Writes host instructions (Intel SDM 2, chapter 2), byte by byte.
//!
//! While translated code runs, `gs` is based at the core, so every field of it is one operand away;
//! the offsets given here are those of fields of [`Core`](crate::soft::Core). The registers of the
//! host hold those of the guest of the same number, but for
//!
//! | host | holds |
//! |---|---|
//! | `rsp` | the stack of the host |
//! | `r9` | the guest's `rsp` |
//! | `r10`, `r11` | nothing from one instruction of the guest to the next |
//!
//! and the guest's own `r9` to `r11` stay in the core.

/// The guest's `rsp`.
pub(super) const GUEST_RSP: u8 = 9;
/// Scratch: addresses.
pub(super) const S0: u8 = 10;
/// Scratch: all else.
pub(super) const S1: u8 = 11;
pub(super) const RAX: u8 = 0;
pub(super) const RSP: u8 = 4;
pub(super) const RBP: u8 = 5;
/// Scale of an index of 8 bytes.
const BY_8: u8 = 3;

/// Condition codes, as in opcodes.
pub(super) mod condition {
    pub(in crate::soft::translate) const BELOW: u8 = 2;
    pub(in crate::soft::translate) const ABOVE_OR_EQUAL: u8 = 3;
    pub(in crate::soft::translate) const BELOW_OR_EQUAL: u8 = 6;
    pub(in crate::soft::translate) const EQUAL: u8 = 4;
    pub(in crate::soft::translate) const NOT_EQUAL: u8 = 5;
    pub(in crate::soft::translate) const ABOVE: u8 = 7;
}

/// Code as it grows, for the address where it will be executed.
pub(super) struct Assembler {
    bytes: Vec<u8>,
    base: usize,
}

/// A jump whose target is not known yet: where its displacement is.
#[derive(Debug, Clone, Copy)]
#[must_use]
pub(super) struct Jump(pub(super) usize);

/// An address as an instruction of the host names it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Address {
    pub(super) base: Option<u8>,
    /// Register and shift.
    pub(super) index: Option<(u8, u8)>,
    pub(super) displacement: i32,
}

impl Assembler {
    pub(super) fn new(base: usize) -> Self {
        Self {
            bytes: Vec::with_capacity(4096),
            base,
        }
    }

    /// Begins anew at an address.
    pub(super) fn restart(&mut self, base: usize) {
        self.bytes.clear();
        self.base = base;
    }

    /// What was written.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// How much was written.
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// The address of what comes next.
    pub(super) fn here(&self) -> usize {
        self.base + self.bytes.len()
    }

    pub(super) fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    pub(super) fn byte(&mut self, byte: u8) {
        self.bytes.push(byte);
    }

    fn dword(&mut self, value: u32) {
        self.raw(&value.to_le_bytes());
    }

    fn rex(&mut self, wide: bool, reg: u8, index: u8, base: u8) {
        let rex = 0x40
            | u8::from(wide) << 3
            | (reg >> 3 & 1) << 2
            | (index >> 3 & 1) << 1
            | (base >> 3 & 1);
        if rex != 0x40 {
            self.byte(rex);
        }
    }

    /// `opcode reg, gs:[offset]`.
    pub(super) fn gs(&mut self, wide: bool, opcode: &[u8], reg: u8, offset: usize) {
        self.byte(0x65);
        self.rex(wide, reg, 0, 0);
        self.raw(opcode);
        self.raw(&[(reg & 7) << 3 | 4, 0x25]);
        self.dword(offset as u32);
    }

    /// `opcode reg, gs:[offset + index * 8]`.
    pub(super) fn gs_indexed(
        &mut self,
        wide: bool,
        opcode: &[u8],
        reg: u8,
        index: u8,
        offset: usize,
    ) {
        self.byte(0x65);
        self.rex(wide, reg, index, 0);
        self.raw(opcode);
        self.raw(&[(reg & 7) << 3 | 4, BY_8 << 6 | (index & 7) << 3 | 5]);
        self.dword(offset as u32);
    }

    /// Loads all of a register from a field.
    pub(super) fn load(&mut self, reg: u8, offset: usize) {
        self.gs(true, &[0x8b], reg, offset);
    }

    /// Stores all of a register to a field.
    pub(super) fn store(&mut self, reg: u8, offset: usize) {
        self.gs(true, &[0x89], reg, offset);
    }

    /// `opcode reg, rm`, both registers.
    pub(super) fn registers(&mut self, wide: bool, opcode: &[u8], reg: u8, rm: u8) {
        self.rex(wide, reg, 0, rm);
        self.raw(opcode);
        self.byte(0xc0 | (reg & 7) << 3 | rm & 7);
    }

    /// `mov to, from`, 64 bits.
    pub(super) fn mov(&mut self, to: u8, from: u8) {
        self.registers(true, &[0x8b], to, from);
    }

    /// `xchg`, 64 bits.
    pub(super) fn exchange(&mut self, a: u8, b: u8) {
        self.registers(true, &[0x87], a, b);
    }

    /// The shortest `mov reg, value` of 64 bits; leaves the flags.
    pub(super) fn mov_value(&mut self, reg: u8, value: u64) {
        if let Ok(value) = u32::try_from(value) {
            self.rex(false, 0, 0, reg);
            self.byte(0xb8 | reg & 7);
            self.dword(value);
        } else if let Ok(value) = i32::try_from(value as i64) {
            self.rex(true, 0, 0, reg);
            self.raw(&[0xc7, 0xc0 | reg & 7]);
            self.dword(value as u32);
        } else {
            self.rex(true, 0, 0, reg);
            self.byte(0xb8 | reg & 7);
            self.raw(&value.to_le_bytes());
        }
    }

    /// `opcode reg, [address]`.
    pub(super) fn at(&mut self, wide: bool, opcode: &[u8], reg: u8, address: Address) {
        let (index, scale) = address.index.unwrap_or((RSP, 0));
        let base = address.base.unwrap_or(RBP);
        self.rex(wide, reg, index, base);
        self.raw(opcode);
        self.address(reg, address, index, scale);
    }

    fn address(&mut self, reg: u8, address: Address, index: u8, scale: u8) {
        let reg = (reg & 7) << 3;
        let short = i8::try_from(address.displacement);
        let Some(base) = address.base else {
            self.raw(&[reg | 4, scale << 6 | (index & 7) << 3 | 5]);
            self.dword(address.displacement as u32);
            return;
        };
        let form = match short {
            Ok(0) if base & 7 != RBP => 0,
            Ok(_) => 0x40,
            Err(_) => 0x80,
        };
        if address.index.is_none() && base & 7 != RSP {
            self.byte(form | reg | base & 7);
        } else {
            self.raw(&[form | reg | 4, scale << 6 | (index & 7) << 3 | base & 7]);
        }
        match (form, short) {
            (0, _) => {}
            (0x40, Ok(short)) => self.byte(short as u8),
            _ => self.dword(address.displacement as u32),
        }
    }

    /// `lea reg, [base + displacement]`, 64 bits.
    pub(super) fn lea(&mut self, reg: u8, base: u8, displacement: i32) {
        let address = Address {
            base: Some(base),
            index: None,
            displacement,
        };
        self.at(true, &[0x8d], reg, address);
    }

    /// `lea reg, [base + index]`, 64 bits.
    pub(super) fn lea_sum(&mut self, reg: u8, base: u8, index: u8) {
        let address = Address {
            base: Some(base),
            index: Some((index, 0)),
            displacement: 0,
        };
        self.at(true, &[0x8d], reg, address);
    }

    /// `rorx r11, r10, 12; and r11d, mask`: the number of a page, as the slot of its translation.
    pub(super) fn slot(&mut self, mask: u32) {
        self.raw(&[0xc4, 0x43, 0xfb, 0xf0, 0xda, 12]);
        self.raw(&[0x41, 0x81, 0xe3]);
        self.dword(mask);
    }

    /// `cmp r10, value`.
    pub(super) fn compare(&mut self, value: u32) {
        self.raw(&[0x49, 0x81, 0xfa]);
        self.dword(value);
    }

    /// `test r10, value`, sign-extended.
    pub(super) fn test(&mut self, value: i32) {
        self.raw(&[0x49, 0xf7, 0xc2]);
        self.dword(value as u32);
    }

    /// `cmp byte gs:[offset], value`.
    pub(super) fn compare_field(&mut self, offset: usize, value: u8) {
        self.gs(false, &[0x80], 7, offset);
        self.byte(value);
    }

    /// `mov byte gs:[offset], value`.
    pub(super) fn set_field(&mut self, offset: usize, value: u8) {
        self.gs(false, &[0xc6], 0, offset);
        self.byte(value);
    }

    /// `register &= gs:[offset]`, by `pext` and `pdep`: leaves the flags.
    pub(super) fn and_field(&mut self, register: u8, offset: usize) {
        let inverted = if register < 8 { 0x80 } else { 0 };
        for operation in [0xaa | 0x80, 0xab] {
            let third = operation & 0x87 | (!register & 15) << 3;
            self.raw(&[0x65, 0xc4, inverted | 0x62, third, 0xf5]);
            self.raw(&[(register & 7) << 3 | 4, 0x25]);
            self.dword(offset as u32);
        }
    }

    /// `pext r11, r10, gs:[offset]`.
    pub(super) fn hash(&mut self, offset: usize) {
        self.raw(&[0x65, 0xc4, 0x62, 0xaa, 0xf5, 0x1c, 0x25]);
        self.dword(offset as u32);
    }

    /// `lahf; seto al`.
    pub(super) fn flags_to_ax(&mut self) {
        self.raw(&[0x9f, 0x0f, 0x90, 0xc0]);
    }

    /// `add al, 127; sahf`.
    pub(super) fn flags_from_ax(&mut self) {
        self.raw(&[0x04, 0x7f, 0x9e]);
    }

    /// `jmp` to a known address.
    pub(super) fn jump_to(&mut self, target: usize) {
        self.byte(0xe9);
        self.relative(target);
    }

    /// `call` of a known address.
    pub(super) fn call(&mut self, target: usize) {
        self.byte(0xe8);
        self.relative(target);
    }

    fn relative(&mut self, target: usize) {
        let displacement = target.wrapping_sub(self.here() + 4);
        self.dword(displacement as u32);
    }

    /// `push` of a register.
    pub(super) fn push(&mut self, reg: u8) {
        self.rex(false, 0, 0, reg);
        self.byte(0x50 | reg & 7);
    }

    /// `ret`.
    pub(super) fn return_to_caller(&mut self) {
        self.byte(0xc3);
    }

    /// `cmp reg, [rsp + displacement]`.
    pub(super) fn compare_to_stack(&mut self, reg: u8, displacement: i32) {
        let address = Address {
            base: Some(RSP),
            index: None,
            displacement,
        };
        self.at(true, &[0x3b], reg, address);
    }

    /// `jcc` to a known address.
    pub(super) fn jump_to_if(&mut self, condition: u8, target: usize) {
        self.raw(&[0x0f, 0x80 | condition]);
        self.relative(target);
    }

    /// `call` of what is not known yet.
    pub(super) fn call_later(&mut self) -> Jump {
        self.byte(0xe8);
        self.dword(0);
        Jump(self.bytes.len() - 4)
    }

    /// `jmp` to what is not known yet.
    pub(super) fn jump(&mut self) -> Jump {
        self.byte(0xe9);
        self.dword(0);
        Jump(self.bytes.len() - 4)
    }

    /// `jcc` to what is not known yet.
    pub(super) fn jump_if(&mut self, condition: u8) -> Jump {
        self.raw(&[0x0f, 0x80 | condition]);
        self.dword(0);
        Jump(self.bytes.len() - 4)
    }

    /// `jrcxz` over as many bytes as `body` writes.
    pub(super) fn unless_rcx_is_zero(&mut self, body: impl FnOnce(&mut Self)) {
        self.raw(&[0xe3, 0]);
        let start = self.bytes.len();
        body(self);
        self.bytes[start - 1] = (self.bytes.len() - start) as u8;
    }

    /// Makes a jump lead here.
    pub(super) fn land(&mut self, jump: Jump) {
        let here = self.here();
        self.aim(jump, here);
    }

    /// Makes a jump lead to an address.
    pub(super) fn aim(&mut self, jump: Jump, target: usize) {
        let displacement = target.wrapping_sub(self.base + jump.0 + 4) as u32;
        self.bytes[jump.0..jump.0 + 4].copy_from_slice(&displacement.to_le_bytes());
    }
}
