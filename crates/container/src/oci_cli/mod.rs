//! `berth oci`: the command line of an OCI runtime, as runc and crun have it.
//!
//! Called by both binaries with the words after the program's name. Understands, calls the library, prints,
//! and turns errors into one line and an exit status: 0 done, 1 failed, 2 not understood; `run` and
//! `exec` end with the program's own status. Messages go to standard error, or with `--log` to a
//! file, as callers such as podman expect.

mod args;
mod foreground;
mod help;
mod inspect;
mod lifecycle;
mod limits;
mod logger;
mod programs;
mod signals;
mod template;

use std::io::Write as _;

use args::{Asked, Parsed};
use logger::Logger;

use crate::runtime::Runtime;
use crate::state::StateError;

/// What a command works with.
pub(crate) struct Call {
    pub parsed: Parsed,
    pub runtime: Runtime,
    pub log: Logger,
}

/// The status a command ends with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Exit(pub u8);

impl Exit {
    /// Done.
    pub const SUCCESS: Exit = Exit(0);
    /// Failed.
    pub const FAILURE: Exit = Exit(1);
}

/// An error of any command, with what to do about it where that is known.
pub(crate) type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Runs one command and returns the exit status. `program` is how it was called, such as `berth oci`;
/// `words` are the arguments after that.
pub fn main(program: &str, words: impl Iterator<Item = std::ffi::OsString>) -> u8 {
    command(program, words).0
}

fn command(program: &str, words: impl Iterator<Item = std::ffi::OsString>) -> Exit {
    let words: std::result::Result<Vec<String>, _> = words.map(|word| word.into_string()).collect();
    let asked = match words {
        Ok(words) => args::parse(program, &words),
        Err(word) => Err(format!("argument {word:?} is not UTF-8")),
    };
    match asked {
        Ok(Asked::Show(text)) => match print(&text) {
            Ok(()) => Exit::SUCCESS,
            Err(_) => Exit::FAILURE,
        },
        Ok(Asked::Run(parsed)) => call(*parsed),
        Err(why) => {
            let _ = writeln!(std::io::stderr().lock(), "{program}: {why}");
            Exit(2)
        }
    }
}

fn call(parsed: Parsed) -> Exit {
    let log = Logger::from_options(&parsed.globals);
    let root = match parsed.globals.get("root") {
        Some(root) => root.into(),
        None => Runtime::default_root(),
    };
    let call = Call {
        parsed,
        runtime: Runtime::new(root),
        log,
    };
    match dispatch(&call) {
        Ok(code) => code,
        Err(error) => {
            call.log.error(&crate::chain(error.as_ref()));
            Exit::FAILURE
        }
    }
}

fn dispatch(call: &Call) -> Result<Exit> {
    match call.parsed.command.name {
        "create" => lifecycle::create(call),
        "start" => lifecycle::start(call),
        "run" => programs::run(call),
        "exec" => programs::exec(call),
        "kill" => lifecycle::kill(call),
        "delete" => lifecycle::delete(call),
        "pause" => lifecycle::pause(call),
        "resume" => lifecycle::resume(call),
        "update" => limits::update(call),
        "state" => inspect::state(call),
        "list" => inspect::list(call),
        "ps" => inspect::ps(call),
        "events" => inspect::events(call),
        "features" => inspect::features(call),
        "spec" => template::write(call),
        other => Err(format!("command {other} is not wired up").into()),
    }
}

impl Call {
    /// The id, which the grammar made sure is there.
    fn id(&self) -> &str {
        self.parsed.positionals.first().map_or("", String::as_str)
    }

    /// The container of that id.
    fn container(&self) -> std::result::Result<crate::Container, StateError> {
        self.runtime.open(self.id())
    }

    fn warn(&self, warnings: &[String]) {
        warnings.iter().for_each(|text| self.log.warning(text));
    }
}

/// Prints to standard output.
fn print(text: &str) -> std::io::Result<()> {
    std::io::stdout().lock().write_all(text.as_bytes())
}
