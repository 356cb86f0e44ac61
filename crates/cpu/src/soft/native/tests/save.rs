//! Areas of `fxsave` and `xsave`, against those of the host.

use super::{
    core, decode,
    host::{Host, State},
    random::Random,
    skip,
};
use crate::soft::{Core, Fault, native, op::Width, vector::VectorState};

const AREA: u64 = 0x2_0000;
/// Of an area, with some bytes behind it that must not change.
const BYTES: usize = 896;

#[repr(align(4096))]
struct Page([u8; 4096]);

// All with the operand [rbx].
const FXSAVE64: &[u8] = &[0x48, 0x0f, 0xae, 0x03];
const FXRSTOR64: &[u8] = &[0x48, 0x0f, 0xae, 0x0b];
const FXRSTOR: &[u8] = &[0x0f, 0xae, 0x0b];
const XSAVE64: &[u8] = &[0x48, 0x0f, 0xae, 0x23];
const XSAVE: &[u8] = &[0x0f, 0xae, 0x23];
const XRSTOR64: &[u8] = &[0x48, 0x0f, 0xae, 0x2b];
const XSAVEOPT64: &[u8] = &[0x48, 0x0f, 0xae, 0x33];

fn set(core: &mut Core, memory: &[u8]) {
    for (index, it) in memory.chunks(64).enumerate() {
        core.physical_write(AREA + 64 * index as u64, it);
    }
}

fn get(core: &mut Core) -> Vec<u8> {
    let mut memory = vec![0; BYTES];
    for (index, it) in memory.chunks_mut(64).enumerate() {
        core.physical_read(AREA + 64 * index as u64, it);
    }
    memory
}

fn run(core: &mut Core, bytes: &[u8]) -> Result<(), Fault> {
    let op = native::select(&decode(bytes), Width::Code64).unwrap();
    (op.run)(core, &op).map(drop)
}

/// Both ways; the state and the memory after it, ours first. Nothing when both fault.
fn both(
    host: &mut Host,
    core: &mut Core,
    bytes: &[u8],
    state: &VectorState,
    requested: u64,
    memory: &[u8],
) -> Option<[(VectorState, Vec<u8>); 2]> {
    let mut page = Box::new(Page([0; 4096]));
    page.0[..BYTES].copy_from_slice(memory);
    let mut regs = [0; 16];
    regs[0] = requested;
    regs[3] = page.0.as_ptr() as u64;
    let after = host.execute(bytes, &State::new(state.clone(), regs, 0x202));
    core.vector.state = state.clone();
    core.regs[0] = requested;
    core.regs[2] = 0;
    core.regs[3] = AREA;
    set(core, memory);
    let result = run(core, bytes);
    assert_eq!(result.is_err(), after.signal != 0, "{bytes:x?}");
    if result.is_err() {
        assert_eq!(core.vector.state, *state);
        assert_eq!(get(core), memory);
        return None;
    }
    Some([
        (core.vector.state.clone(), get(core)),
        (after.vector, page.0[..BYTES].to_vec()),
    ])
}

/// The parts of a state a guest can see.
fn visible(state: &VectorState) -> impl PartialEq + std::fmt::Debug + use<> {
    let st: Vec<_> = state.st.iter().map(|it| it[..10].to_vec()).collect();
    (
        (state.fcw, state.fsw, state.ftw, state.mxcsr),
        (st, state.xmm, state.ymm_high),
    )
}

#[test]
fn areas_are_those_of_the_host() {
    if !is_x86_feature_detected!("avx") || !is_x86_feature_detected!("xsaveopt") {
        return skip(
            "areas_are_those_of_the_host",
            "the host has no AVX or XSAVEOPT",
        );
    }
    let (mut host, mut core) = (Host::new(), core());
    let mut faults = 0;
    for seed in 0..3000 {
        let mut random = Random(seed);
        let requested = random.below(8);
        let state = random.state();
        let mut other = *random.state().area();
        other[512] = random.below(8) as u8;
        match random.below(20) {
            0 => other[27] = 1,
            1 => other[520 + random.below(16) as usize] = 1,
            _ => {}
        }
        let mut memory: Vec<u8> = (0..BYTES).map(|_| random.next() as u8).collect();
        for bytes in [XSAVE64, XSAVE, FXSAVE64] {
            memory[512] &= 7;
            let [ours, hosts] = both(&mut host, &mut core, bytes, &state, requested, &memory)
                .expect("a store to an aligned area succeeds");
            // What may be initial is one's own choice to say.
            let (said, missed) = (ours.1[512], hosts.1[512] & !ours.1[512]);
            assert_eq!((said & !7, missed & requested as u8), (memory[512] & !7, 0));
            let mut expected = hosts.1.clone();
            expected[512] = said;
            assert!(ours.1 == expected, "{bytes:x?} {requested} (seed {seed})");
            assert_eq!(visible(&ours.0), visible(&state));
        }
        memory[..832].copy_from_slice(&other);
        for bytes in [XRSTOR64, FXRSTOR64, FXRSTOR] {
            match both(&mut host, &mut core, bytes, &state, requested, &memory) {
                Some([ours, hosts]) => assert_eq!(
                    visible(&ours.0),
                    visible(&hosts.0),
                    "{bytes:x?} {requested} of {} (seed {seed})",
                    other[512]
                ),
                None => faults += 1,
            }
        }
    }
    assert!(faults > 100, "only {faults} areas were refused");
}

#[test]
fn what_is_saved_optimized_is_restored_the_same() {
    let mut core = core();
    for seed in 0..200 {
        let mut random = Random(seed);
        let mut state = random.state();
        if random.chance(2) {
            state.ymm_high = [[0; 16]; 16];
        }
        core.vector.state = state.clone();
        core.regs[0] = 7;
        core.regs[3] = AREA;
        set(&mut core, &[0; BYTES]);
        run(&mut core, XSAVEOPT64).unwrap();
        core.vector.state = random.state();
        run(&mut core, XRSTOR64).unwrap();
        assert_eq!(visible(&core.vector.state), visible(&state), "seed {seed}");
        let area = *state.area();
        assert_eq!(VectorState::from_area(&area), state);
    }
}

#[test]
fn a_component_that_is_off_is_not_restored_and_not_accepted() {
    let mut core = core();
    let mut area = *Random(1).state().area();
    core.regs[0] = 7;
    core.regs[3] = AREA;
    core.vector.set_controls(1, 1 << 9 | 1 << 18, 3);
    set(&mut core, &area);
    assert_eq!(run(&mut core, XRSTOR64), Err(Fault::GP0));
    area[512] = 3;
    set(&mut core, &area);
    let upper = Random(2).state().ymm_high;
    core.vector.state.ymm_high = upper;
    run(&mut core, XRSTOR64).unwrap();
    assert_eq!(core.vector.state.ymm_high, upper);
    core.regs[3] = AREA + 32;
    for bytes in [XRSTOR64, XSAVE64] {
        assert_eq!(run(&mut core, bytes), Err(Fault::GP0));
    }
    core.regs[3] = AREA + 8;
    for bytes in [FXSAVE64, FXRSTOR64] {
        assert_eq!(run(&mut core, bytes), Err(Fault::GP0));
    }
}
