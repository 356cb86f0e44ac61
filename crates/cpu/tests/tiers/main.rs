//! Tier 1 against tier 0: what is translated must end as what is interpreted, instruction by instruction and in programs
//! of many blocks: the same registers, flags and memory, the same faults at the same place, the same accesses to devices
//! in the same order.
//!
//! Tier 0 itself is held against the host's processor by the `differential` tests. By default each test tries some
//! thousand programs; `CPU_TIERS_PROGRAMS` asks for another number, `CPU_TIERS_SEED` for others. A failure prints the
//! program and the state it began with.

#![cfg(all(target_arch = "x86_64", target_os = "linux"))]
#![allow(missing_docs, reason = "a test is read, not called")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(
    clippy::print_stderr,
    reason = "a skip is said where tests are watched"
)]

#[path = "../common/mod.rs"]
mod common;
mod found;
mod guest;
mod instruction;
mod program;
mod random;

use std::collections::BTreeMap;

use common::Random;
use guest::{CODE, DATA, End, Guest, PAGE, State, System, Tier};
use iced_x86::{Code, Decoder, DecoderOptions, Instruction, InstructionInfoFactory, Mnemonic};
use program::Program;

/// Often enough that anything is translated.
const RUNS: u64 = 40;

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().expect("a number"))
}

/// The same guest on both tiers.
struct Pair {
    zero: Guest,
    one: Guest,
    tier: Tier,
    /// How often blocks were compared, and translated, by guests that were replaced.
    before: (u64, u64),
    /// How both begin.
    system: System,
    random: Random,
    factory: InstructionInfoFactory,
    content: Vec<u8>,
}

impl Pair {
    fn new(seed: u64, one: Tier) -> Self {
        let zero = Guest::new(Tier::Zero);
        Self {
            system: zero.system(),
            zero,
            one: Guest::new(one),
            tier: one,
            before: (0, 0),
            random: Random::spread(seed),
            factory: InstructionInfoFactory::new(),
            content: vec![0; Guest::data_bytes()],
        }
    }

    /// Other data.
    fn refresh(&mut self) {
        for chunk in self.content.chunks_mut(8) {
            chunk.copy_from_slice(&self.random.float().to_le_bytes());
        }
    }

    fn load(&mut self, image: &[u8]) {
        self.zero.write(CODE, image);
        self.one.write(CODE, image);
    }

    /// How often blocks were compared, and translated.
    fn counts(&self) -> (u64, u64) {
        let (compared, translated) = self.before;
        (
            compared + self.one.compared(),
            translated + self.one.translations(),
        )
    }

    /// Begins anew, where a program went astray. What it did to the control registers would stay: with `cr3` somewhere
    /// in the data no later program would get to run, or only by the tier that still remembers where its code was; and
    /// accessed bits would come up among the data, at a time that each tier may choose.
    fn replace(&mut self, image: &[u8]) {
        self.before = self.counts();
        self.zero = Guest::new(Tier::Zero);
        self.one = Guest::new(self.tier);
        self.load(image);
    }

    /// Runs a program again and again from other states; the first difference.
    fn compare(&mut self, program: &Program, runs: u64) -> Result<(), String> {
        let image = program.image();
        self.load(&image);
        self.refresh();
        let rip = program.code[0].0;
        for run in 0..runs {
            let start = program::state(program.roles, rip, &mut self.random);
            self.zero.fill(&self.content);
            let Some(mut expected) = self.zero.run(&start) else {
                // It may have gone anywhere on its way.
                self.replace(&image);
                continue;
            };
            self.one.fill(&self.content);
            let mut found = self.one.run(&start).expect("tier 1 runs to the end");
            expected.flags &= !program.undefined;
            found.flags &= !program.undefined;
            let astray = expected.system != self.system || found.system != self.system;
            let nowhere = found.is_of_branch_nowhere() && expected.fault == found.fault;
            if found != expected && !nowhere {
                self.load(&image);
                self.zero.fill(&self.content);
                let executed = self.zero.trace(&start);
                if !executed.iter().any(differs_each_time) {
                    let what = difference(&expected, &found);
                    return Err(format!(
                        "run {run}: {what}\nfrom {}\n{}executed by tier 0:\n{}",
                        text_of(&start),
                        listing(program),
                        text_of_all(&executed)
                    ));
                }
                self.replace(&image);
            } else if astray {
                self.replace(&image);
            } else if expected.code != image {
                self.load(&image);
            }
        }
        Ok(())
    }
}

/// Whether an instruction tells the time or a random number. None is made on purpose, but programs that write over
/// themselves come to execute anything.
fn differs_each_time(it: &Instruction) -> bool {
    matches!(
        it.mnemonic(),
        Mnemonic::Rdtsc | Mnemonic::Rdtscp | Mnemonic::Rdmsr | Mnemonic::Rdrand | Mnemonic::Rdseed
    )
}

fn text_of_all(instructions: &[Instruction]) -> String {
    let lines = instructions
        .iter()
        .map(|it| format!("{:x}: {it}\n", it.ip()));
    lines.collect()
}

fn text_of(state: &State) -> String {
    format!(
        "regs {:x?} flags {:x} mxcsr {:x}",
        state.regs, state.flags, state.vector.mxcsr
    )
}

fn difference(expected: &End, found: &End) -> String {
    let mut text = String::new();
    let mut note = |what: &str, expected: String, found: String| {
        if expected != found {
            text += &format!("{what}: tier 0 {expected}, tier 1 {found}\n");
        }
    };
    note(
        "fault",
        format!("{:x?}", expected.fault),
        format!("{:x?}", found.fault),
    );
    note(
        "rip",
        format!("{:x}", expected.rip),
        format!("{:x}", found.rip),
    );
    note(
        "flags",
        format!("{:x}", expected.flags),
        format!("{:x}", found.flags),
    );
    note(
        "cr2",
        format!("{:x}", expected.cr2),
        format!("{:x}", found.cr2),
    );
    note(
        "system",
        format!("{:x?}", expected.system),
        format!("{:x?}", found.system),
    );
    note(
        "devices",
        format!("{:x?}", expected.touches),
        format!("{:x?}", found.touches),
    );
    for number in 0..16 {
        let (before, after) = (expected.regs[number], found.regs[number]);
        note(
            &format!("register {number}"),
            format!("{before:x}"),
            format!("{after:x}"),
        );
    }
    let (before, after) = (expected.vector.area(), found.vector.area());
    for (number, (before, after)) in before.chunks(16).zip(after.chunks(16)).enumerate() {
        note(
            &format!("vector state + {}", number * 16),
            format!("{before:x?}"),
            format!("{after:x?}"),
        );
    }
    note(
        "code",
        format!("{:x?}", expected.code),
        format!("{:x?}", found.code),
    );
    let lines = expected.memory.chunks(16).zip(found.memory.chunks(16));
    for (number, (before, after)) in lines.enumerate() {
        note(
            &format!("data + {:x}", number * 16),
            format!("{before:x?}"),
            format!("{after:x?}"),
        );
    }
    text
}

fn listing(program: &Program) -> String {
    let mut text = String::new();
    for (address, bytes) in &program.code {
        for it in Decoder::with_ip(64, bytes, *address, DecoderOptions::NONE) {
            let start = (it.ip() - address) as usize;
            text += &format!(
                "{:x}: {it} {:02x?}\n",
                it.ip(),
                &bytes[start..start + it.len()]
            );
        }
    }
    text
}

#[test]
fn every_form_ends_in_translation_as_interpreted() {
    let seed = setting("CPU_TIERS_SEED", 1);
    let mut pair = Pair::new(seed, Tier::One);
    let forms = instruction::forms(&mut pair.random);
    assert!(forms.len() > 1000, "only {} forms", forms.len());
    let rounds = setting("CPU_TIERS_PROGRAMS", 3000).div_ceil(forms.len() as u64);
    let mut failures = BTreeMap::<String, String>::new();
    for _ in 0..rounds {
        for code in &forms {
            // Now and then at the end of a page.
            let address = match pair.random.below(8) {
                0 => CODE + PAGE - pair.random.below(8),
                other => CODE + other * 0x20,
            };
            let Some(program) =
                program::single(*code, address, &mut pair.random, &mut pair.factory)
            else {
                continue;
            };
            if let Err(text) = pair.compare(&program, RUNS) {
                failures.entry(format!("{code:?}")).or_insert(text);
            }
        }
    }
    let texts: Vec<_> = failures
        .iter()
        .map(|(code, text)| format!("{code}\n{text}"))
        .collect();
    assert!(
        failures.is_empty(),
        "seed {seed}: {} forms differ\n{}",
        failures.len(),
        texts.join("\n")
    );
}

fn compare_programs(forms: &[Code], blocks: u64, seed: u64, one: Tier) -> Pair {
    let mut pair = Pair::new(seed, one);
    for number in 0..setting("CPU_TIERS_PROGRAMS", 600) {
        let program = program::blocks(forms, blocks, &mut pair.random, &mut pair.factory);
        if let Err(text) = pair.compare(&program, RUNS) {
            panic!("seed {seed}, program {number}: {text}");
        }
    }
    if pair.counts().1 == 0 {
        eprintln!("SKIP translations: this machine lacks what they need");
    }
    pair
}

#[test]
fn programs_end_in_translation_as_interpreted() {
    let seed = setting("CPU_TIERS_SEED", 1);
    let forms = instruction::forms(&mut Random::spread(seed));
    compare_programs(&forms, 8, seed, Tier::One);
}

#[test]
fn programs_of_common_instructions_end_in_translation_as_interpreted() {
    let seed = setting("CPU_TIERS_SEED", 1);
    let forms = instruction::forms(&mut Random::spread(seed));
    let common: Vec<_> = forms
        .into_iter()
        .filter(|code| instruction::is_common(*code))
        .collect();
    compare_programs(&common, 6, seed, Tier::One);
}

/// The comparison that whole boots are run under.
#[test]
fn blocks_in_lockstep_agree() {
    let seed = setting("CPU_TIERS_SEED", 1) + 1;
    let forms = instruction::forms(&mut Random::spread(seed));
    let pair = compare_programs(&forms, 8, seed, Tier::Lockstep);
    let (compared, translated) = pair.counts();
    assert!(compared > 1000 || translated == 0);
}

/// Of programs made of 10,000, one came to load `cr3` with an address of data. All that followed faulted at once, on both
/// tiers alike, until one found a table among its data; and then there was an accessed bit that only one tier had set.
#[test]
fn a_program_that_goes_astray_leaves_nothing_to_the_next() {
    let mut pair = Pair::new(1, Tier::One);
    let roles = instruction::Roles::new(&mut pair.random);
    let program = |code: &[u8]| Program {
        code: vec![(CODE, code.to_vec())],
        roles,
        undefined: 0,
    };
    // mov eax, DATA + PAGE; mov cr3, rax; hlt
    let mut astray = vec![0xb8];
    astray.extend(((DATA + PAGE) as u32).to_le_bytes());
    astray.extend([0x0f, 0x22, 0xd8, 0xf4]);
    pair.compare(&program(&astray), RUNS).unwrap();
    assert_eq!(pair.zero.system(), pair.system);
    // mov eax, 7; hlt
    let plain = program(&[0xb8, 7, 0, 0, 0, 0xf4]);
    pair.compare(&plain, RUNS).unwrap();
    let start = program::state(roles, CODE, &mut pair.random);
    for guest in [&mut pair.zero, &mut pair.one] {
        let end = guest.run(&start).unwrap();
        assert_eq!((end.fault, end.regs[0]), (None, 7));
    }
}
