//! Names for the numbers in the host's code: places in it, thunks, operations, and fields of the
//! core, which translated code finds at `gs`.

use std::collections::BTreeMap;

use iced_x86::{
    Formatter, Instruction, IntelFormatter, OpKind, Register, SymbolResolver, SymbolResult,
};

use super::super::{interface as field, thunks::Thunks};
use crate::soft::memory::tlb::Tlb;

/// What contexts of memory are called, by their numbers.
const CONTEXTS: [&str; 3] = ["user", "supervisor", "open"];
const REGISTERS: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13",
    "r14", "r15",
];

/// Names by number.
pub(super) struct Names {
    /// Of addresses.
    places: BTreeMap<u64, String>,
    /// Of what begins at an offset in the core.
    fields: BTreeMap<u64, String>,
}

/// Writes the host's instructions with these names.
pub(super) struct Disassembler(IntelFormatter);

impl Names {
    /// Those that are the same for all blocks.
    pub(super) fn new(thunks: Thunks) -> Self {
        let places = [
            (thunks.leave, "leave"),
            (thunks.miss, "miss"),
            (thunks.elsewhere[0], "return_elsewhere.user"),
            (thunks.elsewhere[1], "return_elsewhere.supervisor"),
            (thunks.elsewhere[2], "return_elsewhere.open"),
            (thunks.handler, "handler"),
            (thunks.vectors[0], "load_xmm"),
            (thunks.vectors[1], "load_ymm"),
        ];
        Self {
            places: places
                .into_iter()
                .map(|(at, name)| (at as u64, name.to_owned()))
                .collect(),
            fields: fields(),
        }
    }

    /// Another address; the first of several names stays.
    pub(super) fn add(&mut self, address: u64, name: String) {
        self.places.entry(address).or_insert(name);
    }

    pub(super) fn disassembler(self) -> Disassembler {
        Disassembler::new(Some(Box::new(self)))
    }
}

/// One that knows no names.
pub(super) fn plain() -> Disassembler {
    Disassembler::new(None)
}

impl Disassembler {
    fn new(names: Option<Box<dyn SymbolResolver>>) -> Self {
        let mut formatter = IntelFormatter::with_options(names, None);
        let options = formatter.options_mut();
        options.set_hex_prefix("0x");
        options.set_hex_suffix("");
        options.set_branch_leading_zeros(false);
        options.set_space_after_operand_separator(true);
        Self(formatter)
    }

    /// One instruction.
    pub(super) fn text(&mut self, instruction: &Instruction) -> String {
        let mut text = String::new();
        self.0.format(instruction, &mut text);
        text
    }
}

/// What translated code refers to in the core. What has no name ends the one before it.
fn fields() -> BTreeMap<u64, String> {
    let mut fields = BTreeMap::new();
    let mut add = |offset: usize, name: String| fields.insert(offset as u64, name);
    for (number, name) in (0..).zip(REGISTERS) {
        add(field::guest(number), format!("guest.{name}"));
    }
    for (offset, name) in [
        (field::GUEST_RIP, "guest.rip"),
        (field::STATUS, "flags.status"),
        (field::CONTROL, "flags.control"),
        (field::ATTENTION, "attention"),
        (field::EMPTY, "calls.empty"),
        (field::FULL, "calls.full"),
        (field::WAITING, "waiting"),
        (field::CLOCK, "clock"),
        (field::STATUS_MASK, "status_mask"),
        (field::SHOWN_MASK, "shown_mask"),
        (field::SPILL_RAX, "spill.rax"),
        (field::SPILL_TARGET, "spill.target"),
        (field::VECTORS, "vectors"),
        (field::KERNEL_GS_BASE, "kernel_gs_base"),
        (field::segment_base(4), "fs.base"),
        (field::segment_base(5), "gs.base"),
    ] {
        add(offset, name.to_owned());
    }
    for (number, context) in CONTEXTS.into_iter().enumerate() {
        let tlb = number * Tlb::STRIDE;
        add(field::TLB_READ + tlb, format!("tlb.{context}.read"));
        add(field::TLB_WRITE + tlb, format!("tlb.{context}.write"));
        add(field::TLB_HOST + tlb, format!("tlb.{context}.host"));
        add(field::mask(number), format!("target_mask.{context}"));
        add(field::targets(number), format!("targets.{context}"));
    }
    fields
}

impl SymbolResolver for Names {
    fn symbol(
        &mut self,
        instruction: &Instruction,
        _operand: u32,
        instruction_operand: Option<u32>,
        address: u64,
        _address_size: u32,
    ) -> Option<SymbolResult<'_>> {
        let operand = instruction_operand?;
        if instruction.op_kind(operand) == OpKind::Memory {
            if instruction.memory_segment() != Register::GS {
                return None;
            }
            let (start, name) = self.fields.range(..=address).next_back()?;
            return Some(SymbolResult::with_str(*start, name));
        }
        let name = self.places.get(&address)?;
        Some(SymbolResult::with_str(address, name))
    }
}
