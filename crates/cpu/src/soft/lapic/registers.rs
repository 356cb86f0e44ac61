//! How the guest reaches the registers: by memory in xAPIC mode, by MSRs in x2APIC mode. Both
//! number them alike: MSR 0x800 + n is the memory at n << 4.

use std::sync::atomic::Ordering;

use super::{
    LocalApic,
    inbox::{Mode, x2apic_logical},
    local::{
        BASE_ADDRESS, BASE_BSP, BASE_ENABLE, BASE_X2APIC, LVT_MASKED, LVT_TIMER, SVR_ENABLE,
        TIMER_DEADLINE, TIMER_MODE,
    },
    router::{FIXED, Message},
};
use crate::soft::Fault;

/// Version 0x14 with six entries in the local vector table.
const VERSION: u32 = 0x0005_0014;

const ID: u8 = 0x02;
const TPR: u8 = 0x08;
const PPR: u8 = 0x0a;
const EOI: u8 = 0x0b;
const LDR: u8 = 0x0d;
const DFR: u8 = 0x0e;
const SVR: u8 = 0x0f;
const ESR: u8 = 0x28;
const ICR: u8 = 0x30;
const ICR_HIGH: u8 = 0x31;
const LVT: u8 = 0x32;
const INITIAL_COUNT: u8 = 0x38;
const CURRENT_COUNT: u8 = 0x39;
const DIVIDE: u8 = 0x3e;
const SELF_IPI: u8 = 0x3f;

/// What can be written of each entry of the local vector table: timer, thermal, performance,
/// LINT0, LINT1, error.
const LVT_WRITABLE: [u32; 6] = [0x7_00ff, 0x1_07ff, 0x1_07ff, 0x1_a7ff, 0x1_a7ff, 0x1_00ff];

const ERROR_SEND_ILLEGAL: u32 = 1 << 5;
const LOWEST: u8 = 1;
const INIT: u8 = 5;

const MSR_BASE: u32 = 0x1b;
const MSR_DEADLINE: u32 = 0x6e0;
const MSR_FIRST: u32 = 0x800;

impl LocalApic {
    /// A load of 1 to 8 bytes at `offset` (below 4096) from [`LocalApic::base`]. Registers are 4
    /// bytes at multiples of 16; all else reads as zero.
    pub fn mmio_read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let within = (offset & 0xf) as usize;
        if within < 4 && within + data.len() <= 4 {
            let bytes = self
                .read_register((offset >> 4) as u8)
                .unwrap_or(0)
                .to_le_bytes();
            data.copy_from_slice(&bytes[within..within + data.len()]);
        }
    }

    /// A store at `offset` from [`LocalApic::base`]. Only 4 bytes at a multiple of 16 do anything.
    pub fn mmio_write(&mut self, offset: u64, data: &[u8]) {
        let Ok(bytes) = data.try_into() else {
            return;
        };
        if offset & 0xf == 0 {
            let register = (offset >> 4) as u8;
            let value = u32::from_le_bytes(bytes);
            match register {
                ID => {}
                ICR => {
                    // Bit 12, delivery status, is always idle.
                    self.icr = self.icr & !0xffff_ffff | u64::from(value & !(1 << 12));
                    self.send(self.icr >> 56);
                }
                ICR_HIGH => {
                    self.icr = self.icr & 0xffff_ffff | u64::from(value & 0xff00_0000) << 32;
                }
                LDR => self.inbox.ldr.store(value & 0xff00_0000, Ordering::SeqCst),
                DFR => self.inbox.dfr.store(value | 0x0fff_ffff, Ordering::SeqCst),
                _ => {
                    self.write_register(register, value);
                }
            }
        }
    }

    /// `rdmsr` of 0x1b, 0x6e0, 0x800 to 0x8ff.
    ///
    /// # Errors
    /// `#GP(0)` where there is no such register, or not in this mode.
    pub fn read_msr(&mut self, msr: u32) -> Result<u64, Fault> {
        match msr {
            MSR_BASE => return Ok(self.base),
            MSR_DEADLINE if self.timer_mode() == TIMER_DEADLINE => return Ok(self.deadline),
            MSR_DEADLINE => return Ok(0),
            _ if self.mode() != Mode::X2Apic => return Err(Fault::GP0),
            _ => {}
        }
        let register = u8::try_from(msr.wrapping_sub(MSR_FIRST)).map_err(|_| Fault::GP0)?;
        match register {
            ICR => Ok(self.icr),
            EOI | SELF_IPI | DFR | ICR_HIGH => Err(Fault::GP0),
            _ => self
                .read_register(register)
                .map(u64::from)
                .ok_or(Fault::GP0),
        }
    }

    /// `wrmsr` of 0x1b, 0x6e0, 0x800 to 0x8ff.
    ///
    /// # Errors
    /// `#GP(0)` where there is no such register, not in this mode, or a reserved bit is set.
    pub fn write_msr(&mut self, msr: u32, value: u64) -> Result<(), Fault> {
        match msr {
            MSR_BASE => return self.set_base(value),
            MSR_DEADLINE => {
                self.set_deadline(value);
                return Ok(());
            }
            _ if self.mode() != Mode::X2Apic => return Err(Fault::GP0),
            _ => {}
        }
        let register = u8::try_from(msr.wrapping_sub(MSR_FIRST)).map_err(|_| Fault::GP0)?;
        if register == ICR {
            self.icr = value & !(1 << 12);
            self.send(value >> 32);
            return Ok(());
        }
        let low = u32::try_from(value).map_err(|_| Fault::GP0)?;
        match register {
            SELF_IPI => {
                if low > 0xff {
                    return Err(Fault::GP0);
                }
                self.send_self(low as u8);
            }
            EOI | ESR if low != 0 => return Err(Fault::GP0),
            ID | LDR | DFR | ICR_HIGH => return Err(Fault::GP0),
            _ if !self.write_register(register, low) => return Err(Fault::GP0),
            _ => {}
        }
        Ok(())
    }

    /// A register that reads alike in both modes; `None` where there is none.
    pub(super) fn read_register(&self, register: u8) -> Option<u32> {
        let x2apic = self.mode() == Mode::X2Apic;
        let word = usize::from(register & 7);
        Some(match register {
            ID if x2apic => self.inbox.id(),
            ID => self.inbox.id() << 24,
            0x03 => VERSION,
            TPR => u32::from(self.tpr),
            PPR => u32::from(self.ppr()),
            LDR if x2apic => x2apic_logical(self.inbox.id()),
            LDR => self.inbox.ldr.load(Ordering::Relaxed),
            DFR => self.inbox.dfr.load(Ordering::Relaxed),
            SVR => self.svr,
            0x10..0x18 => self.isr[word],
            0x18..0x20 => self.inbox.words(word).1,
            0x20..0x28 => self.inbox.words(word).0,
            ESR => self.esr,
            ICR => self.icr as u32,
            ICR_HIGH => (self.icr >> 32) as u32,
            LVT..INITIAL_COUNT => self.lvt[usize::from(register - LVT)],
            INITIAL_COUNT => self.initial_count,
            CURRENT_COUNT => self.current_count(),
            DIVIDE => self.divide,
            _ => return None,
        })
    }

    /// Stores to a register that is written alike in both modes; `false` where there is none.
    fn write_register(&mut self, register: u8, value: u32) -> bool {
        match register {
            TPR => self.set_tpr(value as u8),
            EOI => self.end_of_interrupt(),
            SVR => self.set_svr(value),
            ESR => self.esr = std::mem::take(&mut self.errors),
            LVT..INITIAL_COUNT => self.set_lvt(usize::from(register - LVT), value),
            INITIAL_COUNT => self.set_initial_count(value),
            DIVIDE => self.divide = value & 0b1011,
            _ => return false,
        }
        true
    }

    fn set_base(&mut self, value: u64) -> Result<(), Fault> {
        const MODE: u64 = BASE_ENABLE | BASE_X2APIC;
        let known = BASE_ADDRESS | BASE_BSP | MODE;
        // Into x2APIC mode only from xAPIC mode, out of it only by disabling (SDM 3A, 12.12.5).
        let legal = match (self.base & MODE, value & MODE) {
            (_, BASE_X2APIC) | (MODE, BASE_ENABLE) => false,
            (0, MODE) => false,
            _ => value & !known == 0,
        };
        if !legal {
            return Err(Fault::GP0);
        }
        self.base = value & !BASE_BSP | self.base & BASE_BSP;
        self.publish();
        Ok(())
    }

    fn set_svr(&mut self, value: u32) {
        self.svr = value & 0x1ff;
        if self.svr & SVR_ENABLE == 0 {
            self.lvt.iter_mut().for_each(|it| *it |= LVT_MASKED);
        }
        self.publish();
        self.look();
    }

    fn set_lvt(&mut self, index: usize, value: u32) {
        let mut value = value & LVT_WRITABLE[index];
        if self.svr & SVR_ENABLE == 0 {
            value |= LVT_MASKED;
        }
        let old = std::mem::replace(&mut self.lvt[index], value);
        if index == LVT_TIMER && (old ^ value) & TIMER_MODE != 0 {
            self.initial_count = 0;
            self.deadline = 0;
            self.arm();
        }
    }

    fn set_initial_count(&mut self, value: u32) {
        if self.timer_mode() == TIMER_DEADLINE {
            return;
        }
        self.initial_count = value;
        self.deadline = match value {
            0 => 0,
            _ => self.tsc.now().saturating_add(self.timer_ticks(value)),
        };
        self.arm();
    }

    /// Stores to the deadline MSR: ignored in other modes of the timer, and 0 stops it.
    fn set_deadline(&mut self, value: u64) {
        if self.timer_mode() == TIMER_DEADLINE {
            self.deadline = value;
            self.arm();
        }
    }

    fn send_self(&mut self, vector: u8) {
        match vector {
            0..16 => self.error(ERROR_SEND_ILLEGAL),
            _ => self.inbox.request(vector, false),
        }
    }

    /// Sends what the interrupt command register says (Intel SDM 3A, 12.6.1).
    fn send(&mut self, destination: u64) {
        let icr = self.icr as u32;
        let mode = (icr >> 8 & 7) as u8;
        let message = Message {
            destination: destination as u32,
            logical: icr & 1 << 11 != 0,
            any: false,
            mode,
            vector: icr as u8,
            level: false,
        };
        if matches!(mode, FIXED | LOWEST) && message.vector < 16 {
            self.error(ERROR_SEND_ILLEGAL);
            return;
        }
        let (assert, level) = (icr & 1 << 14 != 0, icr & 1 << 15 != 0);
        if mode == INIT && level && !assert {
            // INIT level de-assert did something only to processors of the last millennium.
            return;
        }
        match icr >> 18 & 3 {
            0 => self.router.send(message),
            1 => message.deliver(&self.inbox),
            shorthand => {
                let own = self.inbox.id();
                let others = self.router.inboxes();
                others
                    .filter(|it| shorthand == 2 || it.id() != own)
                    .for_each(|it| message.deliver(it));
            }
        }
    }
}
