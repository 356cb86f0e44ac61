//! The software CPU, tier 0: an interpreter over decoded blocks.
//!
//! ```text
//!   bytes ─ iced-x86 ─► Instruction ─ select ─► Op (handler + packed operands) ─► Block
//!                                      │
//!              integer, system, native ┘      run: for op in block { (op.run)(core, op)? }
//! ```
//! - [`core`](self::core): the state of one vCPU and how handlers reach registers and memory;
//! - [`op`]: a decoded instruction as the interpreter keeps it;
//! - `integer`: what user code is mostly made of, written in Rust;
//! - `native`: x87, SSE, AVX and the rest of user instructions, executed by the host's own units;
//! - [`vector`]: the state `native` computes on;
//! - `system`: everything that needs privilege or changes how code is run.
//!
//! A handler sees one vCPU only. It either completes its instruction, or changes nothing the
//! guest can see and returns a [`Fault`].

pub mod core;
pub mod fault;
pub mod flags;
pub mod op;
pub mod vector;

pub use self::core::Core;
pub use fault::Fault;
pub use flags::Flags;
pub use op::{Flow, Handler, Op};
