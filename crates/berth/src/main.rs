//! The berth binary: the command line, and the roles it can play.
//!
//! `berth daemon` serves the API; every other command asks a daemon. `berth oci` and `berth shim`
//! are what `berth-oci` is, for whoever has only one binary at hand; `berth vmm` becomes `berth-vmm`,
//! which is another program and must lie beside this one. What a command needs is made
//! when it is needed, because whoever starts a container waits for all of it.

#![forbid(unsafe_code)]

mod cli;
mod daemon;

use std::{
    ffi::OsString,
    io::Write,
    os::unix::process::CommandExt,
    process::{Command, ExitCode},
};

use cli::Role;

fn main() -> ExitCode {
    // Before anything else: these roles must stay with one thread, and are started often.
    let mut words = std::env::args_os().skip(1);
    match words.next() {
        Some(role) if role == "oci" => return container::oci_cli::main("berth oci", words).into(),
        Some(role) if role == "shim" => return container::shim::main(words).into(),
        Some(role) if role == "vmm" => return vmm(words),
        _ => {}
    }
    match cli::main(std::env::args_os()) {
        Role::Done(code) => code,
        Role::Daemon(args) => daemon::main(*args),
        Role::Recover(args) => daemon::recover(&args),
    }
}

/// Becomes `berth-vmm`, with these words.
fn vmm(words: impl Iterator<Item = OsString>) -> ExitCode {
    let beside = std::env::current_exe().map(|it| it.with_file_name("berth-vmm"));
    let failed = match beside {
        Ok(program) => {
            let error = Command::new(&program).args(words).exec();
            format!("{} cannot be run: {error}", program.display())
        }
        Err(error) => format!("this program cannot be found on the disk: {error}"),
    };
    // Where standard error is closed nobody is told.
    let _closed = writeln!(std::io::stderr().lock(), "error: {failed}; reinstall Berth");
    ExitCode::FAILURE
}
