//! Completion in the shell, with the names that exist.
//!
//! The shell calls this command again at each Tab, so a daemon that does not answer at once is
//! not waited for.

use std::{ffi::OsStr, time::Duration};

use api::client::{Client, Config};
use clap::{Args, CommandFactory, ValueEnum};
use clap_complete::{
    CompletionCandidate,
    engine::ArgValueCompleter,
    env::{CompleteEnv, Shells},
};

use super::{
    Cli,
    exit::{Failure, Outcome},
    suggest::Noun,
};

/// How long the daemon may take.
const PATIENCE: Duration = Duration::from_millis(500);

/// Names offered at most.
const MAX_NAMES: usize = 2000;

/// A shell.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Shell {
    Bash,
    Zsh,
    Fish,
}

/// Flags of `completion`.
#[derive(Debug, Args)]
pub struct CompletionArgs {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

/// Answers the shell when it asks for completions. Called first of all; does nothing otherwise.
pub fn answer_shell() {
    if std::env::var_os("COMPLETE").is_some() {
        CompleteEnv::with_factory(Cli::command).complete();
    }
}

impl CompletionArgs {
    /// Prints what the shell has to read once.
    pub fn run(&self) -> Outcome {
        let name = match self.shell {
            Shell::Bash => "bash",
            Shell::Zsh => "zsh",
            Shell::Fish => "fish",
        };
        let shells = Shells::builtins();
        let completer = shells
            .completer(name)
            .ok_or_else(|| Failure::error(format!("completion for {name} is not built in")))?;
        let mut out = std::io::stdout().lock();
        completer.write_registration("COMPLETE", "berth", "berth", "berth", &mut out)?;
        Ok(())
    }
}

/// Completes names of instances.
pub fn instances() -> ArgValueCompleter {
    ArgValueCompleter::new(|typed: &OsStr| live(Noun::Instance, typed))
}

/// Completes names of images.
pub fn images() -> ArgValueCompleter {
    ArgValueCompleter::new(|typed: &OsStr| live(Noun::Image, typed))
}

/// Completes names of networks.
pub fn networks() -> ArgValueCompleter {
    ArgValueCompleter::new(|typed: &OsStr| live(Noun::Network, typed))
}

/// Completes names of volumes.
pub fn volumes() -> ArgValueCompleter {
    ArgValueCompleter::new(|typed: &OsStr| live(Noun::Volume, typed))
}

/// The names that begin as typed; none when the daemon does not answer.
fn live(noun: Noun, typed: &OsStr) -> Vec<CompletionCandidate> {
    let Some(typed) = typed.to_str() else {
        return Vec::new();
    };
    let Ok(runtime) = super::runtime() else {
        return Vec::new();
    };
    let Ok(config) = Config::resolve(None, |name| std::env::var(name).ok()) else {
        return Vec::new();
    };
    let client = Client::new(config);
    let names = runtime.block_on(async {
        tokio::time::timeout(PATIENCE, noun.names(&client))
            .await
            .unwrap_or_default()
    });
    names
        .into_iter()
        .filter(|name| name.starts_with(typed) && !name.contains(char::is_control))
        .take(MAX_NAMES)
        .map(CompletionCandidate::new)
        .collect()
}
