//! Model-specific registers: those that mean something to this CPU, and those that only keep what
//! is written because systems expect them on a processor of AMD's family 17h (AMD APM 2, appendix
//! A; its PPR, 2.1.14).
//!
//! The local APIC's and the paravirtual clock's are passed on to them. Everything unknown raises
//! `#GP(0)`, which is how systems find out what is not there.

use super::{
    super::{
        Core, Fault, Flow, Op,
        clock::KvmClock,
        memory::access::is_canonical,
        segment::{FS, GS},
    },
    control::{EFER_LMA, EFER_LME, EFER_NXE, EFER_SCE},
};

const TSC: u32 = 0x10;
const APIC_BASE: u32 = 0x1b;
const TSC_ADJUST: u32 = 0x3b;
const SPEC_CTRL: u32 = 0x48;
const PRED_CMD: u32 = 0x49;
const PATCH_LEVEL: u32 = 0x8b;
const MTRR_CAP: u32 = 0xfe;
const SYSENTER_CS: u32 = 0x174;
const SYSENTER_ESP: u32 = 0x175;
const SYSENTER_EIP: u32 = 0x176;
const MCG_CAP: u32 = 0x179;
const PAT: u32 = 0x277;
const TSC_DEADLINE: u32 = 0x6e0;
const EFER: u32 = 0xc000_0080;
const STAR: u32 = 0xc000_0081;
const LSTAR: u32 = 0xc000_0082;
const CSTAR: u32 = 0xc000_0083;
const SFMASK: u32 = 0xc000_0084;
const FS_BASE: u32 = 0xc000_0100;
const GS_BASE: u32 = 0xc000_0101;
const KERNEL_GS_BASE: u32 = 0xc000_0102;
const TSC_AUX: u32 = 0xc000_0103;
const WALL_CLOCK: u32 = 0x4b56_4d00;
const SYSTEM_TIME: u32 = 0x4b56_4d01;

/// Automatic IBRS: nothing to do here, but kernels that find it build no retpolines.
const EFER_IBRS: u64 = 1 << 21;
/// What can be set in `efer`.
const EFER_KNOWN: u64 = EFER_SCE | EFER_LME | EFER_NXE | EFER_IBRS;
/// Write-back, write-through, uncached-minus, uncached, twice.
const PAT_RESET: u64 = 0x0007_0406_0007_0406;

/// Registers that keep what is written and do nothing, with their values at power-on.
const KEPT: [(u32, u64); 21] = [
    (0x17a, 0),             // MCG_STATUS
    (0x17b, 0),             // MCG_CTL
    (0x1d9, 0),             // DEBUGCTL
    (0x1db, 0),             // last branch from
    (0x1dc, 0),             // last branch to
    (0x1dd, 0),             // last exception from
    (0x1de, 0),             // last exception to
    (0x2ff, 0xc06),         // MTRR default type: on, write-back
    (0xc000_0104, 1 << 32), // TSC ratio: one
    (0xc001_0010, 0),       // SYSCFG
    (0xc001_0015, 1 << 24), // HWCR: the counter never stops
    (0xc001_001a, 0),       // TOP_MEM
    (0xc001_001d, 0),       // TOP_MEM2
    (0xc001_001f, 0),       // NB_CFG
    (0xc001_0055, 0),       // interrupt pending
    (0xc001_0140, 0),       // OSVW length
    (0xc001_0141, 0),       // OSVW status
    (0xc001_1020, 0),       // LS_CFG
    (0xc001_1022, 0),       // DC_CFG
    (0xc001_1029, 2),       // DE_CFG: lfence serializes
    (0xc001_102a, 0),       // BU_CFG2
];

/// Model-specific registers that are no part of anything else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Msrs {
    /// Segments of `syscall` and `sysret`.
    pub star: u64,
    /// Target of `syscall` in 64-bit code.
    pub lstar: u64,
    /// Target of `syscall` in 32-bit code of long mode.
    pub cstar: u64,
    /// Flags that `syscall` clears.
    pub sfmask: u64,
    /// What `swapgs` puts into the base of `gs`.
    pub kernel_gs_base: u64,
    /// What `rdtscp` and `rdpid` tell.
    pub tsc_aux: u64,
    /// Segments of `sysenter` and `sysexit`.
    pub sysenter_cs: u64,
    /// Stack of `sysenter`.
    pub sysenter_esp: u64,
    /// Target of `sysenter`.
    pub sysenter_eip: u64,
    /// Page attribute table; kept, as all guest memory is cached.
    pub pat: u64,
    kept: [u64; KEPT.len()],
}

impl Default for Msrs {
    fn default() -> Self {
        Self {
            star: 0,
            lstar: 0,
            cstar: 0,
            sfmask: 0,
            kernel_gs_base: 0,
            tsc_aux: 0,
            sysenter_cs: 0,
            sysenter_esp: 0,
            sysenter_eip: 0,
            pat: PAT_RESET,
            kept: KEPT.map(|(_, value)| value),
        }
    }
}

/// Those that are part of a saved state, beside the kept, the local APIC's and the counter.
const SAVED: [u32; 14] = [
    TSC_AUX,
    STAR,
    LSTAR,
    CSTAR,
    SFMASK,
    FS_BASE,
    GS_BASE,
    KERNEL_GS_BASE,
    SYSENTER_CS,
    SYSENTER_ESP,
    SYSENTER_EIP,
    PAT,
    WALL_CLOCK,
    SYSTEM_TIME,
];

fn is_local_apic(msr: u32) -> bool {
    matches!(msr, APIC_BASE | TSC_DEADLINE | 0x800..=0x8ff)
}

fn kept(msr: u32) -> Option<usize> {
    KEPT.iter().position(|(index, _)| *index == msr)
}

impl Core {
    /// Reads a model-specific register.
    ///
    /// # Errors
    /// `#GP(0)` where there is none.
    pub(in crate::soft) fn read_msr(&mut self, msr: u32) -> Result<u64, Fault> {
        if is_local_apic(msr) {
            return self.platform.apic.read_msr(msr);
        }
        self.own_msr(msr)
    }

    /// Those that are not the local APIC's.
    fn own_msr(&self, msr: u32) -> Result<u64, Fault> {
        if KvmClock::has(msr) {
            return self.platform.clock.read_msr(msr);
        }
        Ok(match msr {
            TSC => self.platform.tsc.now(),
            TSC_ADJUST | SPEC_CTRL | MCG_CAP | MTRR_CAP => 0,
            PATCH_LEVEL => 0x0830_107a,
            SYSENTER_CS => self.msrs.sysenter_cs,
            SYSENTER_ESP => self.msrs.sysenter_esp,
            SYSENTER_EIP => self.msrs.sysenter_eip,
            PAT => self.msrs.pat,
            EFER => self.control.efer,
            STAR => self.msrs.star,
            LSTAR => self.msrs.lstar,
            CSTAR => self.msrs.cstar,
            SFMASK => self.msrs.sfmask,
            FS_BASE => self.segments[FS].base,
            GS_BASE => self.segments[GS].base,
            KERNEL_GS_BASE => self.msrs.kernel_gs_base,
            TSC_AUX => self.msrs.tsc_aux,
            _ => self.msrs.kept[kept(msr).ok_or(Fault::GP0)?],
        })
    }

    /// Writes a model-specific register.
    ///
    /// # Errors
    /// `#GP(0)` where there is none, or the value is not one it can hold.
    pub(in crate::soft) fn write_msr(&mut self, msr: u32, value: u64) -> Result<(), Fault> {
        if is_local_apic(msr) {
            return self.platform.apic.write_msr(msr, value);
        }
        if KvmClock::has(msr) {
            let platform = &mut self.platform;
            return platform
                .clock
                .write_msr(msr, value, &self.ram, &platform.tsc);
        }
        match msr {
            LSTAR | CSTAR | SYSENTER_ESP | SYSENTER_EIP | FS_BASE | GS_BASE | KERNEL_GS_BASE
                if !is_canonical(value) =>
            {
                return Err(Fault::GP0);
            }
            // One counter serves all vCPUs; it is right already.
            TSC | TSC_ADJUST | SPEC_CTRL | PRED_CMD | PATCH_LEVEL => {}
            SYSENTER_CS => self.msrs.sysenter_cs = value & 0xffff,
            SYSENTER_ESP => self.msrs.sysenter_esp = value,
            SYSENTER_EIP => self.msrs.sysenter_eip = value,
            PAT => self.msrs.pat = checked_pat(value)?,
            EFER => self.set_efer(value)?,
            STAR => self.msrs.star = value,
            LSTAR => self.msrs.lstar = value,
            CSTAR => self.msrs.cstar = value,
            SFMASK => self.msrs.sfmask = value & 0xffff_ffff,
            FS_BASE => self.segments[FS].base = value,
            GS_BASE => self.segments[GS].base = value,
            KERNEL_GS_BASE => self.msrs.kernel_gs_base = value,
            TSC_AUX => self.msrs.tsc_aux = value & 0xffff_ffff,
            _ => self.msrs.kept[kept(msr).ok_or(Fault::GP0)?] = value,
        }
        Ok(())
    }

    fn set_efer(&mut self, value: u64) -> Result<(), Fault> {
        let old = self.control.efer;
        // Long mode becomes active with paging, not here.
        let value = value & !EFER_LMA | old & EFER_LMA;
        let toggles_long = (old ^ value) & EFER_LME != 0;
        if value & !(EFER_KNOWN | EFER_LMA) != 0 || toggles_long && self.control.paging() {
            return Err(Fault::GP0);
        }
        self.control.efer = value;
        if (old ^ value) & EFER_NXE != 0 {
            self.tlb.flush(true);
        }
        Ok(())
    }

    /// All that a saved state holds, as `(index, value)`.
    pub(in crate::soft) fn saved_msrs(&self) -> Vec<(u32, u64)> {
        SAVED
            .into_iter()
            .chain(KEPT.map(|(msr, _)| msr))
            .filter_map(|msr| Some((msr, self.own_msr(msr).ok()?)))
            .collect()
    }
}

/// Each of the eight types must exist.
fn checked_pat(value: u64) -> Result<u64, Fault> {
    let exists = |kind: u8| matches!(kind, 0 | 1 | 4..=7);
    if value.to_le_bytes().into_iter().all(exists) {
        Ok(value)
    } else {
        Err(Fault::GP0)
    }
}

/// `rdmsr`.
pub(super) fn read(core: &mut Core, _: &Op) -> Result<Flow, Fault> {
    core.demand_ring0()?;
    let msr = core.get::<u32>(1);
    let value = core.read_msr(msr)?;
    core.put::<u32>(0, value as u32);
    core.put::<u32>(2, (value >> 32) as u32);
    Ok(Flow::Next)
}

/// `wrmsr`.
pub(super) fn write(core: &mut Core, _: &Op) -> Result<Flow, Fault> {
    core.demand_ring0()?;
    let msr = core.get::<u32>(1);
    let value = u64::from(core.get::<u32>(2)) << 32 | u64::from(core.get::<u32>(0));
    core.write_msr(msr, value)?;
    Ok(Flow::Sync)
}
