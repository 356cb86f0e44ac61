//! Writes the table of `soft/opcode`.

#![allow(clippy::print_stdout, reason = "what is printed is for cargo")]

use std::{env, fmt::Write, fs, path::Path};

use iced_x86::{Code, OpCodeOperandKind as K};

#[allow(dead_code, reason = "the crate asks for what is written here by name")]
#[path = "src/soft/opcode/operand.rs"]
mod operand;

use operand::Operand;

#[rustfmt::skip]
fn operand(kind: K) -> Operand {
    match kind {
        K::mem => Operand::Memory,
        K::r8_reg => Operand::RegisterByte,
        K::r16_reg | K::r32_reg | K::r64_reg => Operand::Register,
        K::r8_or_mem => Operand::ModRmByte,
        K::r16_or_mem | K::r32_or_mem | K::r64_or_mem => Operand::ModRm,
        K::r16_rm | K::r32_rm | K::r64_rm => Operand::ModRmRegister,
        K::r32_vvvv | K::r64_vvvv => Operand::Vvvv,
        K::r8_opcode => Operand::OpcodeByte,
        K::r16_opcode | K::r32_opcode | K::r64_opcode => Operand::Opcode,
        K::xmm_reg | K::ymm_reg => Operand::Vector,
        K::xmm_rm | K::ymm_rm => Operand::VectorModRmRegister,
        K::xmm_or_mem | K::ymm_or_mem => Operand::VectorModRm,
        K::xmm_vvvv | K::ymm_vvvv => Operand::VectorVvvv,
        K::mm_reg | K::mm_rm | K::mm_or_mem | K::sti_opcode | K::st0 => Operand::X87,
        K::seg_rDI | K::seg_rSI | K::es_rDI => Operand::String,
        K::mem_offs | K::seg_reg | K::cr_reg | K::dr_reg | K::tr_reg => Operand::System,
        _ => Operand::Other,
    }
}

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=src/soft/opcode/operand.rs");
    let mut table = String::from("use Operand::*;\n\n");
    let count = Code::values().len();
    writeln!(
        table,
        "#[rustfmt::skip]\nstatic TABLE: [Opcode; {count}] = ["
    )
    .expect("it is a string");
    for code in Code::values() {
        let opcode = code.op_code();
        let operands: Vec<_> = (0..5).map(|it| operand(opcode.op_kind(it))).collect();
        let (is_group, bytes) = (opcode.group_index() >= 0, opcode.operand_size() / 8);
        let bits = opcode.address_size();
        writeln!(table, "    row({operands:?}, {is_group}, {bytes}, {bits}),")
            .expect("it is a string");
    }
    table.push_str("];\n");
    let out = env::var_os("OUT_DIR").expect("cargo sets it");
    fs::write(Path::new(&out).join("opcodes.rs"), table).expect("its folder is there");
}
