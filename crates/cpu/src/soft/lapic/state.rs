//! What is saved of a local APIC: its register page in the layout that KVM uses too
//! (`struct kvm_lapic_state`), and what that has no place for.

use std::sync::atomic::Ordering;

use serde::{Deserialize, Serialize};

use super::{
    LocalApic,
    inbox::{WAITING_INIT, WAITING_NMI, WAITING_SIPI},
    local::{TIMER_DEADLINE, TIMER_MODE},
};
use crate::CpuError;

/// Bytes of the register page that are saved.
const BYTES: usize = 1024;

/// A local APIC at rest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LapicState {
    /// MSR 0x1b: base address and mode.
    pub base: u64,
    /// MSR 0x6e0: when the timer goes off, in ticks of the guest's counter, in deadline mode.
    pub deadline: u64,
    /// The first 1024 bytes of the register page, as in `struct kvm_lapic_state`.
    pub registers: Vec<u8>,
    /// An NMI waits.
    pub nmi: bool,
    /// An INIT waits.
    pub init: bool,
    /// A SIPI waits, with this vector.
    pub sipi: Option<u8>,
}

impl LocalApic {
    /// What to save. The vCPU must not run; what still arrives is lost.
    #[must_use]
    pub fn state(&self) -> LapicState {
        let mut registers = vec![0; BYTES];
        for register in 0..(BYTES >> 4) {
            let value = self.read_register(register as u8).unwrap_or(0);
            registers[register << 4..(register << 4) + 4].copy_from_slice(&value.to_le_bytes());
        }
        let waiting = self.inbox.waiting();
        let in_deadline_mode = self.timer_mode() == TIMER_DEADLINE;
        LapicState {
            base: self.base,
            deadline: if in_deadline_mode { self.deadline } else { 0 },
            registers,
            nmi: waiting & WAITING_NMI != 0,
            init: waiting & WAITING_INIT != 0,
            sipi: (waiting & WAITING_SIPI != 0).then(|| self.inbox.sipi_vector()),
        }
    }

    /// Takes a saved state. The guest's counter must have been restored before, and the vCPU must
    /// not run.
    ///
    /// # Errors
    /// When the register page is too short.
    pub fn restore(&mut self, state: &LapicState) -> Result<(), CpuError> {
        if state.registers.len() < BYTES {
            return Err(CpuError::State {
                index: self.inbox.id(),
                reason: format!("{} bytes of APIC registers", state.registers.len()),
            });
        }
        let read = |register: usize| {
            let at = register << 4;
            let bytes = &state.registers[at..at + 4];
            u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
        };
        let words = |first: usize| std::array::from_fn(|index| read(first + index));
        self.init();
        self.base = state.base;
        self.tpr = read(0x08) as u8;
        self.svr = read(0x0f) & 0x1ff;
        self.isr = words(0x10);
        self.esr = read(0x28);
        self.icr = u64::from(read(0x31)) << 32 | u64::from(read(0x30));
        self.lvt = std::array::from_fn(|index| read(0x32 + index));
        self.initial_count = read(0x38);
        self.divide = read(0x3e) & 0b1011;
        self.inbox.ldr.store(read(0x0d), Ordering::SeqCst);
        self.inbox.dfr.store(read(0x0e), Ordering::SeqCst);
        self.inbox.set_words(words(0x20), words(0x18));
        self.publish();
        self.deadline = if self.lvt[0] & TIMER_MODE == TIMER_DEADLINE {
            state.deadline
        } else {
            match read(0x39) {
                0 => 0,
                left => self.tsc.now().saturating_add(self.timer_ticks(left)),
            }
        };
        if state.init {
            self.inbox.init();
        }
        if state.nmi {
            self.inbox.nmi();
        }
        if let Some(vector) = state.sipi {
            self.inbox.sipi(vector);
        }
        self.arm();
        self.look();
        Ok(())
    }
}
