//! From a [`Policy`] to a program.
//!
//! For each architecture the rules become a sorted list of ranges of system call numbers with one
//! outcome each, and that a binary search tree: some ten comparisons for any call, and few
//! instructions for the kernel to translate, which is most of what a filter costs at start.

use crate::action::Action;
use crate::arch::{Arch, X32_BIT};
use crate::emit::{self, Emitter, Instruction, Label};
use crate::policy::{Argument, Flag, NewCalls, Operator, Policy};
use crate::syscalls;

/// The kernel's limit (`BPF_MAXINSNS`).
const MAX_INSTRUCTIONS: usize = 4096;
/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;
const ENOSYS: u16 = 38;
/// Where ARM's private calls begin (`__ARM_NR_BASE`).
const ARM_PRIVATE: u32 = 0x000f_0000;
/// What a tracer writes to skip a call; it is no x32 call.
const SKIPPED: u32 = u32::MAX;

/// A compiled filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// The instructions, at most 4096.
    pub code: Vec<Instruction>,
    /// How to install it.
    pub flags: Vec<Flag>,
    /// Whether it asks a listener.
    pub notifies: bool,
    /// Names that no architecture has; they were left out. Worth a log line.
    pub unknown: Vec<String>,
}

/// Why a policy has no program.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CompileError {
    /// More than the kernel takes.
    #[error(
        "the seccomp policy needs {needed} or more instructions, and the kernel accepts 4096; use \
         fewer rules with arguments, or fewer architectures"
    )]
    TooLong {
        /// Instructions emitted when it was given up.
        needed: usize,
    },
    /// No table for the machine this runs on.
    #[error("seccomp is not supported on this machine's architecture yet; run without a profile")]
    Architecture,
    /// An argument number that no call has.
    #[error("the seccomp policy compares argument {0}; system calls have arguments 0 to 5")]
    Index(u8),
}

/// Compiles `policy`.
///
/// # Errors
/// [`CompileError::TooLong`] for a policy beyond the kernel's limit.
pub fn compile(policy: &Policy) -> Result<Program, CompileError> {
    let native = Arch::native().ok_or(CompileError::Architecture)?;
    let mut arguments = policy.rules.iter().flat_map(|rule| &rule.arguments);
    if let Some(bad) = arguments.find(|argument| argument.index > 5) {
        return Err(CompileError::Index(bad.index));
    }
    let mut architectures = policy.architectures.clone();
    architectures.push(native);
    architectures.sort_unstable();
    architectures.dedup();
    let (resolved, unknown) = resolve(policy);

    let mut out = Emitter::with_capacity(1024);
    let mut next = out.ret(Action::KillProcess);
    // Last tested first; the native one is emitted last, hence tested first and nearest.
    architectures
        .sort_by_key(|&arch| arch == native || (arch, native) == (Arch::X32, Arch::X86_64));
    let has_x32 = architectures.contains(&Arch::X32);
    let mut done = Vec::with_capacity(architectures.len());
    for &arch in &architectures {
        if done.contains(&arch.audit()) {
            continue;
        }
        done.push(arch.audit());
        let body = match arch.audit() == Arch::X32.audit() {
            true => {
                let plain = architectures.contains(&Arch::X86_64);
                x86_64_and_x32(&mut out, policy, &resolved, plain, has_x32)?
            }
            false => tree(&mut out, policy, &resolved, arch)?,
        };
        let body = out.load(NUMBER, body);
        next = out.branch(emit::JUMP_EQUAL, arch.audit(), body, next);
        if out.len() > MAX_INSTRUCTIONS {
            return Err(CompileError::TooLong { needed: out.len() });
        }
    }
    let entry = out.load(ARCHITECTURE, next);
    let code = out.finish(entry);
    if code.len() > MAX_INSTRUCTIONS {
        return Err(CompileError::TooLong { needed: code.len() });
    }
    Ok(Program {
        code,
        flags: policy.flags.clone(),
        notifies: policy.notifies(),
        unknown,
    })
}

/// One name of one rule: the numbers of the call, and which rule.
struct Entry {
    numbers: &'static [i32; 6],
    rule: u32,
}

/// Looks up all names once, for all architectures.
fn resolve(policy: &Policy) -> (Vec<Entry>, Vec<String>) {
    let mut entries = Vec::with_capacity(512);
    let mut unknown = Vec::new();
    for (i, rule) in policy.rules.iter().enumerate() {
        for name in &rule.names {
            match syscalls::numbers(name) {
                Some(numbers) => entries.push(Entry {
                    numbers,
                    rule: i as u32,
                }),
                None => unknown.push(name.to_string()),
            }
        }
    }
    (entries, unknown)
}

/// The two ABIs that share an audit number. Without the plain one its calls are refused.
fn x86_64_and_x32(
    out: &mut Emitter,
    policy: &Policy,
    entries: &[Entry],
    plain: bool,
    x32: bool,
) -> Result<Label, CompileError> {
    let kill = Action::KillProcess;
    let skipped = out.ret(policy.default_action);
    let marked = match x32 {
        true => tree(out, policy, entries, Arch::X32)?,
        false => out.ret(kill),
    };
    let marked = out.branch(emit::JUMP_EQUAL, SKIPPED, skipped, marked);
    let unmarked = match plain {
        true => tree(out, policy, entries, Arch::X86_64)?,
        false => out.ret(kill),
    };
    Ok(out.branch(emit::JUMP_GREATER_EQUAL, X32_BIT, marked, unmarked))
}

/// Numbers from `first` up to the next range's, with one outcome.
struct Range {
    first: u32,
    outcome: Outcome,
}

/// What happens with a call.
#[derive(Clone, PartialEq, Eq)]
enum Outcome {
    Always(Action),
    /// The rules to try in turn, then the default.
    Depends(Vec<u32>),
}

/// The search tree of one architecture, for the loaded number.
fn tree(
    out: &mut Emitter,
    policy: &Policy,
    entries: &[Entry],
    arch: Arch,
) -> Result<Label, CompileError> {
    let ranges = ranges(policy, entries, arch);
    search(out, policy, &ranges, arch)
}

fn search(
    out: &mut Emitter,
    policy: &Policy,
    ranges: &[Range],
    arch: Arch,
) -> Result<Label, CompileError> {
    if out.len() > MAX_INSTRUCTIONS {
        return Err(CompileError::TooLong { needed: out.len() });
    }
    let (low, high) = match ranges {
        [] => return Ok(out.ret(policy.default_action)),
        [one] => return Ok(leaf(out, policy, &one.outcome, arch)),
        // One number between two ranges of the same outcome, or the end: one test is enough.
        [a, b, c] if b.first + 1 == c.first && a.outcome == c.outcome => {
            let no = leaf(out, policy, &a.outcome, arch);
            let yes = leaf(out, policy, &b.outcome, arch);
            return Ok(out.branch(emit::JUMP_EQUAL, b.first, yes, no));
        }
        _ => ranges.split_at(ranges.len() / 2),
    };
    let no = search(out, policy, low, arch)?;
    let yes = search(out, policy, high, arch)?;
    Ok(out.branch(emit::JUMP_GREATER_EQUAL, high[0].first, yes, no))
}

/// All numbers of `arch` as sorted ranges of equal outcome, the first from the lowest number.
fn ranges(policy: &Policy, entries: &[Entry], arch: Arch) -> Vec<Range> {
    let marker = if arch == Arch::X32 { X32_BIT } else { 0 };
    let column = arch.column();
    let mut calls: Vec<(u32, u32)> = entries
        .iter()
        .filter_map(|e| Some((u32::try_from(e.numbers[column]).ok()? | marker, e.rule)))
        .collect();
    calls.sort_unstable();
    let mut ranges: Vec<Range> = Vec::with_capacity(128);
    let mut push = |first: u32, outcome: Outcome| match ranges.last() {
        Some(last) if last.outcome == outcome => {}
        _ => ranges.push(Range { first, outcome }),
    };
    let default = Outcome::Always(policy.default_action);
    let newer = match (
        policy.new_calls,
        policy.default_action.lets_pass(),
        calls.is_empty(),
    ) {
        (NewCalls::Enosys, false, false) => Outcome::Always(Action::Errno(ENOSYS)),
        _ => default.clone(),
    };
    let mut expected = marker;
    for same in calls.chunk_by(|a, b| a.0 == b.0) {
        let number = same[0].0;
        if number > expected {
            // ARM keeps private calls far above the others: newer ones come in between.
            let is_new = arch == Arch::Arm && number >= ARM_PRIVATE;
            push(
                expected,
                if is_new {
                    newer.clone()
                } else {
                    default.clone()
                },
            );
        }
        push(number, outcome(policy, same.iter().map(|call| call.1)));
        expected = number + 1;
    }
    push(expected, newer);
    ranges
}

/// Rules without arguments win, the first of them; rules with arguments are alternatives. A rule
/// that says what happens anyway is none, as runtimes have always read it.
fn outcome(policy: &Policy, rules: impl Iterator<Item = u32> + Clone) -> Outcome {
    let rule = |i: u32| &policy.rules[i as usize];
    let rules = rules.filter(|&i| rule(i).action != policy.default_action);
    if let Some(always) = rules.clone().find(|&i| rule(i).arguments.is_empty()) {
        return Outcome::Always(rule(always).action);
    }
    let mut rules: Vec<u32> = rules.collect();
    rules.dedup();
    if rules.is_empty() {
        Outcome::Always(policy.default_action)
    } else {
        Outcome::Depends(rules)
    }
}

fn leaf(out: &mut Emitter, policy: &Policy, outcome: &Outcome, arch: Arch) -> Label {
    let rules = match outcome {
        Outcome::Always(action) => return out.ret(*action),
        Outcome::Depends(rules) => rules,
    };
    let mut otherwise = out.ret(policy.default_action);
    for &i in rules.iter().rev() {
        let rule = &policy.rules[i as usize];
        let twice = |a: &Argument| rule.arguments.iter().filter(|b| b.index == a.index).count() > 1;
        let mut hit = out.ret(rule.action);
        if rule.arguments.iter().any(twice) {
            for argument in rule.arguments.iter().rev() {
                otherwise = test(out, *argument, arch, hit, otherwise);
            }
        } else {
            for argument in rule.arguments.iter().rev() {
                hit = test(out, *argument, arch, hit, otherwise);
            }
            otherwise = hit;
        }
    }
    otherwise
}

/// Emits the test of one argument, which goes to `yes` or `no`.
fn test(out: &mut Emitter, argument: Argument, arch: Arch, yes: Label, no: Label) -> Label {
    use Operator::*;
    let low_word = ARGUMENTS + 8 * u32::from(argument.index);
    let (mask, value) = match argument.operator {
        MaskedEqual => (argument.value, argument.value_two),
        _ => (u64::MAX, argument.value),
    };
    let (yes, no) = match argument.operator {
        NotEqual | Less | LessOrEqual => (no, yes),
        Equal | MaskedEqual | GreaterOrEqual | Greater => (yes, no),
    };
    let last = match argument.operator {
        Equal | NotEqual | MaskedEqual => emit::JUMP_EQUAL,
        GreaterOrEqual | Less => emit::JUMP_GREATER_EQUAL,
        Greater | LessOrEqual => emit::JUMP_GREATER,
    };
    let (high, low) = ((value >> 32) as u32, value as u32);
    let (high_mask, low_mask) = ((mask >> 32) as u32, mask as u32);
    let mut at = out.branch(last, low, yes, no);
    if low_mask != u32::MAX {
        at = out.and(low_mask, at);
    }
    at = out.load(low_word, at);
    if !arch.is_64_bit() || (high_mask == 0 && high == 0) {
        return at;
    }
    at = out.branch(emit::JUMP_EQUAL, high, at, no);
    if last != emit::JUMP_EQUAL {
        // Equal high words fall through to the low ones; the order was decided otherwise.
        at = out.branch(emit::JUMP_GREATER, high, yes, at);
    }
    if high_mask != u32::MAX {
        at = out.and(high_mask, at);
    }
    out.load(low_word + 4, at)
}
