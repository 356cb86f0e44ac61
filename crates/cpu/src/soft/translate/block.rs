//! Translates one block: plans it as a whole, then writes each instruction.
//!
//! The result is a function of the guest's bytes, the address they run at and the mode; it assumes
//! nothing of memory. An instruction is written as the host's own, or as a call of its handler.
//! The slow path of a memory access is the call of the handler too, at the end of the block, and
//! then goes on behind the instruction; so before an access is known to succeed, nothing that the
//! guest can see was changed.
//!
//! Status flags stay in the host's. Looking up an address destroys them; where the block shows that
//! they are overwritten before anybody reads them, they are not kept. A fault there shows the
//! guest's handler flags that are not the guest's.

use std::ops::Range;

use iced_x86::{Instruction, Mnemonic, OpKind, RflagsBits};

use super::{
    emit::{Address, Assembler, GUEST_RSP, Jump, RAX, RBP, RSP, S0, S1, condition},
    encoding::Encoding,
    form::{Class, Form, Forms, is_bit_string, is_moved},
    interface::{EMPTY, SPILL_RAX, VECTORS, exit, guest},
    mode::Mode,
    operand::{self, Access, host_of, is_plain, look_up, restore_flags},
    retpoline,
    returns::go_to_target,
    thunks::Thunks,
};
use crate::soft::{Op, native::allow, op, vector::Unit};

/// The status flags.
const ALL_FLAGS: u32 = RflagsBits::OF
    | RflagsBits::SF
    | RflagsBits::ZF
    | RflagsBits::AF
    | RflagsBits::CF
    | RflagsBits::PF;

/// Where a translation can be entered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    /// From the table of targets, with the address jumped to in `r10`: compares it.
    pub(super) indirect: usize,
    /// From a jump back: looks at the attention word.
    pub(super) checked: usize,
    /// The first instruction.
    pub(super) body: usize,
}

/// A direct jump that leads out of the block, within its page.
#[derive(Debug, Clone, Copy)]
pub(super) struct Exit {
    /// Its displacement, relative to the start of the block's code.
    pub(super) jump: Jump,
    pub(super) target: u64,
    /// It leads back, so the attention word is to be looked at.
    pub(super) back: bool,
}

/// What is to be translated.
pub(super) struct Source<'a> {
    pub(super) rip: u64,
    pub(super) bytes: &'a [u8],
    pub(super) instructions: &'a [Instruction],
    /// For each instruction, its operation.
    pub(super) ops: &'a [Op],
    pub(super) mode: Mode,
    /// Bytes at [`super::retpoline::callee`], if they are to be looked at.
    pub(super) callee: &'a [u8],
}

/// The slow path of an access, or of the vector registers.
pub(super) struct Slow {
    pub(super) jump: Jump,
    pub(super) kind: SlowKind,
    /// Where it goes on; `None` when its instruction ends the block.
    pub(super) resume: Option<usize>,
}

pub(super) enum SlowKind {
    /// The numbers of the instructions, whether flags are kept in `ax`, and what of the vector
    /// registers was loaded before.
    Handlers(Range<usize>, bool, u8),
    /// Loads the vector registers.
    Vectors(u8),
    /// Leaves, as the attention word is set.
    Attention,
    /// Jumps to another page.
    Distant(u64),
    /// Drops all recorded calls.
    DropCalls,
}

/// Writes a block.
pub(super) struct Writer<'a> {
    pub(super) code: &'a mut Assembler,
    pub(super) thunks: Thunks,
    pub(super) source: &'a Source<'a>,
    /// Operations whose handlers are called, which stay where they are.
    kept: &'a mut Vec<Op>,
    /// For each instruction, where its operation is kept, if it is.
    pub(super) kept_at: Vec<Option<u64>>,
    /// For each instruction, whether flags are of use before it.
    pub(super) live: Vec<bool>,
    pub(super) slow: Vec<Slow>,
    /// Direct jumps within the page.
    pub(super) exits: Vec<Exit>,
    /// How much of the vector registers is known to be loaded.
    pub(super) level: u8,
    /// Numbers of the instructions that became calls of handlers.
    pub(super) untranslated: Vec<usize>,
}

/// Whether flags are of use before each instruction.
fn liveness(instructions: &[Instruction], forms: &[Form]) -> Vec<bool> {
    let mut live = vec![false; instructions.len()];
    let mut flags = ALL_FLAGS;
    for (index, (instruction, form)) in instructions.iter().zip(forms).enumerate().rev() {
        if form.class == Class::Handler {
            flags = ALL_FLAGS;
        } else if form.class != Class::Nothing {
            let overwritten = instruction.rflags_written()
                | instruction.rflags_cleared()
                | instruction.rflags_set();
            // Division leaves the flags on some processors: so does the interpreter.
            let leaves = form.counts && !counts_for_sure(instruction)
                || matches!(form.class, Class::Divide(_));
            if !leaves {
                // What is undefined may be anything.
                flags &= !(overwritten | instruction.rflags_undefined());
            }
            flags |= instruction.rflags_read() & ALL_FLAGS;
        }
        live[index] = flags != 0;
    }
    live
}

/// Whether a shift has a constant count that is not zero.
fn counts_for_sure(instruction: &Instruction) -> bool {
    let last = instruction.op_count() - 1;
    instruction.op_kind(last) == OpKind::Immediate8 && instruction.immediate8() & 0x1f != 0
}

/// Whether the guest's `rsp`, as `push` and its kin use it, may be looked at by the host.
pub(super) fn stack(context: usize, write: bool, keep_flags: bool) -> Access {
    Access {
        bytes: 8,
        aligned: false,
        write,
        context,
        keep_flags,
    }
}

/// The forms of a block's instructions.
pub(super) fn forms_of(source: &Source<'_>, forms: &mut Forms) -> Vec<Form> {
    let mut all: Vec<Form> = source.instructions.iter().map(|it| forms.get(it)).collect();
    if let Some(last) = all.last_mut()
        && let Some(register) = retpoline::register(source)
    {
        last.class = Class::Retpoline(register);
    }
    all
}

impl<'a> Writer<'a> {
    /// Writes all of it; direct jumps out of it are left to the caller. `kept` has room for an
    /// operation for each instruction.
    pub(super) fn write(
        code: &'a mut Assembler,
        thunks: Thunks,
        source: &'a Source<'a>,
        forms: &mut Forms,
        kept: &'a mut Vec<Op>,
    ) -> (Self, Entry) {
        let all = forms_of(source, forms);
        let (mut writer, entry) = Self::begin(code, thunks, source, &all, kept);
        let mut index = 0;
        while index < all.len() {
            index += writer.next(&all, index);
        }
        writer.end(&all);
        writer.slow_paths();
        (writer, entry)
    }

    /// Writes the ways in.
    pub(super) fn begin(
        code: &'a mut Assembler,
        thunks: Thunks,
        source: &'a Source<'a>,
        forms: &[Form],
        kept: &'a mut Vec<Op>,
    ) -> (Self, Entry) {
        let mut writer = Self {
            live: liveness(source.instructions, forms),
            code,
            thunks,
            source,
            kept,
            kept_at: vec![None; source.instructions.len()],
            slow: Vec::new(),
            exits: Vec::new(),
            level: 0,
            untranslated: Vec::new(),
        };
        let entry = writer.entries();
        (writer, entry)
    }

    /// Writes the instruction with this number, or the run that begins with it; of how many.
    pub(super) fn next(&mut self, forms: &[Form], index: usize) -> usize {
        match self.stack_run(&forms[index..], index) {
            0 => {
                self.instruction(index, &forms[index]);
                1
            }
            count => count,
        }
    }

    fn entries(&mut self) -> Entry {
        let rip = self.source.rip;
        let code = &mut *self.code;
        let indirect = code.here();
        match i32::try_from((rip as i64).wrapping_neg()) {
            Ok(displacement) => code.lea(S1, S0, displacement),
            Err(_) => {
                code.mov_value(S1, rip.wrapping_neg());
                code.lea_sum(S1, S1, S0);
            }
        }
        let miss = self.thunks.miss;
        code.exchange(1, S1);
        code.unless_rcx_is_zero(|code| {
            code.exchange(1, S1);
            code.jump_to(miss);
        });
        code.mov(1, S1);
        let checked = code.here();
        self.look_at_attention(self.live.first().copied().unwrap_or(true));
        Entry {
            indirect,
            checked,
            body: self.code.here(),
        }
    }

    fn look_at_attention(&mut self, keep_flags: bool) {
        let code = &mut *self.code;
        code.load(S1, super::interface::ATTENTION);
        let jump = if keep_flags {
            let mut jump = None;
            // mov r11d, [r11]
            code.raw(&[0x45, 0x8b, 0x1b]);
            code.exchange(1, S1);
            code.unless_rcx_is_zero(|code| {
                code.exchange(1, S1);
                jump = Some(code.jump());
            });
            code.mov(1, S1);
            jump
        } else {
            // cmp dword [r11], 0
            code.raw(&[0x41, 0x83, 0x3b, 0]);
            Some(code.jump_if(condition::NOT_EQUAL))
        };
        if let Some(jump) = jump {
            self.slow.push(Slow {
                jump,
                kind: SlowKind::Attention,
                resume: None,
            });
        }
    }

    fn rip(&self, index: usize) -> u64 {
        self.source.instructions[index].ip()
    }

    /// The address behind the block.
    pub(super) fn next_rip(&self) -> u64 {
        let last = self.source.instructions.last();
        last.map_or(self.source.rip, Instruction::next_ip)
    }

    fn bytes(&self, index: usize) -> &'a [u8] {
        let start = (self.rip(index) - self.source.rip) as usize;
        &self.source.bytes[start..start + self.source.instructions[index].len()]
    }

    fn instruction(&mut self, index: usize, form: &Form) {
        let done = match form.class {
            Class::Nothing | Class::Jump | Class::JumpIf => Some(()),
            Class::Computation => self.computation(index, form, 0, false),
            Class::Aligned => self.computation(index, form, 0, true),
            Class::Divide(signed) => self.divide(index, signed),
            Class::PushMemory => self.push_memory(index),
            Class::PushFlags => self.push_flags(index),
            Class::SwapGs => self.swap_gs(),
            Class::ReadClock => self.read_clock(),
            Class::Pop => self.pop_rsp(index),
            Class::InterruptFlag(on) => self.interrupt_flag(index, on),
            Class::Vector(unit, mxcsr) => self.vector(index, form, unit, mxcsr),
            Class::Lea => self.lea(index),
            Class::Leave => self.leave(index),
            Class::JumpIndirect => self.jump_indirect(index),
            Class::CallIndirect => self.call_indirect(index),
            Class::Retpoline(register) => {
                self.retpoline(index, register);
                Some(())
            }
            _ => None,
        };
        if done.is_none() {
            self.handler(index);
        }
    }

    /// Calls the handler; afterwards nothing is in the vector registers.
    fn handler(&mut self, index: usize) {
        self.untranslated.push(index);
        self.call_handler(index);
        self.level = 0;
    }

    fn call_handler(&mut self, index: usize) {
        let rip = self.rip(index);
        let op = match self.kept_at[index] {
            Some(op) => op,
            None => {
                debug_assert!(self.kept.len() < self.kept.capacity());
                self.kept.push(self.source.ops[index]);
                let op = std::ptr::from_ref(&self.kept[self.kept.len() - 1]) as u64;
                self.kept_at[index] = Some(op);
                op
            }
        };
        self.code.mov_value(S0, op);
        self.code.mov_value(S1, rip);
        self.code.call(self.thunks.handler);
    }

    /// Looks up the linear address in `r10`.
    pub(super) fn find(&mut self, index: usize, access: &Access) -> usize {
        let slow = self.look_up(index, access);
        if access.keep_flags {
            restore_flags(self.code);
        }
        slow
    }

    /// As [`Self::find`], but where flags are kept leaves them in `ax`.
    fn look_up(&mut self, index: usize, access: &Access) -> usize {
        let jump = look_up(self.code, access);
        self.slow.push(Slow {
            jump,
            kind: SlowKind::Handlers(index..index + 1, access.keep_flags, self.level),
            resume: None,
        });
        self.slow.len() - 1
    }

    /// As [`Self::look_up`], for several instructions, which have a handler each.
    pub(super) fn look_up_for_all(&mut self, run: Range<usize>, access: &Access) -> usize {
        let slow = self.look_up(run.start, access);
        self.slow[slow].kind = SlowKind::Handlers(run, access.keep_flags, self.level);
        slow
    }

    /// The slow path goes on here.
    pub(super) fn resume(&mut self, slow: usize) {
        self.slow[slow].resume = Some(self.code.here());
    }

    fn vector(&mut self, index: usize, form: &Form, unit: Unit, mxcsr: bool) -> Option<()> {
        let mode = self.source.mode;
        if !mode.is_open(unit) || mxcsr && !mode.computes_as_host() {
            return None;
        }
        let level = if unit == Unit::Avx { 2 } else { 1 };
        let instruction = &self.source.instructions[index];
        let bytes = u8::try_from(instruction.memory_size().size()).ok()?;
        let aligned = allow::alignment_mask(instruction, bytes) != 0;
        self.computation(index, form, level, aligned)
    }

    fn ensure_vectors(&mut self, level: u8, keep_flags: bool) {
        if self.level >= level {
            return;
        }
        let code = &mut *self.code;
        if keep_flags {
            code.store(RAX, SPILL_RAX);
            code.flags_to_ax();
        }
        code.compare_field(VECTORS, level);
        let jump = code.jump_if(condition::BELOW);
        self.slow.push(Slow {
            jump,
            kind: SlowKind::Vectors(level),
            resume: Some(code.here()),
        });
        if keep_flags {
            restore_flags(code);
        }
        self.level = level;
    }

    /// An instruction the host executes: registers that are elsewhere renamed or loaded, the
    /// memory operand at `[r10]`. `level` says what it needs of the vector registers.
    fn computation(&mut self, index: usize, form: &Form, level: u8, aligned: bool) -> Option<()> {
        let instruction = &self.source.instructions[index];
        let bytes = self.bytes(index);
        let operands = 0..instruction.op_count();
        let in_memory = operands
            .clone()
            .any(|it| instruction.op_kind(it) == OpKind::Memory);
        let moved = operands.clone().any(|it| {
            instruction.op_kind(it) == OpKind::Register && is_moved(instruction.op_register(it))
        });
        if !in_memory && !moved {
            self.ensure_vectors(level, self.live[index]);
            self.code.raw(bytes);
            return Some(());
        }
        if in_memory && (!is_plain(instruction) || is_bit_string(instruction)) {
            return None;
        }
        let encoding = Encoding::parse(bytes, form.modrm)?;
        if encoding.has_high_byte(form) {
            return None;
        }
        if !in_memory && self.fold(instruction, form, &encoding) {
            return Some(());
        }
        let placed = Placed::new(&encoding, form, in_memory)?;
        let size = instruction.memory_size().size() as u32;
        if in_memory && (size == 0 || size > 64) {
            return None;
        }
        self.ensure_vectors(level, self.live[index]);
        let slow = in_memory.then(|| {
            operand::address(self.code, instruction);
            let access = Access {
                bytes: size,
                aligned,
                write: form.writes_memory,
                context: self.source.mode.context(),
                keep_flags: self.live[index],
            };
            self.find(index, &access)
        });
        for &(number, scratch, _) in placed.loaded() {
            self.code.load(scratch, guest(number));
        }
        encoding.write(self.code, placed.named, form.opcode.general);
        for &(number, scratch, written) in placed.loaded() {
            if written {
                self.code.store(scratch, guest(number));
            }
        }
        if let Some(slow) = slow {
            self.resume(slow);
        }
        Some(())
    }

    /// Writes an instruction whose field `r/m` names a register that is kept in the core with
    /// that as its operand; `false` where it would not do the same.
    fn fold(&mut self, instruction: &Instruction, form: &Form, encoding: &Encoding<'_>) -> bool {
        let mut named = encoding.named();
        if form.class != Class::Computation
            || !form.rm.general
            || host_of(named.rm).is_some()
            || form.opcode.general
            || differs_in_memory(instruction.mnemonic())
        {
            return false;
        }
        // What is written to 32 bits of a register clears the others.
        let operand = (0..instruction.op_count())
            .find(|it| op::gpr(instruction.op_register(*it)) == Some(named.rm));
        let bytes = operand.map_or(4, |it| instruction.op_register(it).size());
        if form.rm.written && bytes == 4 {
            return false;
        }
        for (field, general) in [
            (&mut named.reg, form.reg.general),
            (&mut named.vvvv, form.vvvv.general),
        ] {
            if general {
                match host_of(*field) {
                    Some(host) => *field = host,
                    None => return false,
                }
            }
        }
        let rm = encoding.named().rm;
        encoding.write_with_field(self.code, named, guest(rm));
        true
    }

    fn lea(&mut self, index: usize) -> Option<()> {
        let instruction = &self.source.instructions[index];
        if !is_plain(instruction) {
            return None;
        }
        let register = instruction.op0_register();
        let number = op::gpr(register)?;
        let to = host_of(number);
        operand::offset(
            self.code,
            instruction,
            to.unwrap_or(S1),
            register.size() == 8,
        );
        if to.is_none() {
            self.code.store(S1, guest(number));
        }
        Some(())
    }

    fn leave(&mut self, index: usize) -> Option<()> {
        self.code.mov(S0, RBP);
        let access = stack(self.source.mode.context(), false, self.live[index]);
        let slow = self.find(index, &access);
        self.code.lea(GUEST_RSP, RBP, 8);
        self.code.at(true, &[0x8b], RBP, at_s0());
        self.resume(slow);
        Some(())
    }

    /// Loads the target of an indirect branch to `r10`.
    fn target(&mut self, index: usize) -> Option<()> {
        let instruction = &self.source.instructions[index];
        if instruction.op0_kind() == OpKind::Register {
            let number = op::gpr(instruction.op0_register())?;
            match host_of(number) {
                Some(register) => self.code.mov(S0, register),
                None => self.code.load(S0, guest(number)),
            }
            return Some(());
        }
        if !is_plain(instruction) || instruction.memory_size().size() != 8 {
            return None;
        }
        operand::address(self.code, instruction);
        let access = stack(self.source.mode.context(), false, self.live[index]);
        let _ends = self.find(index, &access);
        self.code.at(true, &[0x8b], S0, at_s0());
        Some(())
    }

    fn jump_indirect(&mut self, index: usize) -> Option<()> {
        self.target(index)
    }

    fn call_indirect(&mut self, index: usize) -> Option<()> {
        self.target(index)?;
        self.code.store(S0, super::interface::SPILL_TARGET);
        let next = self.next_rip();
        self.push_run(index..index + 1, Some(next));
        self.code.load(S0, super::interface::SPILL_TARGET);
        Some(())
    }

    /// Writes what follows the last instruction.
    pub(super) fn end(&mut self, forms: &[Form]) {
        let class = forms.last().map_or(Class::Handler, |it| it.class);
        let last = self.source.instructions.len() - 1;
        let untranslated = self.untranslated.last() == Some(&last);
        let instruction = &self.source.instructions[last];
        match class {
            Class::Jump => self.exit(instruction.near_branch_target()),
            Class::Call => self.call_to(instruction.near_branch_target()),
            Class::JumpIf => {
                let condition = instruction.condition_code() as u8;
                let target = instruction.near_branch_target();
                self.exit_if(condition, target);
                self.exit(self.next_rip());
            }
            Class::JumpIndirect | Class::Retpoline(_) if !untranslated => {
                go_to_target(self.code, self.source.mode.context(), false);
            }
            Class::CallIndirect if !untranslated => self.call_target(),
            Class::Return => self.return_to_target(),
            _ => self.exit(self.next_rip()),
        }
    }

    pub(super) fn is_near(&self, target: u64) -> bool {
        target >> 12 == self.source.rip >> 12
    }

    pub(super) fn exit(&mut self, target: u64) {
        if self.is_near(target) {
            let jump = self.code.jump();
            self.note_exit(jump, target);
        } else {
            self.distant(target, false);
        }
    }

    /// `condition` as iced numbers it, from 1.
    fn exit_if(&mut self, condition: u8, target: u64) {
        let jump = self.code.jump_if(opcode_condition(condition));
        if self.is_near(target) {
            self.note_exit(jump, target);
        } else {
            self.slow.push(Slow {
                jump,
                kind: SlowKind::Distant(target),
                resume: None,
            });
        }
    }

    pub(super) fn note_exit(&mut self, jump: Jump, target: u64) {
        let back = target < self.next_rip();
        self.exits.push(Exit { jump, target, back });
    }

    /// Jumps to another page, or calls what is there.
    pub(super) fn distant(&mut self, target: u64, call: bool) {
        self.code.mov_value(S0, target);
        let slot = super::interface::target_slot(self.source.mode.context(), target);
        // jmp gs:[target], or call
        let digit = if call { 2 } else { 4 };
        self.code
            .gs(false, &[0xff], digit, super::interface::target(slot));
    }

    /// Writes the slow paths, behind all else.
    pub(super) fn slow_paths(&mut self) {
        for slow in std::mem::take(&mut self.slow) {
            self.code.land(slow.jump);
            match slow.kind {
                SlowKind::Handlers(run, keep_flags, level) => {
                    if keep_flags {
                        restore_flags(self.code);
                    }
                    for index in run {
                        self.call_handler(index);
                    }
                    if level > 0 && slow.resume.is_some() {
                        self.code.call(self.thunks.vectors[usize::from(level) - 1]);
                    }
                }
                SlowKind::Vectors(level) => {
                    self.code.call(self.thunks.vectors[usize::from(level) - 1]);
                }
                SlowKind::Attention => {
                    self.code.mov_value(S0, self.source.rip);
                    self.code.mov_value(S1, exit::ATTENTION);
                    self.code.jump_to(self.thunks.leave);
                    continue;
                }
                SlowKind::Distant(target) => {
                    self.distant(target, false);
                    continue;
                }
                SlowKind::DropCalls => self.code.load(RSP, EMPTY),
            }
            match slow.resume {
                Some(resume) => self.code.jump_to(resume),
                // The handler branched, so this is not reached; should it ever be, it is to leave.
                None => {
                    self.code.mov_value(S0, self.next_rip());
                    self.code.mov_value(S1, exit::ATTENTION);
                    self.code.jump_to(self.thunks.leave);
                }
            }
        }
    }

    /// Writes what an exit leads to as long as its target is not translated: leaves with the
    /// number of the link.
    pub(super) fn unlinked(&mut self, exit: &Exit, link: u64) {
        self.code.land(exit.jump);
        self.code.mov_value(S0, exit.target);
        self.code.mov_value(S1, link);
        self.code.jump_to(self.thunks.leave);
    }

    /// Makes an exit lead to a translation.
    pub(super) fn linked(&mut self, exit: &Exit, entry: &Entry) {
        let target = if exit.back { entry.checked } else { entry.body };
        self.code.aim(exit.jump, target);
    }
}

/// `[r10]`.
pub(super) fn at_s0() -> Address {
    Address {
        base: Some(S0),
        index: None,
        displacement: 0,
    }
}

/// Whether an instruction does something else with an operand in memory than in a register, or
/// asks for less of it.
fn differs_in_memory(mnemonic: Mnemonic) -> bool {
    matches!(
        mnemonic,
        Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc | Mnemonic::Xchg
    )
}

/// From the numbers of [`iced_x86::ConditionCode`] to those in opcodes.
fn opcode_condition(condition: u8) -> u8 {
    condition - 1
}

/// The registers of the host for those that an instruction names.
struct Placed {
    named: super::encoding::Named,
    /// Guest register, scratch register, whether it is written.
    loads: [(u8, u8, bool); 2],
    count: usize,
}

impl Placed {
    /// `None` when there are too few scratch registers.
    fn new(encoding: &Encoding<'_>, form: &Form, in_memory: bool) -> Option<Self> {
        let mut placed = Self {
            named: encoding.named(),
            loads: [(0, S1, false), (0, S0, false)],
            count: 0,
        };
        let free = if in_memory { 1 } else { 2 };
        let named = placed.named;
        if form.reg.general {
            placed.named.reg = placed.place(named.reg, form.reg.written, free)?;
        }
        if form.rm.general && !in_memory {
            placed.named.rm = placed.place(named.rm, form.rm.written, free)?;
        }
        if form.vvvv.general {
            placed.named.vvvv = placed.place(named.vvvv, form.vvvv.written, free)?;
        }
        if form.opcode.general {
            placed.named.opcode = placed.place(named.opcode, form.opcode.written, free)?;
        }
        Some(placed)
    }

    fn place(&mut self, number: u8, written: bool, free: usize) -> Option<u8> {
        if let Some(host) = host_of(number) {
            return Some(host);
        }
        for load in &mut self.loads[..self.count] {
            if load.0 == number {
                load.2 |= written;
                return Some(load.1);
            }
        }
        if self.count == free {
            return None;
        }
        let load = &mut self.loads[self.count];
        *load = (number, load.1, written);
        self.count += 1;
        Some(load.1)
    }

    fn loaded(&self) -> &[(u8, u8, bool)] {
        &self.loads[..self.count]
    }
}
