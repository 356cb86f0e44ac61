//! The berth binary: the command line, and the roles it can play.
//!
//! `berth daemon` serves the API; every other command asks a daemon. `berth oci` and `berth shim`
//! are what `berth-oci` is, for whoever has only one binary at hand. What a command needs is made
//! when it is needed, because whoever starts a container waits for all of it.

#![forbid(unsafe_code)]

mod cli;
mod daemon;

use std::process::ExitCode;

use cli::Role;

fn main() -> ExitCode {
    // Before anything else: these roles must stay with one thread, and are started often.
    let mut words = std::env::args_os().skip(1);
    match words.next() {
        Some(role) if role == "oci" => return container::oci_cli::main("berth oci", words).into(),
        Some(role) if role == "shim" => return container::shim::main(words).into(),
        _ => {}
    }
    match cli::main(std::env::args_os()) {
        Role::Done(code) => code,
        Role::Daemon(args) => daemon::main(*args),
        Role::Recover(args) => daemon::recover(&args),
    }
}
