//! A vCPU's state to and from KVM's structures, in the order their dependences ask for.
//!
//! ```text
//!  cpuid (at creation) ─► special registers (mode, APIC base) ─► general ─► xcrs ─► xsave
//!       ─► local APIC ─► MSRs (clock first, deadline last) ─► debug ─► events ─► activity
//! ```

use kvm_bindings::{
    KVM_MP_STATE_HALTED, KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_UNINITIALIZED,
    KVM_VCPUEVENT_VALID_NMI_PENDING, KVM_VCPUEVENT_VALID_SHADOW, KVM_X86_SHADOW_INT_MOV_SS,
    KVM_X86_SHADOW_INT_STI, kvm_debugregs, kvm_dtable, kvm_lapic_state, kvm_mp_state, kvm_regs,
    kvm_segment, kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::{Kvm, VcpuFd};

use super::{msrs, refused};
use crate::{
    CpuError, VcpuState,
    state::{
        Activity, ControlRegisters, Events, Registers, STATE_VERSION, SegmentState, Segments,
        TableState,
    },
};

/// `IA32_APIC_BASE`.
const APIC_BASE: u32 = 0x1b;
/// Bytes of the register page.
const LAPIC_BYTES: usize = 1024;
/// Control word of the x87 after `fninit`.
const FCW_INIT: u16 = 0x37f;
/// Control and status of SSE after reset.
const MXCSR_INIT: u32 = 0x1f80;
/// Offset of `mxcsr` in the XSAVE area.
const MXCSR_OFFSET: usize = 24;

pub(super) fn read(kvm: &Kvm, fd: &VcpuFd) -> Result<VcpuState, CpuError> {
    let general = fd.get_regs().map_err(refused("KVM_GET_REGS"))?;
    let special = fd.get_sregs().map_err(refused("KVM_GET_SREGS"))?;
    let xsave = fd.get_xsave().map_err(refused("KVM_GET_XSAVE"))?;
    let xcrs = fd.get_xcrs().map_err(refused("KVM_GET_XCRS"))?;
    let lapic = fd.get_lapic().map_err(refused("KVM_GET_LAPIC"))?;
    let debug = fd.get_debug_regs().map_err(refused("KVM_GET_DEBUGREGS"))?;
    let events = fd
        .get_vcpu_events()
        .map_err(refused("KVM_GET_VCPU_EVENTS"))?;
    let activity = fd.get_mp_state().map_err(refused("KVM_GET_MP_STATE"))?;
    let mut msrs = msrs::read(kvm, fd)?;
    msrs.push((APIC_BASE, special.apic_base));
    let xcr0 = xcrs.xcrs[..xcrs.nr_xcrs.min(16) as usize]
        .iter()
        .find(|it| it.xcr == 0)
        .map_or(1, |it| it.value);
    Ok(VcpuState {
        version: STATE_VERSION,
        registers: registers(&general),
        segments: segments(&special),
        control: ControlRegisters {
            cr0: special.cr0,
            cr2: special.cr2,
            cr3: special.cr3,
            cr4: special.cr4,
            cr8: special.cr8,
            efer: special.efer,
            xcr0,
            debug: [
                debug.db[0],
                debug.db[1],
                debug.db[2],
                debug.db[3],
                debug.dr6,
                debug.dr7,
            ],
        },
        msrs,
        xsave: xsave
            .region
            .iter()
            .flat_map(|it| it.to_le_bytes())
            .collect(),
        lapic: lapic.regs.iter().map(|byte| *byte as u8).collect(),
        events: from_events(&events),
        activity: match activity.mp_state {
            KVM_MP_STATE_HALTED => Activity::Halted,
            KVM_MP_STATE_RUNNABLE => Activity::Running,
            _ => Activity::WaitForSipi,
        },
    })
}

pub(super) fn write(index: u32, fd: &VcpuFd, state: &VcpuState) -> Result<(), CpuError> {
    if state.version != STATE_VERSION {
        return Err(CpuError::State {
            index,
            reason: format!("it has version {}, not {STATE_VERSION}", state.version),
        });
    }
    let mut special = fd.get_sregs().map_err(refused("KVM_GET_SREGS"))?;
    fill(&mut special, state);
    fd.set_sregs(&special).map_err(refused("KVM_SET_SREGS"))?;
    fd.set_regs(&to_registers(&state.registers))
        .map_err(refused("KVM_SET_REGS"))?;
    write_extended(index, fd, state)?;
    write_lapic(index, fd, &state.lapic)?;
    let listed: Vec<(u32, u64)> = state
        .msrs
        .iter()
        .copied()
        .filter(|(index, _)| *index != APIC_BASE)
        .collect();
    // Those that are refused here are features this host lacks; the rest is in force.
    let _refused = msrs::write(fd, &listed)?;
    let debug = kvm_debugregs {
        db: [0, 1, 2, 3].map(|it| state.control.debug[it]),
        dr6: state.control.debug[4],
        dr7: state.control.debug[5],
        ..kvm_debugregs::default()
    };
    fd.set_debug_regs(&debug)
        .map_err(refused("KVM_SET_DEBUGREGS"))?;
    fd.set_vcpu_events(&to_events(&state.events))
        .map_err(refused("KVM_SET_VCPU_EVENTS"))?;
    let mp_state = match state.activity {
        Activity::Running => KVM_MP_STATE_RUNNABLE,
        Activity::Halted => KVM_MP_STATE_HALTED,
        Activity::WaitForSipi => KVM_MP_STATE_UNINITIALIZED,
    };
    fd.set_mp_state(kvm_mp_state { mp_state })
        .map_err(refused("KVM_SET_MP_STATE"))
}

/// Extended state: which parts are on, then the parts.
fn write_extended(index: u32, fd: &VcpuFd, state: &VcpuState) -> Result<(), CpuError> {
    let mut xcrs = kvm_xcrs {
        nr_xcrs: 1,
        ..kvm_xcrs::default()
    };
    xcrs.xcrs[0].xcr = 0;
    xcrs.xcrs[0].value = state.control.xcr0;
    fd.set_xcrs(&xcrs).map_err(refused("KVM_SET_XCRS"))?;
    let mut bytes = [0u8; 4096];
    if state.xsave.is_empty() {
        bytes[..2].copy_from_slice(&FCW_INIT.to_le_bytes());
        bytes[MXCSR_OFFSET..MXCSR_OFFSET + 4].copy_from_slice(&MXCSR_INIT.to_le_bytes());
    } else {
        let Some(room) = bytes.get_mut(..state.xsave.len()) else {
            let reason = format!("{} bytes of extended state", state.xsave.len());
            return Err(CpuError::State { index, reason });
        };
        room.copy_from_slice(&state.xsave);
    }
    let mut xsave = kvm_xsave::default();
    for (word, bytes) in xsave.region.iter_mut().zip(bytes.chunks_exact(4)) {
        *word = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    }
    // SAFETY: the area has the 4096 bytes that KVM_SET_XSAVE reads without dynamic features, which
    // are never enabled.
    unsafe { fd.set_xsave(&xsave) }.map_err(refused("KVM_SET_XSAVE"))
}

fn write_lapic(index: u32, fd: &VcpuFd, page: &[u8]) -> Result<(), CpuError> {
    if page.is_empty() {
        return Ok(());
    }
    let page: &[u8; LAPIC_BYTES] = page.try_into().map_err(|_| CpuError::State {
        index,
        reason: format!("{} bytes of local APIC, not {LAPIC_BYTES}", page.len()),
    })?;
    let lapic = kvm_lapic_state {
        regs: page.map(|byte| byte as i8),
    };
    fd.set_lapic(&lapic).map_err(refused("KVM_SET_LAPIC"))
}

fn registers(it: &kvm_regs) -> Registers {
    Registers {
        general: [
            it.rax, it.rcx, it.rdx, it.rbx, it.rsp, it.rbp, it.rsi, it.rdi, it.r8, it.r9, it.r10,
            it.r11, it.r12, it.r13, it.r14, it.r15,
        ],
        rip: it.rip,
        rflags: it.rflags,
    }
}

fn to_registers(it: &Registers) -> kvm_regs {
    let [
        rax,
        rcx,
        rdx,
        rbx,
        rsp,
        rbp,
        rsi,
        rdi,
        r8,
        r9,
        r10,
        r11,
        r12,
        r13,
        r14,
        r15,
    ] = it.general;
    kvm_regs {
        rax,
        rcx,
        rdx,
        rbx,
        rsp,
        rbp,
        rsi,
        rdi,
        r8,
        r9,
        r10,
        r11,
        r12,
        r13,
        r14,
        r15,
        rip: it.rip,
        rflags: it.rflags,
    }
}

fn segments(it: &kvm_sregs) -> Segments {
    Segments {
        registers: [it.es, it.cs, it.ss, it.ds, it.fs, it.gs].map(|it| segment(&it)),
        ldtr: segment(&it.ldt),
        tr: segment(&it.tr),
        gdt: table(&it.gdt),
        idt: table(&it.idt),
    }
}

fn fill(special: &mut kvm_sregs, state: &VcpuState) {
    let segments = &state.segments;
    let [es, cs, ss, ds, fs, gs] = segments.registers.map(to_segment);
    (special.es, special.cs, special.ss) = (es, cs, ss);
    (special.ds, special.fs, special.gs) = (ds, fs, gs);
    special.ldt = to_segment(segments.ldtr);
    special.tr = to_segment(segments.tr);
    special.gdt = to_table(segments.gdt);
    special.idt = to_table(segments.idt);
    let control = &state.control;
    (special.cr0, special.cr2, special.cr3) = (control.cr0, control.cr2, control.cr3);
    (special.cr4, special.cr8, special.efer) = (control.cr4, control.cr8, control.efer);
    if let Some((_, base)) = state.msrs.iter().find(|(index, _)| *index == APIC_BASE) {
        special.apic_base = *base;
    }
    // An interrupt whose delivery has begun is one of the events.
    special.interrupt_bitmap = [0; 4];
}

fn segment(it: &kvm_segment) -> SegmentState {
    let bit = |value: u8, position: u32| u16::from(value & 1) << position;
    let attributes = u16::from(it.type_ & 15)
        | bit(it.s, 4)
        | u16::from(it.dpl & 3) << 5
        | bit(it.present, 7)
        | bit(it.avl, 12)
        | bit(it.l, 13)
        | bit(it.db, 14)
        | bit(it.g, 15);
    SegmentState {
        selector: it.selector,
        // KVM says unusable apart from present.
        attributes: if it.unusable == 0 {
            attributes
        } else {
            attributes & !(1 << 7)
        },
        limit: it.limit,
        base: it.base,
    }
}

fn to_segment(it: SegmentState) -> kvm_segment {
    let bits = |position: u32, mask: u16| (it.attributes >> position & mask) as u8;
    kvm_segment {
        base: it.base,
        limit: it.limit,
        selector: it.selector,
        type_: bits(0, 15),
        s: bits(4, 1),
        dpl: bits(5, 3),
        present: bits(7, 1),
        avl: bits(12, 1),
        l: bits(13, 1),
        db: bits(14, 1),
        g: bits(15, 1),
        unusable: 1 - bits(7, 1),
        padding: 0,
    }
}

fn table(it: &kvm_dtable) -> TableState {
    TableState {
        base: it.base,
        limit: it.limit,
    }
}

fn to_table(it: TableState) -> kvm_dtable {
    kvm_dtable {
        base: it.base,
        limit: it.limit,
        ..kvm_dtable::default()
    }
}

fn from_events(it: &kvm_vcpu_events) -> Events {
    let exception = (it.exception.injected != 0).then(|| {
        let code = (it.exception.has_error_code != 0).then_some(it.exception.error_code);
        (it.exception.nr, code)
    });
    let interrupt = (it.interrupt.injected != 0).then_some((it.interrupt.nr, None));
    Events {
        injected: exception.or(interrupt),
        interrupt_shadow: it.interrupt.shadow != 0,
        nmi_pending: it.nmi.pending != 0 || it.nmi.injected != 0,
        nmi_masked: it.nmi.masked != 0,
    }
}

fn to_events(it: &Events) -> kvm_vcpu_events {
    let mut events = kvm_vcpu_events {
        flags: KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW,
        ..kvm_vcpu_events::default()
    };
    match it.injected {
        Some((vector @ 0..32, code)) => {
            events.exception.injected = 1;
            events.exception.nr = vector;
            events.exception.has_error_code = u8::from(code.is_some());
            events.exception.error_code = code.unwrap_or(0);
        }
        Some((vector, _)) => {
            events.interrupt.injected = 1;
            events.interrupt.nr = vector;
        }
        None => {}
    }
    if it.interrupt_shadow {
        events.interrupt.shadow = (KVM_X86_SHADOW_INT_MOV_SS | KVM_X86_SHADOW_INT_STI) as u8;
    }
    events.nmi.pending = u8::from(it.nmi_pending);
    events.nmi.masked = u8::from(it.nmi_masked);
    events
}
