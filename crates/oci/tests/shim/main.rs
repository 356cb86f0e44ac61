//! The shim with real containers: busybox in a directory, the program under test as it ships.
//!
//! Needs root, control groups and a static busybox; skips loudly otherwise. Every test has a run
//! directory, a runtime root and a group of its own and removes them also when it fails.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "tests fail by panicking and skip loudly"
)]

mod ends;
mod exec;
mod life;
mod steps;
mod streams;
mod world;
