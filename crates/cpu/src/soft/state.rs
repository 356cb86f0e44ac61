//! A core to and from [`VcpuState`].

use super::{
    Core, Fault,
    core::Segment,
    lapic::LapicState,
    segment::{CS, SS},
    system::{Table, Tables, control::Control, events::Events},
    vector::{Area, VectorState},
};
use crate::{
    CpuError, VcpuState,
    state::{
        Activity, ControlRegisters, Registers, STATE_VERSION, SegmentState, Segments, TableState,
    },
};

const APIC_BASE: u32 = 0x1b;
const TSC_DEADLINE: u32 = 0x6e0;
const TSC: u32 = 0x10;

impl From<SegmentState> for Segment {
    fn from(state: SegmentState) -> Self {
        Self {
            selector: state.selector,
            attributes: state.attributes,
            limit: state.limit,
            base: state.base,
        }
    }
}

impl From<Segment> for SegmentState {
    fn from(segment: Segment) -> Self {
        Self {
            selector: segment.selector,
            attributes: segment.attributes,
            limit: segment.limit,
            base: segment.base,
        }
    }
}

impl From<TableState> for Table {
    fn from(state: TableState) -> Self {
        Self {
            base: state.base,
            limit: state.limit,
        }
    }
}

impl From<Table> for TableState {
    fn from(table: Table) -> Self {
        Self {
            base: table.base,
            limit: table.limit,
        }
    }
}

impl Core {
    /// Everything, as a saved state holds it.
    #[must_use]
    pub fn state(&self) -> VcpuState {
        let apic = self.platform.apic.state();
        let mut general = [0; 16];
        general.copy_from_slice(&self.regs[..16]);
        let mut msrs = self.saved_msrs();
        msrs.push((TSC, self.platform.tsc.now()));
        msrs.push((APIC_BASE, apic.base));
        msrs.push((TSC_DEADLINE, apic.deadline));
        let [dr0, dr1, dr2, dr3] = self.control.breakpoints;
        VcpuState {
            version: STATE_VERSION,
            registers: Registers {
                general,
                rip: self.rip(),
                rflags: self.flags.get(),
            },
            segments: Segments {
                registers: self.segments.map(SegmentState::from),
                ldtr: self.tables.ldt.into(),
                tr: self.tables.task.into(),
                gdt: self.tables.gdt.into(),
                idt: self.tables.idt.into(),
            },
            control: ControlRegisters {
                cr0: self.control.cr0,
                cr2: self.control.cr2,
                cr3: self.control.cr3,
                cr4: self.control.cr4,
                cr8: self.platform.apic.cr8(),
                efer: self.control.efer,
                xcr0: self.control.xcr0,
                debug: [dr0, dr1, dr2, dr3, self.control.dr6, self.control.dr7],
            },
            msrs,
            xsave: self.vector.state.area().to_vec(),
            lapic: apic.registers,
            events: crate::state::Events {
                injected: self
                    .events
                    .injected
                    .map(|(vector, code)| (vector, code.map(u32::from))),
                interrupt_shadow: self.events.shadow,
                nmi_pending: apic.nmi,
                nmi_masked: self.events.nmi_masked,
            },
            activity: if self.events.waits_for_sipi {
                Activity::WaitForSipi
            } else if self.events.halted {
                Activity::Halted
            } else {
                Activity::Running
            },
        }
    }

    /// Takes a saved state.
    ///
    /// # Errors
    /// When it is of another version, or a part has the wrong size. A register this CPU does not
    /// have is left out.
    pub(super) fn set_state(&mut self, index: u32, state: &VcpuState) -> Result<(), CpuError> {
        let refused = |reason: String| CpuError::State { index, reason };
        if state.version != STATE_VERSION {
            let reason = format!("it has version {}, not {STATE_VERSION}", state.version);
            return Err(refused(reason));
        }
        let vector = if state.xsave.is_empty() {
            VectorState::default()
        } else {
            let area: Option<&Area> = state.xsave.first_chunk();
            let area = area
                .ok_or_else(|| refused(format!("{} bytes of extended state", state.xsave.len())))?;
            VectorState::from_area(area)
        };
        self.set_registers(state);
        self.vector.state = vector;
        let msr = |index| {
            state
                .msrs
                .iter()
                .find(|(it, _)| *it == index)
                .map(|it| it.1)
        };
        if let Some(value) = msr(TSC) {
            self.platform.tsc.set(value);
        }
        for &(index, value) in &state.msrs {
            if !matches!(index, TSC | APIC_BASE | TSC_DEADLINE) {
                // What this CPU does not have is refused: the guest does not know it.
                let _: Result<(), Fault> = self.write_msr(index, value);
            }
        }
        if !state.lapic.is_empty() {
            let sound = self.platform.apic.state();
            self.platform.apic.restore(&LapicState {
                base: msr(APIC_BASE).unwrap_or(sound.base),
                deadline: msr(TSC_DEADLINE).unwrap_or(0),
                registers: state.lapic.clone(),
                nmi: state.events.nmi_pending,
                init: false,
                sipi: None,
            })?;
        }
        Ok(())
    }

    /// Everything but the vector state, model-specific registers and the local APIC.
    pub(super) fn set_registers(&mut self, state: &VcpuState) {
        self.regs[..16].copy_from_slice(&state.registers.general);
        self.set_rip(state.registers.rip);
        self.flags.set(state.registers.rflags);
        self.segments = state.segments.registers.map(Segment::from);
        self.tables = Tables {
            gdt: state.segments.gdt.into(),
            idt: state.segments.idt.into(),
            ldt: state.segments.ldtr.into(),
            task: state.segments.tr.into(),
        };
        let [dr0, dr1, dr2, dr3, dr6, dr7] = state.control.debug;
        self.control = Control {
            cr0: state.control.cr0,
            cr2: state.control.cr2,
            cr3: state.control.cr3,
            cr4: state.control.cr4,
            efer: state.control.efer,
            xcr0: state.control.xcr0,
            breakpoints: [dr0, dr1, dr2, dr3],
            dr6,
            dr7,
        };
        self.events = Events {
            halted: state.activity == Activity::Halted,
            waits_for_sipi: state.activity == Activity::WaitForSipi,
            shadow: state.events.interrupt_shadow,
            nmi_masked: state.events.nmi_masked,
            pauses: 0,
            injected: state
                .events
                .injected
                .map(|(vector, code)| (vector, code.map(|it| it as u16))),
        };
        // The privilege is that of the stack, which is right in conforming code too.
        let ring = (self.segments[SS].attributes >> 5) as u8 & 3;
        self.privilege = if !self.control.protected() {
            0
        } else if self.segments[SS].attributes == 0 {
            self.segments[CS].selector as u8 & 3
        } else {
            ring
        };
        self.tlb.flush(true);
        self.refresh();
    }
}
