//! `berth-oci`: the runtime as a small static program.
//!
//! Container managers execute a runtime several times per container, so its start is part of every
//! container's start. This program is the `berth oci` command alone: no async runtime, no HTTP, no
//! dynamic loader. `scripts/build-runtime` builds it static and not position independent, with profile
//! `runtime`, and prints its path.
//!
//! It enters at C's `main`, not Rust's: the latter's set-up (guard page, `/proc/self/maps`, signal
//! handler for stack overflow) costs more system calls than parsing a bundle, and protects nothing
//! here, where panics abort.
//!
//! Called as `berth-oci oci …`, or with the command at once: `berth-oci run …`; as `berth-oci shim …` it
//! is a container's shim.

#![no_main]

use std::ffi::{c_char, c_int};

/// The entry point that the C library calls.
// SAFETY: no other item of this program is called `main`; the C library calls it once, at the start,
// with the signature of C's main.
#[unsafe(no_mangle)]
pub extern "C" fn main(_argc: c_int, _argv: *const *const c_char) -> c_int {
    let mut words = std::env::args_os().skip(1).peekable();
    if words.peek().is_some_and(|word| word == "shim") {
        return container::shim::main(words.skip(1)).into();
    }
    if words.peek().is_some_and(|word| word == "oci") {
        words.next();
    }
    container::oci_cli::main("berth-oci", words).into()
}
