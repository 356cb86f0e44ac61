//! Pure decisions: what is wanted and what is seen go in, what to do next comes out. No I/O, no
//! clock of its own, no async; so every decision can be tested as a table.

#![forbid(unsafe_code)]

pub mod power;
