//! Kinds of operands: shared with the build script, which fills the table.

/// How an opcode names an operand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operand {
    /// Not at all, or in a way nobody asks for.
    Other,
    /// Field `r/m`, memory only.
    Memory,
    /// A general-purpose register of 8 bits in field `reg`.
    RegisterByte,
    /// A wider one.
    Register,
    /// Field `r/m`: a general-purpose register of 8 bits, or memory.
    ModRmByte,
    /// A wider one, or memory.
    ModRm,
    /// Field `r/m`, a general-purpose register only, wider than 8 bits.
    ModRmRegister,
    /// A general-purpose register in field `vvvv`.
    Vvvv,
    /// A general-purpose register of 8 bits in the lowest three bits of the opcode.
    OpcodeByte,
    /// A wider one.
    Opcode,
    /// An SSE or AVX register in field `reg`.
    Vector,
    /// In field `r/m`.
    VectorModRmRegister,
    /// In field `r/m`, or memory.
    VectorModRm,
    /// In field `vvvv`.
    VectorVvvv,
    /// An x87 or MMX register.
    X87,
    /// Memory at `rsi` or `rdi`, with a segment of its own.
    String,
    /// A segment, control, debug or test register, or memory at an absolute address.
    System,
}
