//! How vCPU 0 begins.

use cpu::state::{SegmentState, Segments, TableState, VcpuState};
use memory::GuestMemory;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use super::{
    Loaded, Protocol,
    linux64::{BOOT_PARAMS, PAGE_TABLES},
    pvh::START_INFO,
};

const GDT: u64 = 0x1000;
/// Null, unused, 64-bit code, data, and a task segment of 16 bytes; selectors as Linux's boot
/// protocol wants them (`__BOOT_CS` 0x10, `__BOOT_DS` 0x18).
const DESCRIPTORS_64: [u64; 6] = [0, 0, CODE_64, DATA, TASK, 0];
const DESCRIPTORS_32: [u64; 6] = [0, 0, CODE_32, DATA, TASK, 0];
const CODE_64: u64 = 0x00af_9b00_0000_ffff;
const CODE_32: u64 = 0x00cf_9b00_0000_ffff;
const DATA: u64 = 0x00cf_9300_0000_ffff;
const TASK: u64 = 0x0000_8b00_0000_0067;
const CODE_SELECTOR: u16 = 0x10;
const DATA_SELECTOR: u16 = 0x18;
const TASK_SELECTOR: u16 = 0x20;

/// Number of `rsi` among the general-purpose registers.
const RSI: usize = 6;
const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME_LMA: u64 = 1 << 8 | 1 << 10;

/// How vCPU 0 begins: everything it needs is in memory already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// By which protocol.
    pub protocol: Protocol,
    /// Physical address of its first instruction.
    pub address: u64,
}

impl Entry {
    /// Writes the descriptor table that the segments of [`Entry::state`] come from.
    pub(super) fn prepare(memory: &GuestMemory, loaded: &Loaded) -> Result<Self, GuestMemoryError> {
        let descriptors = match loaded.protocol {
            Protocol::Pvh => DESCRIPTORS_32,
            Protocol::Linux64 => DESCRIPTORS_64,
        };
        for (index, descriptor) in descriptors.iter().enumerate() {
            memory.write_obj(*descriptor, GuestAddress(GDT + 8 * index as u64))?;
        }
        Ok(Self {
            protocol: loaded.protocol,
            address: loaded.entry,
        })
    }

    /// The state of vCPU 0.
    #[must_use]
    pub fn state(&self) -> VcpuState {
        let mut state = VcpuState::protected32(0, self.address, START_INFO);
        let code = match self.protocol {
            Protocol::Pvh => SegmentState::flat_code32(CODE_SELECTOR),
            Protocol::Linux64 => SegmentState::flat_code64(CODE_SELECTOR),
        };
        let data = SegmentState::flat_data(DATA_SELECTOR);
        state.segments = Segments {
            registers: [data, code, data, data, data, data],
            tr: SegmentState::task(TASK_SELECTOR, 0),
            gdt: TableState {
                base: GDT,
                limit: size_of_val(&DESCRIPTORS_64) as u16 - 1,
            },
            idt: TableState::default(),
            ..state.segments
        };
        if self.protocol == Protocol::Linux64 {
            state.registers.general[RSI] = BOOT_PARAMS;
            state.control.cr0 = CR0_PG | CR0_ET | CR0_PE;
            state.control.cr3 = PAGE_TABLES;
            state.control.cr4 = CR4_PAE;
            state.control.efer = EFER_LME_LMA;
        }
        state
    }
}
