//! Makes programs: blocks of random instructions that jump to each other until their fuel is gone.

use iced_x86::{
    Code, Encoder, Instruction, InstructionInfoFactory, Register, RflagsBits, code_asm::*,
};

use crate::{
    common::{Random, status_flags},
    guest::{CODE, CODE_BYTES, PAGE, STACK, State},
    instruction::{Roles, make, undefined_after},
};

/// Bytes of a block at most.
const BLOCK: u64 = 192;

/// Code at an address, and what its registers are for.
pub struct Program {
    pub code: Vec<(u64, Vec<u8>)>,
    pub roles: Roles,
    /// Flags that are undefined in the end, in their places.
    pub undefined: u64,
}

impl Program {
    /// All pages of code: where it has none is `hlt`.
    pub fn image(&self) -> Vec<u8> {
        let mut image = vec![0xf4; CODE_BYTES as usize];
        for (address, bytes) in &self.code {
            let start = (address - CODE) as usize;
            image[start..start + bytes.len()].copy_from_slice(bytes);
        }
        image
    }
}

/// One instruction and `hlt`.
pub fn single(
    code: Code,
    address: u64,
    random: &mut Random,
    factory: &mut InstructionInfoFactory,
) -> Option<Program> {
    let roles = Roles::new(random);
    let instruction = make(code, roles, random, factory)?;
    let mut bytes = encode(&instruction, address)?;
    bytes.push(0xf4);
    Some(Program {
        code: vec![(address, bytes)],
        roles,
        undefined: status_flags(undefined_after(&instruction, 0)),
    })
}

fn encode(instruction: &Instruction, address: u64) -> Option<Vec<u8>> {
    let mut encoder = Encoder::new(64);
    encoder.encode(instruction, address).ok()?;
    Some(encoder.take_buffer())
}

/// Where blocks begin: spread over pages, some so that they go on in the next.
fn places(count: u64, random: &mut Random) -> Vec<u64> {
    let mut places = Vec::new();
    let mut at = CODE;
    for left in (1..=count).rev() {
        places.push(at);
        at += BLOCK + random.below(16);
        let room = CODE + CODE_BYTES - at;
        if random.one_in(3) && room > PAGE + left * (BLOCK + 16) {
            at = (at | (PAGE - 1)) + 1 - random.below(48);
        }
    }
    places
}

/// Blocks of some instructions each.
pub fn blocks(
    forms: &[Code],
    count: u64,
    random: &mut Random,
    factory: &mut InstructionInfoFactory,
) -> Program {
    let roles = Roles::new(random);
    let places = places(count, random);
    let mut code = Vec::new();
    for &place in &places {
        let mut bytes = Vec::new();
        // The auxiliary flag is left undefined by almost all, so any block may begin so.
        let mut undefined = RflagsBits::AF;
        for _ in 0..random.below(8) {
            let form = forms[random.below(forms.len() as u64) as usize];
            let Some(it) = make(form, roles, random, factory) else {
                continue;
            };
            // Tiers need not agree on what is undefined, so nothing may depend on it.
            if it.rflags_read() & undefined != 0 {
                continue;
            }
            if let Some(more) = encode(&it, place + bytes.len() as u64) {
                undefined = undefined_after(&it, undefined);
                bytes.extend(more);
            }
        }
        if undefined & !RflagsBits::AF != 0 {
            // cmp rdx, rsi
            bytes.extend([0x48, 0x39, 0xf2]);
        }
        let end = terminator(place + bytes.len() as u64, roles, &places, random)
            .expect("terminators can be encoded");
        bytes.extend(end);
        assert!(bytes.len() as u64 <= BLOCK, "{} bytes", bytes.len());
        code.push((place, bytes));
    }
    Program {
        code,
        roles,
        undefined: status_flags(RflagsBits::AF),
    }
}

fn wide(register: Register) -> AsmRegister64 {
    const ALL: [AsmRegister64; 16] = [
        rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15,
    ];
    ALL[register.number()]
}

/// The end of a block: takes fuel, and goes elsewhere.
fn terminator(
    address: u64,
    roles: Roles,
    places: &[u64],
    random: &mut Random,
) -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(64)?;
    let (mut empty, mut full) = (a.create_label(), a.create_label());
    let fuel = wide(roles.fuel);
    let mut target = || places[random.below(places.len() as u64) as usize];
    let (first, second) = (target(), target());
    if random.one_in(3) {
        a.sub(fuel, 1)?;
        a.jns(full)?;
        a.hlt()?;
        a.set_label(&mut full)?;
    } else {
        // Leaves the flags.
        a.lea(fuel, qword_ptr(fuel - 1))?;
        if fuel != rcx {
            a.xchg(fuel, rcx)?;
        }
        a.jrcxz(empty)?;
        a.jmp(full)?;
        a.set_label(&mut empty)?;
        a.hlt()?;
        a.set_label(&mut full)?;
        if fuel != rcx {
            a.xchg(fuel, rcx)?;
        } else {
            a.nop()?;
        }
    }
    let through = wide(Register::R8 + random.below(4) as u32);
    match random.below(12) {
        0 => a.ret()?,
        1 => a.ret_1(8)?,
        2 => a.call(first)?,
        3 => {
            a.mov(through, first)?;
            a.jmp(through)?;
        }
        4 => {
            a.mov(through, first)?;
            a.push(through)?;
            a.ret()?;
        }
        5 => {
            a.mov(through, first)?;
            a.call(through)?;
        }
        6 => {
            a.push(second as i32)?;
            a.jmp(qword_ptr(rsp))?;
        }
        7 => {
            // As a switch of processes: all but global translations are forgotten.
            a.mov(through, cr3)?;
            a.mov(cr3, through)?;
        }
        kind => {
            let bytes = [0x70 | random.below(16) as u8, 2, 0xeb, 5];
            // A condition over `jmp` to the second.
            a.db(&bytes)?;
            if kind == 8 {
                a.nop_1(ax)?;
            }
            a.jmp(first)?;
        }
    }
    a.jmp(second)?;
    a.assemble(address)
}

/// Registers and flags for a program that begins at `rip`.
pub fn state(roles: Roles, rip: u64, random: &mut Random) -> State {
    let mut regs = [0; 16];
    regs.fill_with(|| random.value());
    for base in roles.bases {
        regs[base.number()] = random.address();
    }
    regs[roles.index.number()] = match random.below(8) {
        0 => random.value(),
        _ => random.below(64),
    };
    regs[roles.fuel.number()] = 1 + random.below(24);
    regs[4] = match random.below(16) {
        0 => random.address(),
        1 => random.value(),
        _ => STACK + random.below(64) * 8,
    };
    let mut vector = cpu::soft::vector::VectorState::default();
    for half in vector.xmm.iter_mut().chain(&mut vector.ymm_high) {
        half[..8].copy_from_slice(&random.float().to_le_bytes());
        half[8..].copy_from_slice(&random.float().to_le_bytes());
    }
    if random.one_in(8) {
        vector.mxcsr = random.next() as u32 & 0xffff;
    }
    State {
        regs,
        rip,
        flags: random.next() & 0xcd5 | 2,
        vector,
    }
}
