//! A classic BPF machine for tests, with the kernel's checks (kernel/seccomp.c, net/core/filter.c).

use crate::emit::{self, Instruction};

/// `struct seccomp_data`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call {
    pub(crate) arch: u32,
    pub(crate) number: u32,
    pub(crate) arguments: [u64; 6],
}

impl Call {
    fn word(&self, offset: u32) -> u32 {
        assert_eq!(offset % 4, 0, "unaligned load");
        match offset {
            0 => self.number,
            4 => self.arch,
            16..64 => {
                let argument = self.arguments[(offset as usize - 16) / 8];
                (argument >> (8 * (offset % 8))) as u32
            }
            _ => panic!("load from {offset}"),
        }
    }
}

/// Runs `code` on `call`.
pub(crate) fn run(code: &[Instruction], call: &Call) -> u32 {
    const RETURN_A: u16 = 0x16;
    let (mut pc, mut a) = (0usize, 0u32);
    loop {
        let i = code[pc];
        pc += 1;
        let holds = match i.code {
            emit::LOAD => {
                a = call.word(i.k);
                continue;
            }
            emit::AND => {
                a &= i.k;
                continue;
            }
            emit::JUMP => {
                pc += i.k as usize;
                continue;
            }
            emit::RETURN => return i.k,
            RETURN_A => return a,
            emit::JUMP_EQUAL => a == i.k,
            emit::JUMP_GREATER => a > i.k,
            emit::JUMP_GREATER_EQUAL => a >= i.k,
            code => panic!("unknown instruction {code:#x}"),
        };
        pc += usize::from(if holds { i.jt } else { i.jf });
    }
}
