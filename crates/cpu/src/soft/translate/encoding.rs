//! The bytes of an instruction, taken apart and put together again with other registers and with
//! its memory operand at `[r10]` (Intel SDM 2, chapter 2).

use super::{
    emit::{Assembler, S0},
    form::Form,
};

const REX_W: u8 = 8;
const MEMORY_AT_S0: u8 = S0 & 7;

/// An instruction in its parts.
#[derive(Debug, Clone, Copy)]
pub(super) struct Encoding<'a> {
    /// Prefixes that change what it does: `66`, `f2`, `f3`, `f0`.
    prefixes: [u8; 4],
    prefix_count: usize,
    rex: Option<u8>,
    /// The second and third byte of a three-byte VEX prefix.
    vex: Option<(u8, u8)>,
    opcode: &'a [u8],
    modrm: u8,
    immediate: &'a [u8],
    has_modrm: bool,
}

/// Registers of the host in place of those named; in memory operands, `rm` is ignored.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Named {
    pub(super) reg: u8,
    pub(super) rm: u8,
    pub(super) vvvv: u8,
    pub(super) opcode: u8,
}

impl<'a> Encoding<'a> {
    /// Takes the bytes of one instruction of 64-bit code apart.
    pub(super) fn parse(bytes: &'a [u8], has_modrm: bool) -> Option<Self> {
        let mut parsed = Self {
            prefixes: [0; 4],
            prefix_count: 0,
            rex: None,
            vex: None,
            opcode: &[],
            modrm: 0,
            immediate: &[],
            has_modrm,
        };
        let mut at = 0;
        loop {
            let byte = *bytes.get(at)?;
            match byte {
                0x66 | 0xf2 | 0xf3 | 0xf0 => {
                    parsed.rex = None;
                    *parsed.prefixes.get_mut(parsed.prefix_count)? = byte;
                    parsed.prefix_count += 1;
                }
                0x26 | 0x2e | 0x36 | 0x3e | 0x64 | 0x65 | 0x67 => parsed.rex = None,
                0x40..=0x4f => parsed.rex = Some(byte),
                _ => break,
            }
            at += 1;
        }
        let start = match *bytes.get(at)? {
            0xc5 => {
                let second = *bytes.get(at + 1)?;
                // R is in both, X and B are clear (inverted), the map is 0f.
                parsed.vex = Some((second & 0x80 | 0x61, second & 0x7f));
                at += 2;
                at
            }
            0xc4 => {
                parsed.vex = Some((*bytes.get(at + 1)?, *bytes.get(at + 2)?));
                at += 3;
                at
            }
            0x0f => {
                let start = at;
                at += 1;
                if matches!(*bytes.get(at)?, 0x38 | 0x3a) {
                    at += 1;
                }
                start
            }
            _ => at,
        };
        at += 1;
        parsed.opcode = bytes.get(start..at)?;
        if has_modrm {
            parsed.modrm = *bytes.get(at)?;
            at += 1 + tail(parsed.modrm, bytes.get(at + 1).copied());
        }
        parsed.immediate = bytes.get(at..)?;
        Some(parsed)
    }

    /// The registers it names.
    pub(super) fn named(&self) -> Named {
        let (r, b, vvvv) = match (self.vex, self.rex) {
            (Some((first, second)), _) => (!first >> 7 & 1, !first >> 5 & 1, !second >> 3 & 15),
            (None, Some(rex)) => (rex >> 2 & 1, rex & 1, 0),
            (None, None) => (0, 0, 0),
        };
        Named {
            reg: self.modrm >> 3 & 7 | r << 3,
            rm: self.modrm & 7 | b << 3,
            vvvv,
            opcode: self.opcode[self.opcode.len() - 1] & 7 | b << 3,
        }
    }

    /// Whether its operand is in memory.
    pub(super) fn in_memory(&self) -> bool {
        self.has_modrm && self.modrm >> 6 != 3
    }

    /// Whether a byte register it names is `ah`, `ch`, `dh` or `bh`.
    pub(super) fn has_high_byte(&self, form: &Form) -> bool {
        if self.rex.is_some() || self.vex.is_some() {
            return false;
        }
        let named = self.named();
        let high = |number: u8| (4..8).contains(&number);
        form.reg.byte && high(named.reg)
            || form.rm.byte && !self.in_memory() && high(named.rm)
            || form.opcode.byte && high(named.opcode)
    }

    /// Writes it with other registers, and the field at `offset` of the core in place of the
    /// register in its field `r/m`.
    pub(super) fn write_with_field(&self, code: &mut Assembler, named: Named, offset: usize) {
        // The segment override of `gs`.
        code.byte(0x65);
        code.raw(&self.prefixes[..self.prefix_count]);
        let r = named.reg >> 3;
        if let Some((first, second)) = self.vex {
            code.raw(&[
                0xc4,
                first & 0x1f | (r ^ 1) << 7 | 0x60,
                second & 0x87 | (!named.vvvv & 15) << 3,
            ]);
        } else {
            let rex = 0x40 | self.rex.unwrap_or(0) & REX_W | r << 2;
            if self.rex.is_some() {
                code.byte(rex);
            }
        }
        code.raw(self.opcode);
        code.raw(&[(named.reg & 7) << 3 | 4, 0x25]);
        code.raw(&(offset as u32).to_le_bytes());
        code.raw(self.immediate);
    }

    /// Writes it with other registers, and its memory operand at `[r10]`.
    pub(super) fn write(&self, code: &mut Assembler, named: Named, in_opcode: bool) {
        code.raw(&self.prefixes[..self.prefix_count]);
        let memory = self.in_memory();
        let base = if memory {
            S0
        } else if in_opcode {
            named.opcode
        } else {
            named.rm
        };
        let (r, b) = (named.reg >> 3, base >> 3);
        if let Some((first, second)) = self.vex {
            code.raw(&[
                0xc4,
                first & 0x1f | (r ^ 1) << 7 | 0x40 | (b ^ 1) << 5,
                second & 0x87 | (!named.vvvv & 15) << 3,
            ]);
        } else {
            let wide = self.rex.unwrap_or(0) & REX_W;
            let rex = 0x40 | wide | r << 2 | b;
            if self.rex.is_some() || rex != 0x40 {
                code.byte(rex);
            }
        }
        let (last, start) = self.opcode.split_last().unwrap_or((&0x90, &[]));
        code.raw(start);
        code.byte(if in_opcode {
            last & !7 | named.opcode & 7
        } else {
            *last
        });
        if self.has_modrm {
            code.byte(if memory {
                (named.reg & 7) << 3 | MEMORY_AT_S0
            } else {
                0xc0 | (named.reg & 7) << 3 | named.rm & 7
            });
        }
        code.raw(self.immediate);
    }
}

/// Bytes of SIB and displacement behind a ModRM byte.
fn tail(modrm: u8, sib: Option<u8>) -> usize {
    let (form, rm) = (modrm >> 6, modrm & 7);
    if form == 3 {
        return 0;
    }
    let has_sib = rm == 4;
    let base = if has_sib { sib.unwrap_or(0) & 7 } else { rm };
    let displacement = match form {
        0 if base == 5 => 4,
        0 => 0,
        1 => 1,
        _ => 4,
    };
    usize::from(has_sib) + displacement
}
