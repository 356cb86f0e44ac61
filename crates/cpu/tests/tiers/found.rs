//! What random programs found, reduced.

use iced_x86::code_asm::*;

use crate::guest::{CODE, DATA, End, Guest, PAGE, STACK, State, Tier};

/// Runs code on both tiers from each state in turn; they must agree. Returns how the last run ended.
fn both(states: &[State], assemble: impl Fn(&mut CodeAssembler) -> Result<(), IcedError>) -> End {
    let mut a = CodeAssembler::new(64).unwrap();
    assemble(&mut a).unwrap();
    let bytes = a.assemble(CODE).unwrap();
    let mut tiers = [Tier::Zero, Tier::One].map(Guest::new);
    for guest in &mut tiers {
        guest.write(CODE, &bytes);
    }
    let mut last = None;
    for (number, state) in states.iter().enumerate() {
        let [zero, one] = tiers
            .each_mut()
            .map(|guest| guest.run(state).expect("it ends"));
        assert_eq!(one, zero, "run {number}");
        last = Some(zero);
    }
    last.expect("a run")
}

fn state() -> State {
    let mut regs = [0; 16];
    regs[4] = STACK;
    State {
        regs,
        rip: CODE,
        flags: 2,
        vector: Default::default(),
    }
}

/// Code of another page was found by its address, whatever `mxcsr` it had been translated for.
#[test]
fn a_call_finds_no_code_that_was_translated_for_another_mxcsr() {
    const DIVIDE_BY_ZERO: u32 = 1 << 9;
    let plain = state();
    let mut trapping = state();
    trapping.vector.mxcsr &= !DIVIDE_BY_ZERO;
    for start in [&plain, &trapping] {
        assert_eq!(start.vector.xmm[1], [0; 16]);
    }
    let states: Vec<_> = std::iter::repeat_n(plain, 50).chain([trapping]).collect();
    let end = both(&states, |a| {
        let mut divides = a.create_label();
        a.mov(eax, 1)?;
        a.cvtsi2sd(xmm0, eax)?;
        a.call(divides)?;
        a.hlt()?;
        a.db(&[0xf4; PAGE as usize])?;
        a.set_label(&mut divides)?;
        a.divsd(xmm0, xmm1)?;
        a.ret()
    });
    assert_eq!(end.fault.map(|it| it.vector), Some(19));
}

/// The same when the guest itself changes it, between two calls.
#[test]
fn a_call_after_ldmxcsr_rounds_as_it_says() {
    let end = both(&vec![state(); 50], |a| {
        let mut divides = a.create_label();
        let store = |a: &mut CodeAssembler, mxcsr: u32| {
            a.mov(ecx, (DATA + PAGE) as u32)?;
            a.mov(dword_ptr(rcx), mxcsr)?;
            a.ldmxcsr(dword_ptr(rcx))
        };
        a.call(divides)?;
        a.movq(rbx, xmm0)?;
        // Up.
        store(a, 0x5f80)?;
        a.call(divides)?;
        a.movq(rdx, xmm0)?;
        store(a, 0x1f80)?;
        a.call(divides)?;
        a.hlt()?;
        a.db(&[0xf4; PAGE as usize])?;
        a.set_label(&mut divides)?;
        a.mov(eax, 1)?;
        a.cvtsi2sd(xmm0, eax)?;
        a.mov(eax, 3)?;
        a.cvtsi2sd(xmm1, eax)?;
        a.divsd(xmm0, xmm1)?;
        a.ret()
    });
    let nearest = (1.0f64 / 3.0).to_bits();
    assert_eq!((end.regs[3], end.regs[2]), (nearest, nearest + 1));
}
