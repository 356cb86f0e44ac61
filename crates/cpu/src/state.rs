//! The state of a vCPU as data: everything architectural, the same for both backends.
//!
//! The VMM makes one to start a guest, and takes one to save or move it. It holds no pointers and
//! nothing of how a backend keeps things.

use serde::{Deserialize, Serialize};

/// Version of [`VcpuState`] that this code writes.
pub const STATE_VERSION: u32 = 1;

/// All of a vCPU's state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VcpuState {
    /// [`STATE_VERSION`] of who wrote it.
    pub version: u32,
    /// General-purpose registers, `rip` and `rflags`.
    pub registers: Registers,
    /// Segment and descriptor-table registers.
    pub segments: Segments,
    /// Control and debug registers.
    pub control: ControlRegisters,
    /// Model-specific registers as `(index, value)`. What is missing keeps its reset value.
    pub msrs: Vec<(u32, u64)>,
    /// x87, SSE and AVX state in the standard (not compacted) XSAVE format (Intel SDM 1, 13.4).
    /// Empty for the reset state.
    pub xsave: Vec<u8>,
    /// The local APIC's register page, 1 KiB: each register at its xAPIC offset, as KVM's
    /// `kvm_lapic_state`. Empty for the reset state.
    pub lapic: Vec<u8>,
    /// What is about to be delivered, or is held back.
    pub events: Events,
    /// Whether it runs.
    pub activity: Activity,
}

/// General-purpose registers, `rip` and `rflags`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registers {
    /// `rax`, `rcx`, `rdx`, `rbx`, `rsp`, `rbp`, `rsi`, `rdi`, `r8` to `r15`.
    pub general: [u64; 16],
    /// Offset of the next instruction in `cs`.
    pub rip: u64,
    /// Bit 1 is always set.
    pub rflags: u64,
}

/// A segment register with what is cached of its descriptor.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentState {
    /// The visible part.
    pub selector: u16,
    /// Bits 8 to 23 of the descriptor's second word: type (0-3), S (4), DPL (5-6), P (7),
    /// AVL (12), L (13), D/B (14), G (15). Without P the register is unusable.
    pub attributes: u16,
    /// Highest valid offset in bytes, whatever G says.
    pub limit: u32,
    /// Linear address of offset 0.
    pub base: u64,
}

impl SegmentState {
    /// A 32-bit code segment over all of the first 4 GiB, ring 0.
    #[must_use]
    pub fn flat_code32(selector: u16) -> Self {
        Self::flat(selector, 0xc09b)
    }

    /// A 64-bit code segment, ring 0.
    #[must_use]
    pub fn flat_code64(selector: u16) -> Self {
        Self::flat(selector, 0xa09b)
    }

    /// A writable 32-bit data segment over all of the first 4 GiB, ring 0.
    #[must_use]
    pub fn flat_data(selector: u16) -> Self {
        Self::flat(selector, 0xc093)
    }

    /// A busy 32/64-bit task state segment at `base`, of the smallest size.
    #[must_use]
    pub fn task(selector: u16, base: u64) -> Self {
        Self {
            selector,
            attributes: 0x008b,
            limit: 0x67,
            base,
        }
    }

    fn flat(selector: u16, attributes: u16) -> Self {
        Self {
            selector,
            attributes,
            limit: u32::MAX,
            base: 0,
        }
    }
}

/// A descriptor-table register: `gdtr` or `idtr`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableState {
    /// Linear address of its first entry.
    pub base: u64,
    /// Offset of its last byte.
    pub limit: u16,
}

/// Segment and descriptor-table registers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segments {
    /// `es`, `cs`, `ss`, `ds`, `fs`, `gs`.
    pub registers: [SegmentState; 6],
    /// Local descriptor table.
    pub ldtr: SegmentState,
    /// Task register.
    pub tr: SegmentState,
    /// Global descriptor table.
    pub gdt: TableState,
    /// Interrupt descriptor table.
    pub idt: TableState,
}

/// Control and debug registers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControlRegisters {
    /// `cr0`.
    pub cr0: u64,
    /// Address of the last page fault.
    pub cr2: u64,
    /// Root of the page tables.
    pub cr3: u64,
    /// `cr4`.
    pub cr4: u64,
    /// Task priority, 0 to 15.
    pub cr8: u64,
    /// Extended features, MSR `0xC000_0080`.
    pub efer: u64,
    /// Which parts of the extended state are on.
    pub xcr0: u64,
    /// `dr0` to `dr3`, then `dr6` and `dr7`.
    pub debug: [u64; 6],
}

/// What is about to be delivered, or is held back.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Events {
    /// An exception or interrupt whose delivery has begun: vector and error code.
    pub injected: Option<(u8, Option<u32>)>,
    /// Interrupts are held back until after the next instruction (`sti`, `mov ss`).
    pub interrupt_shadow: bool,
    /// A non-maskable interrupt waits.
    pub nmi_pending: bool,
    /// Non-maskable interrupts are held back until `iret`.
    pub nmi_masked: bool,
}

/// Whether a vCPU runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Activity {
    /// It executes instructions.
    #[default]
    Running,
    /// It waits for an interrupt, after `hlt`.
    Halted,
    /// It waits for INIT and SIPI: every vCPU but the first, at power-on.
    WaitForSipi,
}

impl VcpuState {
    /// The state after power-on (Intel SDM 3A, table 11-1): the first vCPU runs from the reset
    /// vector, the others wait for SIPI.
    #[must_use]
    pub fn reset(index: u32) -> Self {
        let data = SegmentState {
            selector: 0,
            attributes: 0x0093,
            limit: 0xffff,
            base: 0,
        };
        let code = SegmentState {
            selector: 0xf000,
            attributes: 0x009b,
            limit: 0xffff,
            base: 0xffff_0000,
        };
        let table = TableState {
            base: 0,
            limit: 0xffff,
        };
        Self {
            version: STATE_VERSION,
            registers: Registers {
                general: [0; 16],
                rip: 0xfff0,
                rflags: 2,
            },
            segments: Segments {
                registers: [data, code, data, data, data, data],
                ldtr: SegmentState {
                    attributes: 0x0082,
                    ..data
                },
                tr: SegmentState {
                    attributes: 0x008b,
                    ..data
                },
                gdt: table,
                idt: table,
            },
            control: ControlRegisters {
                cr0: 0x6000_0010,
                xcr0: 1,
                debug: [0, 0, 0, 0, 0xffff_0ff0, 0x400],
                ..ControlRegisters::default()
            },
            msrs: Vec::new(),
            xsave: Vec::new(),
            lapic: Vec::new(),
            events: Events::default(),
            activity: if index == 0 {
                Activity::Running
            } else {
                Activity::WaitForSipi
            },
        }
    }

    /// Entry in 32-bit protected mode without paging, flat segments, interrupts off: what PVH
    /// demands (with `ebx` the address of the start info; Xen's `docs/misc/pvh.pandoc`).
    #[must_use]
    pub fn protected32(index: u32, rip: u64, rbx: u64) -> Self {
        let mut state = Self::reset(index);
        state.registers.rip = rip;
        state.registers.general[3] = rbx;
        let data = SegmentState::flat_data(0x18);
        let code = SegmentState::flat_code32(0x10);
        state.segments.registers = [data, code, data, data, data, data];
        state.segments.tr = SegmentState::task(0, 0);
        state.segments.gdt = TableState::default();
        state.segments.idt = TableState::default();
        state.control.cr0 = 0x11;
        state
    }
}
