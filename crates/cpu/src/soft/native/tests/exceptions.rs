//! Exceptions that have nothing to do with memory.

use super::{
    core, decode,
    host::{Host, State},
    random::Random,
};
use crate::soft::{Core, Fault, native, op::Width};

/// The table has the bit of protected mode inverted.
const REAL_MODE: u64 = 1;
const EM: u64 = 1 << 2;
const TS: u64 = 1 << 3;
const MP: u64 = 1 << 1;
const OSFXSR: u64 = 1 << 9;
const OSXMMEXCPT: u64 = 1 << 10;
const OSXSAVE: u64 = 1 << 18;

const ADDPS: &[u8] = &[0x0f, 0x58, 0xc1];
const VADDPS: &[u8] = &[0xc5, 0xf0, 0x58, 0xc2];
const PADDB_MM: &[u8] = &[0x0f, 0xfc, 0xc1];
const FLD1: &[u8] = &[0xd9, 0xe8];
const FNSTSW_AX: &[u8] = &[0xdf, 0xe0];
const FWAIT: &[u8] = &[0x9b];
const XSAVE: &[u8] = &[0x0f, 0xae, 0x23];
const STMXCSR: &[u8] = &[0x0f, 0xae, 0x1b];
const BLSI: &[u8] = &[0xc4, 0xe2, 0x70, 0xf3, 0xd8];
const FDIVP: &[u8] = &[0xde, 0xf9];
const FNCLEX: &[u8] = &[0xdb, 0xe2];
const CVTPS2PI: &[u8] = &[0x0f, 0x2d, 0xc1];

fn run(core: &mut Core, bytes: &[u8]) -> Result<(), Fault> {
    let op = native::select(&decode(bytes), Width::Code64).unwrap();
    (op.run)(core, &op).map(drop)
}

#[test]
fn control_registers_say_what_may_be_used() {
    const UD: Option<Fault> = Some(Fault::INVALID_OPCODE);
    const NM: Option<Fault> = Some(Fault::DEVICE_NOT_AVAILABLE);
    let all = OSFXSR | OSXSAVE;
    // Code, `cr0`, `cr4`, `xcr0`, what it raises.
    type Row = (&'static [u8], u64, u64, u64, Option<Fault>);
    let table: &[Row] = &[
        (ADDPS, 0, all, 7, None),
        (ADDPS, TS, all, 7, NM),
        (ADDPS, EM, all, 7, UD),
        (ADDPS, TS, OSXSAVE, 7, UD),
        (STMXCSR, TS, all, 7, NM),
        (STMXCSR, 0, 0, 7, UD),
        (VADDPS, 0, all, 7, None),
        (VADDPS, TS, all, 7, NM),
        (VADDPS, 0, OSFXSR, 7, UD),
        (VADDPS, 0, all, 3, UD),
        (VADDPS, REAL_MODE, all, 7, UD),
        (PADDB_MM, 0, 0, 1, None),
        (PADDB_MM, EM, 0, 1, UD),
        (PADDB_MM, TS, 0, 1, NM),
        (FLD1, 0, 0, 1, None),
        (FLD1, EM, 0, 1, NM),
        (FLD1, TS, 0, 1, NM),
        (FNSTSW_AX, EM, 0, 1, NM),
        (FWAIT, EM, 0, 1, None),
        (FWAIT, TS, 0, 1, None),
        (FWAIT, TS | MP, 0, 1, NM),
        (XSAVE, 0, OSFXSR, 7, UD),
        (XSAVE, TS, all, 7, NM),
        (BLSI, TS | EM, 0, 1, None),
    ];
    for (bytes, cr0, cr4, xcr0, expected) in table {
        let mut core = core();
        core.regs[3] = 0x1000;
        core.vector.set_controls(*cr0 ^ 1, *cr4, *xcr0);
        assert_eq!(
            run(&mut core, bytes).err(),
            *expected,
            "{bytes:x?} {cr0:x} {cr4:x}"
        );
    }
}

#[test]
fn an_x87_exception_waits_for_the_next_instruction_that_waits() {
    let mut core = core();
    let state = &mut core.vector.state;
    // 0 / 0 with the invalid operation exception not masked.
    (state.fcw, state.ftw) = (0x37e, 0xff);
    run(&mut core, FDIVP).unwrap();
    run(&mut core, FNSTSW_AX).unwrap();
    assert_eq!(core.regs[0] & 0x8081, 0x8081);
    for bytes in [FLD1, FWAIT, PADDB_MM] {
        assert_eq!(run(&mut core, bytes), Err(Fault::X87));
    }
    run(&mut core, FNCLEX).unwrap();
    for bytes in [FWAIT, FLD1] {
        run(&mut core, bytes).unwrap();
    }
}

#[test]
fn a_simd_exception_that_is_not_masked_changes_nothing_else() {
    let (mut host, mut core) = (Host::new(), core());
    let mut raised = 0;
    for seed in 0..2000 {
        let mut random = Random(seed);
        let mut vector = random.state();
        vector.mxcsr = 0x3f << 7 & !(random.next() as u32);
        let state = State::new(vector.clone(), [7; 16], 0x202);
        for bytes in [ADDPS, VADDPS, CVTPS2PI] {
            let after = host.execute(bytes, &state);
            core.vector.state = vector.clone();
            core.regs[..16].fill(7);
            let result = run(&mut core, bytes);
            if after.signal == 0 {
                result.unwrap();
                assert_eq!(core.vector.state.xmm, after.vector.xmm);
                assert_eq!(core.vector.state.mxcsr, after.vector.mxcsr);
                continue;
            }
            assert_eq!(result, Err(Fault::SIMD));
            raised += 1;
            assert_eq!(core.vector.state.mxcsr, after.vector.mxcsr);
            core.vector.state.mxcsr = vector.mxcsr;
            assert_eq!(core.vector.state, vector);
            core.vector.set_controls(1, OSFXSR | OSXSAVE, 7);
            assert_eq!(run(&mut core, bytes), Err(Fault::INVALID_OPCODE));
            core.vector
                .set_controls(1, OSFXSR | OSXSAVE | OSXMMEXCPT, 7);
        }
    }
    assert!(raised > 500, "only {raised} exceptions were raised");
}

#[test]
fn the_units_of_the_host_stay_as_they_were() {
    fn controls() -> (u32, u16) {
        let (mut mxcsr, mut fcw) = (0u32, 0u16);
        // SAFETY: stores to two variables.
        unsafe {
            std::arch::asm!(
                "stmxcsr [{mxcsr}]", "fnstcw [{fcw}]",
                mxcsr = in(reg) &raw mut mxcsr, fcw = in(reg) &raw mut fcw,
            );
        }
        (mxcsr & !0x3f, fcw)
    }
    let before = controls();
    let mut core = core();
    core.vector.state.mxcsr = 0xffc0;
    core.vector.state.fcw = 0xc7f;
    for bytes in [ADDPS, VADDPS, PADDB_MM, FLD1, CVTPS2PI, FDIVP] {
        run(&mut core, bytes).unwrap();
        assert_eq!(controls(), before, "{bytes:x?}");
    }
}
