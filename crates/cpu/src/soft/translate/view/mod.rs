//! One block for people: the guest's code, what the translator plans for each instruction, and the
//! host's code it writes.
//!
//! `berth-vmm block` shows it. It drives the same [`Writer`] as the translator, so it shows what is
//! executed; nothing is executed here, and no machine that runs ever calls it.

mod names;
mod text;

#[cfg(test)]
mod tests;

use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction};

use self::names::Names;
use super::{
    block::{SlowKind, Source, Writer, forms_of},
    emit::Assembler,
    form::{Class, Form, Forms},
    interface::exit,
    mode::Mode,
    retpoline, thunks,
};
use crate::soft::{Op, Width, block::decode};

const PAGE: usize = 0x1000;
/// Where the host's code is said to lie. It is not executed, so any address does.
const HOST_BASE: usize = 0x1000_0000;

/// Why there is nothing to show.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ViewError {
    /// Not even one instruction.
    #[error(
        "the bytes are no whole instruction of {0}-bit code on one page; give more of them, or another mode"
    )]
    Incomplete(u32),
}

/// What is to be shown.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// The guest's code; what follows the first block is not looked at.
    pub bytes: &'a [u8],
    /// The address it runs at.
    pub address: u64,
    /// Which mode it runs in.
    pub width: Width,
    /// Whether it is code of a user; else of the supervisor.
    pub user: bool,
}

/// A block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    width: Width,
    user: bool,
    /// Its instructions.
    pub steps: Vec<Step>,
    /// Where it leads to.
    pub exits: Vec<Exit>,
    /// The translation; empty for code that is interpreted.
    pub host: Vec<Piece>,
}

/// An instruction and the plan for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Its address.
    pub address: u64,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Its text.
    pub text: String,
    /// What becomes of it.
    pub plan: Plan,
    /// The status flags before it are of use to it or to what follows, so they are kept.
    pub keeps_flags: bool,
}

/// What becomes of an instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plan {
    /// The interpreter runs it, as all of its block.
    Interpreted,
    /// Translated code calls the interpreter's handler for it.
    Handler,
    /// Nothing of it is left: a guest cannot see that.
    LeftOut,
    /// Its bytes, as they are.
    Copied,
    /// Something else that does the same; no memory is accessed.
    Rewritten,
    /// Its memory operand is looked up in the TLB, with the handler as the slow path.
    LookedUp,
    /// As before, at once with so many instructions from this one on.
    LookedUpWith(usize),
    /// It is part of the run before it.
    InRun,
    /// It has a slow path by its handler that is taken for other reasons than memory.
    Guarded,
    /// It ends the block.
    Exit,
    /// With what it calls it is a jump to a register, and becomes one.
    Retpoline,
}

/// Where a block leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Directly, within the page: linked once its target is translated.
    Near(u64),
    /// Directly, to another page: through the table of targets.
    Distant(u64),
    /// To a computed address: through the table of targets.
    Computed,
    /// Wherever the handler of the last instruction leads.
    Handler,
    /// Not known: the interpreter runs it.
    Interpreter,
}

/// A piece of the translation with a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// What it is for.
    pub name: String,
    /// Its instructions.
    pub lines: Vec<Line>,
}

/// An instruction of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// From the beginning of the translation, in bytes.
    pub offset: usize,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Its text, with names for what it refers to.
    pub text: String,
}

/// Shows the first block of some code.
///
/// # Errors
/// When there is no whole instruction.
pub fn view(request: Request<'_>) -> Result<View, ViewError> {
    let Request { address, width, .. } = request;
    let in_page = PAGE - address as usize % PAGE;
    let room = in_page.min(decode::MOST_BYTES);
    let bytes = &request.bytes[..request.bytes.len().min(room)];
    let mut ops = Vec::new();
    if decode::append(width, bytes, &mut ops) == 0 {
        return Err(ViewError::Incomplete(width.bits()));
    }
    let instructions: Vec<Instruction> =
        Decoder::with_ip(width.bits(), bytes, address, DecoderOptions::NONE)
            .into_iter()
            .take(ops.len())
            .collect();
    let length = ops.iter().map(|it| usize::from(it.len)).sum();
    let bytes = &bytes[..length];
    if width != Width::Code64 {
        return Ok(interpreted(request, bytes, &instructions));
    }
    let source = Source {
        rip: address,
        bytes,
        instructions: &instructions,
        ops: &ops,
        mode: Mode::usual(request.user),
        callee: callee(request, &instructions),
    };
    Ok(translated(request, &source))
}

fn step(bytes: &[u8], start: u64, it: &Instruction, plan: Plan, keeps_flags: bool) -> Step {
    let at = it.ip().wrapping_sub(start) as usize;
    Step {
        address: it.ip(),
        bytes: bytes[at..at + it.len()].to_vec(),
        text: names::plain().text(it),
        plan,
        keeps_flags,
    }
}

fn interpreted(request: Request<'_>, bytes: &[u8], instructions: &[Instruction]) -> View {
    let step = |it| step(bytes, request.address, it, Plan::Interpreted, false);
    View {
        width: request.width,
        user: request.user,
        steps: instructions.iter().map(step).collect(),
        exits: vec![Exit::Interpreter],
        host: Vec::new(),
    }
}

/// Where a piece of the translation begins.
struct Mark {
    offset: usize,
    name: String,
}

fn translated(request: Request<'_>, source: &Source<'_>) -> View {
    let mut code = Assembler::new(HOST_BASE);
    let thunks = thunks::write(&mut code);
    let base = HOST_BASE + code.len().next_multiple_of(PAGE);
    code.restart(base);
    let mut forms = Forms::new();
    let forms = forms_of(source, &mut forms);
    let mut kept: Vec<Op> = Vec::with_capacity(source.ops.len());
    let (mut writer, entry) = Writer::begin(&mut code, thunks, source, &forms, &mut kept);
    let mut marks: Vec<Mark> = [
        (entry.indirect, "entered by a computed jump"),
        (entry.checked, "entered by a jump back"),
    ]
    .into_iter()
    .map(|(at, name)| Mark {
        offset: at - base,
        name: name.to_owned(),
    })
    .collect();

    let mut plans = Vec::new();
    while plans.len() < forms.len() {
        let index = plans.len();
        let before = writer.code.len();
        let slow = writer.slow.len();
        let count = writer.next(&forms, index);
        marks.push(Mark {
            offset: before,
            name: name_of_run(source, index, count),
        });
        let written = &writer.code.bytes()[before..];
        let form = &forms[index];
        let slow = &writer.slow[slow..];
        plans.push(match form.class {
            _ if writer.untranslated.last() == Some(&index) => Plan::Handler,
            _ if count > 1 => Plan::LookedUpWith(count),
            Class::Nothing => Plan::LeftOut,
            Class::Jump | Class::JumpIf => Plan::Exit,
            Class::Retpoline(_) => Plan::Retpoline,
            Class::Divide(_) | Class::InterruptFlag(true) => Plan::Guarded,
            _ if slow
                .iter()
                .any(|it| matches!(it.kind, SlowKind::Handlers(..))) =>
            {
                Plan::LookedUp
            }
            _ if written == source_bytes(source, index) => Plan::Copied,
            _ => Plan::Rewritten,
        });
        plans.extend((1..count).map(|_| Plan::InRun));
    }
    let live = writer.live.clone();
    let exits = finish(&mut writer, &forms, &mut marks);
    let mut names = Names::new(thunks);
    for (index, op) in writer.kept_at.iter().enumerate() {
        if let Some(op) = op {
            names.add(*op, format!("op{index}"));
        }
    }
    let bytes = writer.code.bytes().to_vec();
    let steps = source.instructions.iter().zip(plans).zip(live);
    View {
        width: request.width,
        user: request.user,
        steps: steps
            .map(|((it, plan), live)| step(source.bytes, source.rip, it, plan, live))
            .collect(),
        exits,
        host: pieces(&bytes, base, marks, names),
    }
}

/// What the call at the end of a block leads to, as far as that was given.
fn callee<'a>(request: Request<'a>, instructions: &[Instruction]) -> &'a [u8] {
    let last = instructions.last();
    let Some((target, length)) = last.and_then(|it| retpoline::callee(it, request.address)) else {
        return &[];
    };
    let at = target.wrapping_sub(request.address) as usize;
    let bytes = request.bytes.get(at..).unwrap_or_default();
    &bytes[..bytes.len().min(length)]
}

fn source_bytes<'a>(source: &Source<'a>, index: usize) -> &'a [u8] {
    let it = &source.instructions[index];
    let at = it.ip().wrapping_sub(source.rip) as usize;
    &source.bytes[at..at + it.len()]
}

fn name_of_run(source: &Source<'_>, index: usize, count: usize) -> String {
    let texts: Vec<_> = source.instructions[index..index + count]
        .iter()
        .map(|it| names::plain().text(it))
        .collect();
    let last = index + count - 1;
    let numbers = if count > 1 {
        format!("{index} to {last}")
    } else {
        index.to_string()
    };
    format!("{numbers}: {}", texts.join("; "))
}

/// Writes what follows the instructions, and says where the block leads.
fn finish(writer: &mut Writer<'_>, forms: &[Form], marks: &mut Vec<Mark>) -> Vec<Exit> {
    marks.push(Mark {
        offset: writer.code.len(),
        name: "end".to_owned(),
    });
    writer.end(forms);
    // Where each slow path begins is only known once the jump to it leads there.
    let slow: Vec<_> = writer
        .slow
        .iter()
        .map(|it| (it.jump, describe(&it.kind)))
        .collect();
    let exits = exits(writer, forms);
    writer.slow_paths();
    let near = std::mem::take(&mut writer.exits);
    for (number, exit) in near.iter().enumerate() {
        marks.push(Mark {
            offset: writer.code.len(),
            name: format!("not linked yet: {:#x}", exit.target),
        });
        writer.unlinked(exit, exit::LINK + number as u64);
    }
    for (jump, name) in slow {
        marks.push(Mark {
            offset: target_of(writer.code.bytes(), jump.0),
            name,
        });
    }
    marks.sort_by_key(|it| it.offset);
    exits
}

/// Where a jump leads whose displacement is at `at`.
fn target_of(code: &[u8], at: usize) -> usize {
    let displacement = code[at..]
        .first_chunk()
        .map_or(0, |it| i32::from_le_bytes(*it));
    (at + 4).wrapping_add_signed(displacement as isize)
}

fn describe(kind: &SlowKind) -> String {
    match kind {
        SlowKind::Handlers(run, ..) if run.len() > 1 => {
            format!("slow path: handlers of {} to {}", run.start, run.end - 1)
        }
        SlowKind::Handlers(run, ..) => format!("slow path: handler of {}", run.start),
        SlowKind::Vectors(_) => "slow path: load the vector registers".to_owned(),
        SlowKind::Attention => "slow path: attention is wanted".to_owned(),
        SlowKind::Distant(target) => format!("to another page: {target:#x}"),
        SlowKind::DropCalls => "slow path: too many calls are recorded".to_owned(),
    }
}

fn exits(writer: &Writer<'_>, forms: &[Form]) -> Vec<Exit> {
    let mut exits: Vec<Exit> = writer
        .exits
        .iter()
        .map(|it| Exit::Near(it.target))
        .collect();
    let last = writer.source.instructions.len() - 1;
    let instruction = &writer.source.instructions[last];
    if writer.untranslated.last() == Some(&last) && instruction.flow_control() != FlowControl::Next
    {
        return vec![Exit::Handler];
    }
    let class = forms[last].class;
    let is_near = |target: u64| exits.contains(&Exit::Near(target));
    let next = writer.next_rip();
    let mut direct = Vec::new();
    match class {
        Class::JumpIndirect | Class::Retpoline(_) | Class::Return => return vec![Exit::Computed],
        Class::CallIndirect => direct.push(next),
        Class::Jump => direct.push(instruction.near_branch_target()),
        Class::Call => direct.extend([instruction.near_branch_target(), next]),
        Class::JumpIf => direct.extend([instruction.near_branch_target(), next]),
        _ => direct.push(next),
    }
    direct.retain(|it| !is_near(*it));
    exits.extend(direct.into_iter().map(Exit::Distant));
    if class == Class::CallIndirect {
        exits.insert(0, Exit::Computed);
    }
    exits
}

/// What jumps to a piece call it.
fn label(name: &str) -> String {
    let number = name.split([':', ' ']).next().unwrap_or_default();
    if number.parse::<usize>().is_ok() {
        return format!("instruction_{number}");
    }
    name.replace(": ", "_").replace(' ', "_")
}

/// Takes the translation apart.
fn pieces(bytes: &[u8], base: usize, marks: Vec<Mark>, mut names: Names) -> Vec<Piece> {
    for mark in &marks {
        names.add((base + mark.offset) as u64, label(&mark.name));
    }
    let code = || Decoder::with_ip(64, bytes, base as u64, DecoderOptions::NONE);
    for it in code().into_iter() {
        let target = it.near_branch_target();
        if let Some(offset) = target.checked_sub(base as u64).filter(|_| target != 0) {
            names.add(target, format!("at_{offset:x}"));
        }
    }
    let mut disassembler = names.disassembler();
    let mut pieces: Vec<Piece> = Vec::new();
    let mut marks = marks.into_iter().peekable();
    for it in code().into_iter() {
        let offset = it.ip() as usize - base;
        while let Some(mark) = marks.next_if(|mark| mark.offset <= offset) {
            pieces.push(Piece {
                name: mark.name,
                lines: Vec::new(),
            });
        }
        let line = Line {
            offset,
            bytes: bytes[offset..offset + it.len()].to_vec(),
            text: disassembler.text(&it),
        };
        if let Some(piece) = pieces.last_mut() {
            piece.lines.push(line);
        }
    }
    pieces.retain(|piece| !piece.lines.is_empty());
    pieces
}
