//! Executes one instruction on the software CPU, in a guest whose memory has the window of
//! [`super::host`] at the same addresses with the same permissions.

use std::{arch::asm, sync::Arc};

use cpu::{
    Bus,
    soft::{
        Core, Fault, Flow,
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
    pub core: Core,
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
        Self { core }
    }

    /// Fills the open part of the window.
    pub fn fill(&mut self, content: &[u8]) {
        for (index, page) in content.chunks(0x1000).enumerate() {
            self.core.physical_write(OPEN + 0x1000 * index as u64, page);
        }
    }

    /// The open part of the window.
    pub fn open(&mut self) -> Vec<u8> {
        let mut content = vec![0; OPEN_BYTES];
        for (index, page) in content.chunks_mut(0x1000).enumerate() {
            self.core.physical_read(OPEN + 0x1000 * index as u64, page);
        }
        content
    }

    /// Decodes as the interpreter does.
    pub fn decode(bytes: &[u8], width: Width) -> Instruction {
        Decoder::with_ip(width.bits(), bytes, slot(width), DecoderOptions::NONE).decode()
    }

    /// Executes an instruction in the slot to its end.
    pub fn run(&mut self, instruction: &Instruction, before: &Registers) -> (Registers, Ending) {
        let slot = slot(self.core.width);
        let op = cpu::soft::select::select(instruction, self.core.width);
        self.core.regs[..16].copy_from_slice(&before.gpr);
        self.core.regs[RIP as usize] = slot;
        self.core.flags.set(before.flags);
        let ending = loop {
            match (op.run)(&mut self.core, &op) {
                Ok(Flow::Again) => {}
                Ok(Flow::Next | Flow::Sync) => break Ending::Rip(slot + u64::from(op.len)),
                Ok(Flow::Branch | Flow::SyncBranch) => break Ending::Rip(self.core.rip()),
                Err(fault) => break Ending::Fault(fault),
            }
        };
        let mut after = Registers {
            flags: self.core.flags.get(),
            ..Registers::default()
        };
        after.gpr.copy_from_slice(&self.core.regs[..16]);
        (after, ending)
    }
}
