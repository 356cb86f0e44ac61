//! `help`, its topics, and the manual pages.

use std::{fmt::Write as _, io::Write as _, path::PathBuf};

use clap::{Args, CommandFactory, ValueHint};

use super::{
    Cli,
    exit::{Failure, Outcome, TABLE},
};

/// Flags of `help`.
#[derive(Debug, Args)]
pub struct HelpArgs {
    /// A command, or one of the topics: exit-codes, environment
    topic: Vec<String>,
}

/// Flags of `man`.
#[derive(Debug, Args)]
pub struct ManArgs {
    /// The directory to write the pages into
    #[arg(value_hint = ValueHint::DirPath)]
    directory: PathBuf,
}

/// The environment variables that count.
pub const ENVIRONMENT: [(&str, &str); 10] = [
    (
        "BERTH_HOST",
        "where the daemon is: unix:///path or https://host:port",
    ),
    (
        "BERTH_RUN_DIR",
        "run directory of the daemon, whose socket is used without BERTH_HOST",
    ),
    ("BERTH_ROOT", "for the daemon: where everything durable is"),
    (
        "BERTH_TOKEN",
        "token for https; else ~/.config/berth/credentials.json has one for the host",
    ),
    (
        "BERTH_CA_FILE",
        "authority, in PEM, that signed the certificate of the daemon",
    ),
    (
        "BERTH_FINGERPRINT",
        "the one certificate to trust, as sha256:<hex>",
    ),
    ("NO_COLOR", "print no colours"),
    ("VISUAL, EDITOR", "editor for `berth edit`"),
    ("COMPLETE", "used by the completion of the shell"),
    ("TERM", "passed into a terminal inside"),
];

/// The table of exit codes.
pub fn exit_codes() -> String {
    let mut text = String::from("Exit codes:\n");
    for (exit, meaning) in TABLE {
        let _ = writeln!(text, "  {}  {meaning}", exit as u8);
    }
    text.push_str(
        "\nrun, exec, shell and attach end with the code of the program inside: 128 plus the \
         signal\nwhen a signal ended it. 130 means that you interrupted the command.\n",
    );
    text
}

/// The table of environment variables.
pub fn environment() -> String {
    let mut text = String::from("Environment:\n");
    for (name, meaning) in ENVIRONMENT {
        let _ = writeln!(text, "  {name:<18} {meaning}");
    }
    text
}

impl HelpArgs {
    /// Prints the help of a command or a topic.
    pub fn run(&self) -> Outcome {
        let text = match self.topic.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            ["exit-codes"] => exit_codes(),
            ["environment"] => environment(),
            ref words => command_help(words)?,
        };
        let mut out = std::io::stdout().lock();
        out.write_all(text.as_bytes())?;
        Ok(())
    }
}

fn command_help(words: &[&str]) -> Outcome<String> {
    let mut command = Cli::command();
    command.build();
    let mut found = &mut command;
    for word in words {
        found = found.find_subcommand_mut(word).ok_or_else(|| {
            Failure::usage(format!("there is no help on {:?}", words.join(" ")))
                .advise("berth help lists the commands; topics are exit-codes and environment")
        })?;
    }
    Ok(found.render_long_help().to_string())
}

impl ManArgs {
    /// Writes a page for each command.
    pub fn run(&self) -> Outcome {
        std::fs::create_dir_all(&self.directory)?;
        clap_mangen::generate_to(Cli::command(), &self.directory)?;
        Ok(())
    }
}
