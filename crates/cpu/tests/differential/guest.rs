//! Executes one instruction on the software CPU, in a guest whose memory has the window of
//! [`super::host`] at the same addresses with the same permissions.

use std::{
    arch::asm,
    sync::{Arc, atomic::AtomicU32},
};

use cpu::{
    Bus,
    soft::{
        Core, Fault, Flow, Interpreter, Tier,
        op::{RIP, Width},
    },
};
use iced_x86::{Decoder, DecoderOptions, Instruction};
use memory::Ram;

use super::host::{
    CODE, CODE16_LIMIT, CODE16_SELECTOR, CODE32_SELECTOR, DATA_SELECTOR, DATA16_LIMIT,
    DATA16_SELECTOR, OPEN, OPEN_BYTES, PAGES, Registers, WINDOW, slot,
};

/// Where the page tables are: one page for each of the four levels.
const TABLES: u64 = 0x1_0000;

struct Nothing;

impl Bus for Nothing {
    fn port_read(&self, _port: u16, data: &mut [u8]) {
        data.fill(0xff);
    }
    fn port_write(&self, _port: u16, _data: &[u8]) {}
    fn mmio_read(&self, _address: u64, data: &mut [u8]) {
        data.fill(0xff);
    }
    fn mmio_write(&self, _address: u64, _data: &[u8]) {}
    fn end_of_interrupt(&self, _vector: u8) {}
}

/// How an instruction ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    Rip(u64),
    Fault(Fault),
}

/// The host's own, for what stores them: `es`, `cs`, `ss`, `ds`, `fs`, `gs`.
fn selectors(width: Width) -> [u16; 6] {
    let mut all = [0u16; 6];
    // SAFETY: reads registers.
    unsafe {
        asm!(
            "mov {0:x}, es", "mov {1:x}, cs", "mov {2:x}, ss",
            "mov {3:x}, ds", "mov {4:x}, fs", "mov {5:x}, gs",
            out(reg) all[0], out(reg) all[1], out(reg) all[2],
            out(reg) all[3], out(reg) all[4], out(reg) all[5],
            options(nomem, nostack, preserves_flags),
        );
    }
    match width {
        Width::Code16 => all[..4].copy_from_slice(&[
            DATA16_SELECTOR,
            CODE16_SELECTOR,
            DATA16_SELECTOR,
            DATA16_SELECTOR,
        ]),
        Width::Code32 => all[..4].copy_from_slice(&[
            DATA_SELECTOR,
            CODE32_SELECTOR,
            DATA_SELECTOR,
            DATA_SELECTOR,
        ]),
        Width::Code64 => {}
    }
    all
}

/// The software CPU.
pub struct Guest {
    interpreter: Interpreter,
    translates: bool,
}

impl Guest {
    /// With page tables that map the window only; 32-bit code is in compatibility mode.
    pub fn new(width: Width) -> Self {
        const PRESENT: u64 = 1;
        const WRITABLE: u64 = 2;
        let ram = Ram::new(64 << 20).expect("memory for a guest");
        let mut core = Core::flat(ram, Arc::new(Nothing));
        let entry = |level: u64, address: u64| {
            TABLES + level * 0x1000 + (address >> (39 - 9 * level) & 0x1ff) * 8
        };
        for level in 0..3 {
            let next = (TABLES + (level + 1) * 0x1000) | PRESENT | WRITABLE;
            core.physical_write(entry(level, WINDOW), &next.to_le_bytes());
        }
        for page in 1..PAGES - 1 {
            let address = WINDOW + page * 0x1000;
            let writable = if page < PAGES - 2 { WRITABLE } else { 0 };
            let value = address | PRESENT | writable;
            core.physical_write(entry(3, address), &value.to_le_bytes());
        }
        // What is translated is fetched from memory.
        let code = TABLES + 0x4000;
        core.physical_write(entry(2, CODE), &(code | PRESENT | WRITABLE).to_le_bytes());
        let of_code = code + (CODE >> 12 & 0x1ff) * 8;
        core.physical_write(of_code, &(CODE | PRESENT).to_le_bytes());
        core.control.cr0 |= 1 << 31;
        core.control.cr3 = TABLES;
        core.control.cr4 |= 1 << 5;
        core.control.efer = 0x500;
        for (segment, selector) in core.segments.iter_mut().zip(selectors(width)) {
            segment.selector = selector;
        }
        core.width = width;
        if width == Width::Code32 {
            core.segments[1].attributes = 0xc09b;
        }
        if width == Width::Code16 {
            for data in [0, 2, 3] {
                core.segments[data].attributes = 0xf3;
                core.segments[data].base = WINDOW;
                core.segments[data].limit = DATA16_LIMIT;
            }
            core.segments[1].attributes = 0xfb;
            core.segments[1].base = CODE;
            core.segments[1].limit = CODE16_LIMIT;
        }
        Self {
            interpreter: Interpreter::new(core),
            translates: false,
        }
    }

    /// One that translates what it executes.
    pub fn translating() -> Self {
        let mut guest = Self::new(Width::Code64);
        let at_once = Tier::Translate {
            threshold: 1,
            chain: false,
        };
        guest
            .interpreter
            .set_tier(at_once)
            .expect("memory for code");
        guest.translates = true;
        guest
    }

    /// Whether it translates.
    pub fn translates(&self) -> bool {
        self.translates
    }

    /// How many blocks were translated.
    pub fn translations(&self) -> u64 {
        self.interpreter.counters().translations
    }

    pub fn core(&mut self) -> &mut Core {
        &mut self.interpreter.core
    }

    /// Fills the open part of the window.
    pub fn fill(&mut self, content: &[u8]) {
        for (index, page) in content.chunks(0x1000).enumerate() {
            self.core()
                .physical_write(OPEN + 0x1000 * index as u64, page);
        }
    }

    /// The open part of the window.
    pub fn open(&mut self) -> Vec<u8> {
        let mut content = vec![0; OPEN_BYTES];
        for (index, page) in content.chunks_mut(0x1000).enumerate() {
            self.core()
                .physical_read(OPEN + 0x1000 * index as u64, page);
        }
        content
    }

    /// Decodes as the interpreter does.
    pub fn decode(bytes: &[u8], width: Width) -> Instruction {
        Decoder::with_ip(width.bits(), bytes, slot(width), DecoderOptions::NONE).decode()
    }

    /// Executes an instruction in the slot to its end.
    pub fn run(
        &mut self,
        instruction: &Instruction,
        bytes: &[u8],
        before: &Registers,
    ) -> (Registers, Ending) {
        let core = self.core();
        let slot = slot(core.width);
        core.regs[..16].copy_from_slice(&before.gpr);
        core.regs[RIP as usize] = slot;
        core.flags.set(before.flags);
        let ending = if self.translates {
            self.run_translated(bytes, slot)
        } else {
            self.interpret(instruction, slot)
        };
        let core = self.core();
        let mut after = Registers {
            flags: core.flags.get(),
            ..Registers::default()
        };
        after.gpr.copy_from_slice(&core.regs[..16]);
        (after, ending)
    }

    fn interpret(&mut self, instruction: &Instruction, slot: u64) -> Ending {
        let core = self.core();
        let op = cpu::soft::select::select(instruction, core.width);
        loop {
            match (op.run)(core, &op) {
                Ok(Flow::Again) => {}
                Ok(Flow::Next | Flow::Sync) => break Ending::Rip(slot + u64::from(op.len)),
                Ok(Flow::Branch | Flow::SyncBranch) => break Ending::Rip(core.rip()),
                Err(fault) => break Ending::Fault(fault),
            }
        }
    }

    /// Translates the instruction with a jump to itself behind, and runs that.
    fn run_translated(&mut self, bytes: &[u8], slot: u64) -> Ending {
        const JUMP_TO_ITSELF: [u8; 2] = [0xeb, 0xfe];
        let code = [bytes, &JUMP_TO_ITSELF].concat();
        self.core().physical_write(slot, &code);
        let quiet = AtomicU32::new(0);
        loop {
            match self.interpreter.run_block(&quiet) {
                Ok(Flow::Again) => {}
                Ok(_) => break Ending::Rip(self.core().rip()),
                Err(fault) => break Ending::Fault(fault),
            }
        }
    }
}
