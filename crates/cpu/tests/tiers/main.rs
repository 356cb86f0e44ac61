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
use guest::{CODE, End, Guest, PAGE, State, Tier};
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
    random: Random,
    factory: InstructionInfoFactory,
    content: Vec<u8>,
}

impl Pair {
    fn new(seed: u64, one: Tier) -> Self {
        Self {
            zero: Guest::new(Tier::Zero),
            one: Guest::new(one),
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
                self.load(&image);
                continue;
            };
            self.one.fill(&self.content);
            let mut found = self.one.run(&start).expect("tier 1 runs to the end");
            expected.flags &= !program.undefined;
            found.flags &= !program.undefined;
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
                self.load(&image);
            }
            if expected.code != image {
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
    if pair.one.translations() == 0 {
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
    assert!(pair.one.compared() > 1000 || pair.one.translations() == 0);
}
