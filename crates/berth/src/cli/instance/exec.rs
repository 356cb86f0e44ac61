//! `exec`, `shell` and `attach`: into what runs.

use api::{Process, client::ClientError, stream::Attach};
use clap::Args;

use super::{foreground, list::find, spec::ProgramArgs};
use crate::cli::{
    Context, complete,
    exit::{Failure, Outcome},
    session::{self, Ended},
    suggest::{Noun, on_missing},
    term::{self, DetachKeys},
};

/// The best shell there is inside.
const SHELL: &str = "exec \"$(command -v bash || command -v sh)\" -l";

/// Flags of `exec`.
#[derive(Debug, Args)]
pub struct ExecArgs {
    /// Send it our standard input
    #[arg(short, long)]
    interactive: bool,
    /// Give it a terminal
    #[arg(short, long)]
    tty: bool,
    /// Keys that end the session
    #[arg(long, value_name = "KEYS", value_parser = term::detach_keys, default_value = "ctrl-p,ctrl-q")]
    detach_keys: DetachKeys,
    /// The instance
    #[arg(add = complete::instances())]
    name: String,
    /// The program and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
    #[command(flatten)]
    program: ProgramArgs,
}

/// Flags of `shell`.
#[derive(Debug, Args)]
pub struct ShellArgs {
    /// The instance
    #[arg(add = complete::instances())]
    name: String,
    #[command(flatten)]
    program: ProgramArgs,
}

/// Flags of `attach`.
#[derive(Debug, Args)]
pub struct AttachArgs {
    /// Only look: send it no input
    #[arg(long)]
    no_stdin: bool,
    /// Keys that leave it running and return
    #[arg(long, value_name = "KEYS", value_parser = term::detach_keys, default_value = "ctrl-p,ctrl-q")]
    detach_keys: DetachKeys,
    /// The instance
    #[arg(add = complete::instances())]
    name: String,
}

impl ExecArgs {
    /// Runs a program inside; gives its exit code.
    pub async fn run(self, cx: &Context) -> Outcome<u8> {
        if self.tty && self.interactive && !cx.in_is_terminal {
            return Err(
                Failure::usage("-t lends the program your terminal, but stdin is not one")
                    .advise("leave out -t to pipe into it"),
            );
        }
        let process = Process {
            command: self.command,
            env: environment(&self.program, self.tty)?,
            user: self.program.user(),
            workdir: self.program.workdir(),
            terminal: self.tty,
            stdin: self.interactive,
            size: self.tty.then(term::size).flatten(),
        };
        exec(cx, &self.name, &process, &self.detach_keys).await
    }
}

impl ShellArgs {
    /// Opens a shell; gives its exit code. Without a terminal, a script on stdin is run.
    pub async fn run(self, cx: &Context) -> Outcome<u8> {
        let terminal = cx.in_is_terminal;
        let process = Process {
            command: ["/bin/sh", "-c", SHELL].map(str::to_owned).to_vec(),
            env: environment(&self.program, terminal)?,
            user: self.program.user(),
            workdir: self.program.workdir(),
            terminal,
            stdin: true,
            size: term::size().filter(|_| terminal),
        };
        // A shell is left with `exit`; its keys are its own.
        let none = term::detach_keys("").map_err(Failure::error)?;
        exec(cx, &self.name, &process, &none).await
    }
}

/// The environment asked for, and the kind of our terminal when it is lent.
fn environment(
    program: &ProgramArgs,
    terminal: bool,
) -> Outcome<std::collections::BTreeMap<String, String>> {
    let mut env = program.environment()?;
    if let (true, Ok(term)) = (terminal, std::env::var("TERM")) {
        env.entry("TERM".into()).or_insert(term);
    }
    Ok(env)
}

async fn exec(cx: &Context, name: &str, process: &Process, keys: &DetachKeys) -> Outcome<u8> {
    let session = match cx.client.exec_instance(name, process).await {
        Ok(session) => session,
        Err(error) => return Err(not_running(cx, name, error).await),
    };
    let options = session::Options {
        terminal: process.terminal,
        stdin: process.stdin,
        detach_keys: keys,
    };
    match session::run(cx, session, &options).await? {
        Ended::Exited(code) => Ok(code.clamp(0, 255) as u8),
        Ended::Detached => Ok(0),
        Ended::Lost => Err(Failure::said(
            crate::cli::exit::Exit::Unreachable,
            "the connection to the daemon was lost before the program ended",
        )
        .advise(format!("see whether it still runs: berth top {name}"))),
    }
}

/// The nearest name for one that does not exist, and how to start what does not run.
pub(super) async fn not_running(cx: &Context, name: &str, error: ClientError) -> Failure {
    let conflict = error.code() == Some(api::ErrorCode::Conflict) && error.hint().is_none();
    let failure = on_missing(cx, Noun::Instance, name, error.into()).await;
    if conflict {
        failure.advise(format!("start it: berth start {name}"))
    } else {
        failure
    }
}

impl AttachArgs {
    /// Attaches to the program; gives its exit code if it ends meanwhile.
    pub async fn run(self, cx: &Context) -> Outcome<u8> {
        let detail = find(cx, &self.name).await?;
        let (terminal, stdin) = (detail.spec.terminal, detail.spec.stdin && !self.no_stdin);
        let attach = Attach {
            stdin,
            start: detail.instance.status == "prepared",
            size: term::size().filter(|_| terminal),
        };
        let session = match cx.client.attach_instance(&self.name, &attach).await {
            Ok(session) => session,
            Err(error) => return Err(not_running(cx, &self.name, error).await),
        };
        let options = session::Options {
            terminal,
            stdin,
            detach_keys: &self.detach_keys,
        };
        let whose = foreground::Whose {
            id: &detail.instance.id,
            name: &detail.instance.name,
        };
        foreground::attend(cx, whose, session, &options).await
    }
}
