//! All codes, random operands, random states.

use iced_x86::{
    Code, CpuidFeature, Decoder, DecoderOptions, EncodingKind, Instruction, Mnemonic, OpKind,
    Register,
};

use super::{
    DEVICE, core, decode,
    host::{Host, State},
    random::{Random, encode},
    skip,
};
use crate::soft::{Core, Fault, Flow, flags::STATUS, native, op::Width};

/// Where operands lie in the guest: over the end of a page too.
const WINDOW: u64 = 0x1_0f80;
const WINDOW_BYTES: usize = 256;

#[repr(align(4096))]
struct Window([u8; 4096]);

/// One instruction on one state, both ways.
struct Case {
    instruction: Instruction,
    bytes: Vec<u8>,
    state: State,
    base: Register,
    /// Offset of the operand in the window.
    offset: usize,
    device: bool,
    /// As if there were no room for its stub.
    unplaced: bool,
    memory: [u8; WINDOW_BYTES],
}

/// What came of it: names of all that an instruction may change, with their values.
type Outcome = Vec<(String, String)>;

fn outcome(faulted: bool, state: &State, base: Register, memory: &[u8]) -> Outcome {
    let v = &state.vector;
    let hex = |it: &[u8]| {
        it.iter()
            .rev()
            .map(|it| format!("{it:02x}"))
            .collect::<String>()
    };
    let mut all = vec![
        ("fault".into(), faulted.to_string()),
        ("fcw".into(), format!("{:x}", v.fcw)),
        ("fsw".into(), format!("{:x}", v.fsw)),
        ("ftw".into(), format!("{:x}", v.ftw)),
        ("mxcsr".into(), format!("{:x}", v.mxcsr)),
        ("flags".into(), format!("{:x}", state.flags & STATUS)),
    ];
    for number in 0..16 {
        all.push((format!("ymm{number}"), hex(&v.ymm(number))));
        if number != 4 && number != base.number() {
            all.push((format!("r{number}"), format!("{:x}", state.regs[number])));
        }
        if number < 8 {
            all.push((format!("st{number}"), hex(&v.st[number][..10])));
        }
    }
    for (number, it) in memory.chunks(16).enumerate() {
        all.push((format!("memory{}", 16 * number), hex(it)));
    }
    all
}

/// Where the two differ.
fn difference(ours: &Outcome, hosts: &Outcome) -> String {
    ours.iter()
        .zip(hosts)
        .filter(|(ours, hosts)| ours != hosts)
        .map(|(ours, hosts)| format!("\n  {}: {}, on the host {}", ours.0, ours.1, hosts.1))
        .collect()
}

impl Case {
    fn new(random: &mut Random, code: Code) -> Option<Self> {
        let base = loop {
            let it = Register::RAX + random.below(16) as u32;
            if !matches!(
                it,
                Register::RSP | Register::RAX | Register::RDX | Register::RCX
            ) {
                break it;
            }
        };
        let base = if uses_rdi(code.mnemonic()) {
            Register::RDI
        } else {
            base
        };
        let instruction = random.instruction(code, base)?;
        let bytes = encode(&instruction)?;
        if decode(&bytes).code() != code {
            return None;
        }
        let mut regs = [0; 16];
        for it in &mut regs {
            *it = if random.chance(2) {
                random.next()
            } else {
                random.lane()
            };
        }
        if matches!(code.mnemonic(), Mnemonic::Pcmpestri | Mnemonic::Pcmpestrm) {
            (regs[0], regs[2]) = (random.below(20), random.below(20));
        }
        let device = random.chance(16);
        let offset = match random.below(3) {
            0 => 64 + 32 * random.below(3) as usize,
            1 => 64 + random.below(64) as usize,
            _ => 128 - random.below(32) as usize,
        };
        let mut memory = [0; WINDOW_BYTES];
        for it in memory.chunks_mut(16) {
            it.copy_from_slice(&random.vector());
        }
        let mut vector = random.state();
        if instruction.is_vsib() {
            let indexes = instruction.memory_index().number();
            for it in 0..32 {
                let byte = if it % 4 == 0 {
                    random.below(16) as u8
                } else {
                    0
                };
                let wide = instruction.is_vsib64() && it % 8 != 0;
                let half = if it < 16 {
                    &mut vector.xmm
                } else {
                    &mut vector.ymm_high
                };
                half[indexes][it % 16] = if wide { 0 } else { byte };
            }
        }
        Some(Self {
            instruction: decode(&bytes),
            bytes,
            state: State::new(vector, regs, 0x202 | random.next() & STATUS),
            base,
            // A device's registers are in one page.
            offset: if device { offset % 96 } else { offset },
            device,
            unplaced: random.chance(16),
            memory,
        })
    }

    fn on_host(&self, host: &mut Host) -> Outcome {
        let mut window = Box::new(Window([0; 4096]));
        // The same offset in a page as in the guest, or as good as.
        window.0[0xf80 - 0x800..][..WINDOW_BYTES].copy_from_slice(&self.memory);
        let mut state = self.state.clone();
        state.regs[self.base.number()] = window.0.as_ptr() as u64 + 0x780 + self.offset as u64;
        let after = host.execute(&self.bytes, &state);
        let faulted = after.signal != 0;
        let (after, memory) = if faulted {
            (&self.state, &self.memory[..])
        } else {
            (&after, &window.0[0x780..][..WINDOW_BYTES])
        };
        outcome(faulted, after, self.base, memory)
    }

    fn in_core(&self, core: &mut Core, width: Width) -> Option<Outcome> {
        let mut op = native::select(&self.instruction, width)?;
        core.width = width;
        if self.unplaced && native::plan::plan(&self.instruction).is_some() {
            op = native::template::unplaced(&self.instruction, width)?;
        }
        let window = if self.device { DEVICE } else { WINDOW };
        core.vector.state = self.state.vector.clone();
        core.regs[..16].copy_from_slice(&self.state.regs);
        core.regs[self.base.number()] = window + self.offset as u64;
        core.flags.set(self.state.flags);
        write(core, window, &self.memory);
        let flow = (op.run)(core, &op);
        if let Ok(flow) = flow {
            assert!(matches!(flow, Flow::Next | Flow::Sync));
        }
        let mut regs = [0; 16];
        regs.copy_from_slice(&core.regs[..16]);
        let after = State::new(core.vector.state.clone(), regs, core.flags.get());
        let mut memory = vec![0; WINDOW_BYTES];
        for (index, it) in memory.chunks_mut(32).enumerate() {
            core.physical_read(window + 32 * index as u64, it);
        }
        Some(outcome(flow.is_err(), &after, self.base, &memory))
    }
}

fn write(core: &mut Core, address: u64, bytes: &[u8]) {
    for (index, it) in bytes.chunks(32).enumerate() {
        core.physical_write(address + 32 * index as u64, it);
    }
}

fn is_hint(mnemonic: Mnemonic) -> bool {
    matches!(
        mnemonic,
        Mnemonic::Prefetchnta | Mnemonic::Prefetcht0 | Mnemonic::Prefetcht1 | Mnemonic::Prefetcht2
    )
}

/// Whether a random mask decides which elements it accesses, if any.
fn is_masked(instruction: &Instruction) -> bool {
    instruction.is_vsib()
        || matches!(
            instruction.mnemonic(),
            Mnemonic::Vmaskmovps
                | Mnemonic::Vmaskmovpd
                | Mnemonic::Vpmaskmovd
                | Mnemonic::Vpmaskmovq
        )
}

fn uses_rdi(mnemonic: Mnemonic) -> bool {
    matches!(
        mnemonic,
        Mnemonic::Maskmovq | Mnemonic::Maskmovdqu | Mnemonic::Vmaskmovdqu
    )
}

/// Whether the decoder makes this code of its own encoding.
fn is_decoded(code: Code) -> bool {
    let made = Random(0).instruction(code, Register::RDI);
    made.and_then(|it| encode(&it))
        .is_some_and(|bytes| decode(&bytes).code() == code)
}

/// Codes of features that are ours, in 64-bit mode.
fn ours(code: Code) -> bool {
    let info = code.op_code();
    info.is_instruction()
        && info.mode64()
        && matches!(info.encoding(), EncodingKind::Legacy | EncodingKind::VEX)
        && code.cpuid_features().iter().all(|&it| native::supports(it))
        && code
            .cpuid_features()
            .iter()
            .any(|&it| it != CpuidFeature::CMOV)
}

#[test]
fn every_instruction_does_what_the_host_does() {
    if !native::supports(CpuidFeature::AVX) {
        return skip(
            "every_instruction_does_what_the_host_does",
            "the host has no AVX",
        );
    }
    let rounds: u64 = std::env::var("BERTH_DIFFERENTIAL_ROUNDS")
        .ok()
        .and_then(|it| it.parse().ok())
        .unwrap_or(12);
    let mut host = Host::new();
    let mut core = core();
    let (mut known, mut unknown) = (0, Vec::new());
    for code in Code::values().filter(|&it| ours(it)) {
        let mut met = false;
        for round in 0..rounds {
            let mut random = Random(round << 32 | code as u64);
            let Some(case) = Case::new(&mut random, code) else {
                continue;
            };
            let Some(actual) = case.in_core(&mut core, Width::Code64) else {
                continue;
            };
            met = true;
            let expected = case.on_host(&mut host);
            assert!(
                actual == expected,
                "{code:?} {} (round {round}, {:x?}), from {:x?} and {:x?}:{}",
                case.instruction,
                case.bytes,
                case.state.vector.mxcsr,
                case.state.regs,
                difference(&actual, &expected)
            );
        }
        if met {
            known += 1;
        } else {
            unknown.push(code);
        }
    }
    // Forms that no decoder makes: with `wait` before them, or one of several for the same bytes.
    unknown.retain(|&it| is_decoded(it));
    assert!(unknown.is_empty(), "not known: {unknown:?}");
    assert!(known > 1200, "only {known} codes were tried");
}

#[test]
fn an_operand_that_cannot_be_reached_changes_nothing() {
    let mut core = core();
    let mut faults = 0;
    for code in Code::values().filter(|&it| ours(it)) {
        let mut random = Random(code as u64);
        let Some(case) = Case::new(&mut random, code) else {
            continue;
        };
        let Some(op) = native::select(&case.instruction, Width::Code64) else {
            continue;
        };
        let has_memory = (0..case.instruction.op_count())
            .any(|it| case.instruction.op_kind(it) == OpKind::Memory);
        if !has_memory {
            continue;
        }
        core.vector.state = case.state.vector.clone();
        core.regs[..16].copy_from_slice(&case.state.regs);
        core.regs[case.base.number()] = 1 << 63;
        core.flags.set(case.state.flags);
        let before = (core.vector.state.clone(), core.regs, core.flags.get());
        let fault = if case.base == Register::RBP {
            Fault::ss(0)
        } else {
            Fault::GP0
        };
        let result = (op.run)(&mut core, &op);
        if is_hint(code.mnemonic()) {
            assert_eq!(result, Ok(Flow::Next), "{}", case.instruction);
        } else if is_masked(&case.instruction) && result.is_ok() {
            continue;
        } else {
            assert_eq!(result, Err(fault), "{}", case.instruction);
        }
        let after = (core.vector.state.clone(), core.regs, core.flags.get());
        assert!(before == after, "{}", case.instruction);
        faults += 1;
    }
    assert!(faults > 300);
}

#[test]
fn bytes_that_mean_the_same_in_32_bit_code_do_the_same() {
    let mut core = core();
    let mut same = 0;
    // These mean all registers, of which 32-bit code has eight.
    let all = |it: Code| matches!(it.mnemonic(), Mnemonic::Vzeroupper | Mnemonic::Vzeroall);
    let codes = Code::values().filter(|&it| ours(it) && it.op_code().mode32() && !all(it));
    for code in codes {
        for round in 0..8 {
            let mut random = Random(round << 32 | code as u64);
            let Some(mut case) = Case::new(&mut random, code) else {
                continue;
            };
            let mut decoder = Decoder::with_ip(32, &case.bytes, 0x1000, DecoderOptions::NONE);
            let instruction = decoder.decode();
            // Register numbers above 7 need bits that 32-bit code has not, or ignores.
            let low = |it: u32| {
                instruction.op_register(it) == case.instruction.op_register(it)
                    && instruction.memory_base().number() == case.instruction.memory_base().number()
                    && instruction.memory_index() == case.instruction.memory_index()
            };
            let whole = decoder.position() == case.bytes.len();
            if instruction.code() != code || !whole || !(0..instruction.op_count()).all(low) {
                continue;
            }
            for it in &mut case.state.regs {
                *it = u64::from(*it as u32);
            }
            let long = case.in_core(&mut core, Width::Code64);
            case.instruction = instruction;
            let short = case.in_core(&mut core, Width::Code32);
            assert!(
                long == short,
                "{instruction} ({:x?}), left in 32-bit code:{}",
                case.bytes,
                difference(&short.unwrap(), &long.unwrap())
            );
            same += 1;
        }
    }
    assert!(same > 1000, "only {same} were compared");
}
