//! The software CPU against the host's processor: the same instruction, from the same state, must
//! end in the same state, whether it completes or faults.
//!
//! Every form of every instruction that `integer` executes is tried, with random operands. By
//! default some hundred thousand cases are; `CPU_DIFFERENTIAL_CASES` asks for another number, and
//! `CPU_DIFFERENTIAL_SEED` for others. A failure prints a case that can be tried again.

#![cfg(all(target_arch = "x86_64", target_os = "linux"))]
#![allow(missing_docs, reason = "a test is read, not called")]

#[path = "../common/mod.rs"]
mod common;
mod generate;
mod guest;
mod host;

use std::collections::BTreeMap;

use common::{Random, status_flags};
use cpu::soft::{Fault, integer, op::Width};
use generate::Case;
use guest::Guest;
use host::{Host, OPEN, OPEN_BYTES, Registers, landing, slot};
use iced_x86::{Code, Instruction};

/// Status flags and the direction flag.
const COMPARED: u64 = 0xcd5;

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().expect("a number"))
}

/// The flags an instruction leaves undefined, in their places.
fn undefined(instruction: &Instruction) -> u64 {
    status_flags(instruction.rflags_undefined())
}

/// The flags an instruction sets by its result.
fn overwritten(instruction: &Instruction) -> u64 {
    let written = instruction.rflags_written();
    status_flags(written | instruction.rflags_set() | instruction.rflags_cleared())
}

/// Both processors, with the same memory.
struct Pair {
    host: Host,
    guest: Guest,
    random: Random,
    width: Width,
}

impl Pair {
    fn new(guest: Guest, width: Width, seed: u64) -> Self {
        let mut pair = Self {
            host: Host::new(width),
            guest,
            width,
            random: Random::new(seed),
        };
        pair.fill(None);
        pair
    }

    /// Fills both windows with the same, a word of it as wanted.
    fn fill(&mut self, word: Option<(u64, u64)>) {
        let mut content: Vec<u8> = self.host.open().to_vec();
        if let Some((address, value)) = word {
            let offset = address.wrapping_sub(OPEN) as usize;
            let places = content.iter_mut().skip(offset);
            for (place, byte) in places.zip(value.to_le_bytes()) {
                *place = byte;
            }
        } else {
            // Runs of equal bytes among random ones, for what compares strings.
            for chunk in content.chunks_mut(32) {
                let random = self.random.next();
                for (index, byte) in chunk.iter_mut().enumerate() {
                    *byte = match random & 3 {
                        0 => 0,
                        1 => 0x41,
                        _ => (random >> (index % 8 * 8)) as u8 ^ index as u8,
                    };
                }
            }
        }
        self.host.fill(&content);
        self.guest.fill(&content);
    }

    /// Runs a case on both; the difference, if there is one.
    fn compare(&mut self, case: &Case) -> Result<(), String> {
        if case.memory.is_some() {
            self.fill(case.memory);
        }
        let instruction = Guest::decode(&case.bytes, self.width);
        let (host, host_ending) = self.host.run(&case.bytes, &case.before);
        let (guest, guest_ending) = self.guest.run(&instruction, &case.bytes, &case.before);
        let next = slot(self.width) + case.bytes.len() as u64;
        let cr2 = self.guest.core().control.cr2;
        let same_ending = match (host_ending, guest_ending) {
            (host::Ending::Next, guest::Ending::Rip(rip)) => rip == next,
            (host::Ending::Taken, guest::Ending::Rip(rip)) => rip == landing(self.width),
            (host::Ending::Signal(signal, address), guest::Ending::Fault(fault)) => {
                is_signal_of(fault, signal) && (fault.vector != 14 || address == cr2)
            }
            _ => false,
        };
        if !same_ending {
            return Err(format!(
                "host ends with {host_ending:x?}, guest with {guest_ending:x?} (cr2 {cr2:#x})"
            ));
        }
        let mut mask = COMPARED & !undefined(&instruction);
        if self.guest.translates() && matches!(guest_ending, guest::Ending::Fault(_)) {
            // Status flags that the instruction would have overwritten are not kept.
            mask &= !overwritten(&instruction);
        }
        if (host.flags ^ guest.flags) & mask != 0 {
            return Err(format!(
                "flags: host {:#x}, guest {:#x}",
                host.flags & mask,
                guest.flags & mask
            ));
        }
        if host.gpr != guest.gpr {
            return Err(format!(
                "registers: host {:x?}\n          guest {:x?}",
                host.gpr, guest.gpr
            ));
        }
        let (host_memory, guest_memory) = (self.host.open(), self.guest.open());
        if let Some(at) = (0..OPEN_BYTES).find(|at| host_memory[*at] != guest_memory[*at]) {
            return Err(format!(
                "memory at {:#x}: host {:x?}, guest {:x?}",
                OPEN + at as u64,
                &host_memory[at..(at + 16).min(OPEN_BYTES)],
                &guest_memory[at..(at + 16).min(OPEN_BYTES)]
            ));
        }
        Ok(())
    }
}

fn is_signal_of(fault: Fault, signal: i32) -> bool {
    match fault.vector {
        0 => signal == libc::SIGFPE,
        5 => signal == libc::SIGSEGV,
        6 => signal == libc::SIGILL,
        12 | 17 => signal == libc::SIGBUS,
        13 | 14 => signal == libc::SIGSEGV,
        _ => false,
    }
}

/// Tries every form of a width, some number of times.
fn compare_all(guest: Guest, width: Width, cases: u64) -> Guest {
    let seed = setting("CPU_DIFFERENTIAL_SEED", 1);
    let mut pair = Pair::new(guest, width, seed);
    let forms: Vec<Code> = Code::values()
        .filter(|code| generate::is_testable(*code, width))
        .filter(|code| {
            (0..20).any(|_| {
                generate::case(*code, width, &mut pair.random).is_some_and(|case| {
                    let instruction = Guest::decode(&case.bytes, width);
                    integer::select(&instruction, width).is_some()
                })
            })
        })
        .collect();
    assert!(forms.len() > 300, "only {} forms", forms.len());
    let mut failures = BTreeMap::<String, (u64, String)>::new();
    for round in 0..cases / forms.len() as u64 {
        if round % 8 == 0 {
            pair.fill(None);
        }
        for code in &forms {
            let Some(case) = generate::case(*code, width, &mut pair.random) else {
                continue;
            };
            if let Err(difference) = pair.compare(&case) {
                let text = describe(*code, &case, &difference);
                failures.entry(format!("{code:?}")).or_insert((0, text)).0 += 1;
                pair.fill(None);
            }
        }
    }
    let texts: String = failures
        .values()
        .map(|(count, text)| format!("{count} times: {text}\n\n"))
        .collect();
    assert!(
        failures.is_empty(),
        "seed {seed}: {} of {} forms differ\n{texts}",
        failures.len(),
        forms.len()
    );
    pair.guest
}

fn describe(code: Code, case: &Case, difference: &str) -> String {
    let (Registers { gpr, flags }, bytes) = (case.before, &case.bytes);
    format!("{code:?} {bytes:02x?}\n  from {gpr:x?} flags {flags:x}\n  {difference}")
}

#[test]
fn every_form_of_integer_instruction_ends_as_on_the_host() {
    compare_all(
        Guest::new(Width::Code64),
        Width::Code64,
        setting("CPU_DIFFERENTIAL_CASES", 60_000),
    );
}

#[test]
fn every_form_of_integer_instruction_ends_as_on_the_host_when_it_is_translated() {
    let guest = compare_all(
        Guest::translating(),
        Width::Code64,
        setting("CPU_DIFFERENTIAL_CASES", 60_000),
    );
    if guest.translations() == 0 {
        eprintln!("SKIP: nothing was translated: the processor lacks what translations need");
    }
}

#[test]
fn every_form_of_32_bit_integer_instruction_ends_as_on_the_host() {
    if let Err(reason) = host::can_run(Width::Code32) {
        eprintln!("SKIP every_form_of_32_bit_integer_instruction_ends_as_on_the_host: {reason}");
        return;
    }
    compare_all(
        Guest::new(Width::Code32),
        Width::Code32,
        setting("CPU_DIFFERENTIAL_CASES", 60_000),
    );
}

#[test]
fn every_form_of_16_bit_integer_instruction_ends_as_on_the_host() {
    if let Err(reason) = host::can_run(Width::Code16) {
        eprintln!("SKIP every_form_of_16_bit_integer_instruction_ends_as_on_the_host: {reason}");
        return;
    }
    compare_all(
        Guest::new(Width::Code16),
        Width::Code16,
        setting("CPU_DIFFERENTIAL_CASES", 60_000),
    );
}
