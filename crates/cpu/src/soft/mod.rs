//! The software CPU: an interpreter over decoded blocks (tier 0), and a translator of hot ones
//! ([`translate`], tier 1).
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
//! - [`lapic`] and [`clock`]: what interrupts it and what tells it the time;
//! - `system`: everything that needs privilege or changes how code is run;
//! - [`idle`]: when to give back what was kept for speed.
//!
//! A handler sees one vCPU only. It either completes its instruction, or changes nothing the
//! guest can see and returns a [`Fault`].
//!
//! To plug in instructions: a module with `pub fn select(&Instruction, Width) -> Option<Op>`, named
//! in [`select`](self::select). It builds the operation with [`Op::new`], may change what it likes
//! in it, and leaves to the next module what is not its own. Selection happens once per decoded
//! instruction, not per execution.

pub mod block;
pub mod clock;
pub mod core;
mod executable;
pub mod fault;
pub mod flags;
mod idle;
pub mod integer;
pub mod interpreter;
pub mod interrupt;
pub mod lapic;
pub mod memory;
pub mod native;
pub mod op;
pub mod opcode;
mod partition;
mod peers;
mod platform;
mod port;
pub mod segment;
pub mod select;
mod state;
pub mod system;
#[cfg(test)]
mod tests;
pub mod translate;
mod vcpu;
pub mod vector;

pub use self::core::Core;
pub use fault::Fault;
pub use flags::Flags;
pub use interpreter::Interpreter;
pub use interpreter::Tier;
pub use op::{Flow, Handler, Op, Width};
pub use partition::SoftPartition;
