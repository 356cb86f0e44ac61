//! The command line: what a user types, and what they read.
//!
//! Called by `main` for everything that is not a role of its own. It only speaks to the daemon
//! through [`api::client`] and prints; it knows nothing of how anything is done. Results go to
//! stdout, everything else to stderr; nothing is printed that a program did not ask for.

pub mod daemon;

mod complete;
mod events;
mod exit;
mod filter;
mod help;
mod human;
mod image;
mod info;
mod instance;
mod login;
mod network;
mod op;
mod output;
mod parse;
mod patch;
mod progress;
mod session;
mod suggest;
mod table;
mod term;
mod token;
mod volume;
mod yaml;

use std::{
    ffi::OsString,
    io::{self, IsTerminal, Write},
    process::ExitCode,
};

use api::client::{Client, Config};
use clap::{Args, Parser, Subcommand, ValueEnum, error::ErrorKind};

use self::{
    exit::{Exit, Failure, Outcome},
    instance::{
        console::ConsoleArgs,
        create::{LaunchArgs, RunArgs},
        edit::EditArgs,
        exec::{AttachArgs, ExecArgs, ShellArgs},
        files::CpArgs,
        list::{InspectArgs, ShowInstanceArgs},
        logs::LogsArgs,
        power::{KillArgs, NamesArgs, Power, RmArgs, StopArgs, WaitArgs},
        set::SetArgs,
        stats::{StatsArgs, TopArgs},
    },
    output::ListArgs,
    table::Style,
};

/// When to print colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
enum Color {
    /// On a terminal, unless NO_COLOR is set
    #[default]
    Auto,
    /// Always
    Always,
    /// Never
    Never,
}

/// Flags of every command.
#[derive(Debug, Args)]
#[command(next_help_heading = "Everywhere")]
struct GlobalArgs {
    /// Where the daemon is: unix:///path or https://host:port
    #[arg(short = 'H', long, global = true, value_name = "ADDRESS")]
    host: Option<String>,
    /// Print names only, and no progress
    #[arg(short, long, global = true)]
    quiet: bool,
    /// When to print colours
    #[arg(
        long,
        global = true,
        value_enum,
        default_value_t,
        value_name = "WHEN",
        hide_possible_values = true
    )]
    color: Color,
}

/// A private cloud on any Linux machine
#[derive(Debug, Parser)]
#[command(
    name = "berth",
    version,
    disable_help_subcommand = true,
    arg_required_else_help = true,
    max_term_width = 100,
    after_help = "Try it: berth run -it debian · berth launch debian --name box · berth shell box\n\
                  More: berth help COMMAND · berth help exit-codes · berth help environment"
)]
struct Cli {
    #[command(flatten)]
    global: GlobalArgs,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a program in a new container or virtual machine, in the foreground
    Run(Box<RunArgs>),
    /// Launch a system, in a container or a virtual machine, and wait until it is ready
    Launch(Box<LaunchArgs>),
    /// List instances
    #[command(visible_aliases = ["ls", "ps"])]
    List(ListArgs),
    /// Show one instance
    Show(ShowInstanceArgs),
    /// Print instances as the API gives them, in JSON
    Inspect(InspectArgs),
    /// Start instances
    Start(NamesArgs),
    /// Stop instances: ask their programs to end, then end them
    Stop(StopArgs),
    /// Stop and start instances
    Restart(StopArgs),
    /// Stop instances at once, as by a reset button, and start them
    Reset(NamesArgs),
    /// Freeze instances
    Pause(NamesArgs),
    /// Thaw instances
    Resume(NamesArgs),
    /// Send the programs of instances a signal
    Kill(KillArgs),
    /// Delete instances and all that is their own
    #[command(visible_alias = "delete")]
    Rm(RmArgs),
    /// Run a program inside an instance
    Exec(ExecArgs),
    /// Open a shell inside an instance
    Shell(ShellArgs),
    /// Attach to the program of an instance
    Attach(AttachArgs),
    /// Join the console of a system
    Console(ConsoleArgs),
    /// Show what the program of an instance wrote
    Logs(LogsArgs),
    /// Copy files into and out of an instance
    Cp(CpArgs),
    /// Change an instance; limits take effect at once
    Set(Box<SetArgs>),
    /// Change an instance in an editor
    Edit(EditArgs),
    /// Show what instances use
    Stats(StatsArgs),
    /// Show the processes of an instance
    Top(TopArgs),
    /// Wait until instances are as asked
    Wait(WaitArgs),
    /// Print what happens, as it happens
    Events(events::EventsArgs),
    /// Images
    #[command(subcommand, visible_alias = "images")]
    Image(image::ImageCommand),
    /// Networks
    #[command(subcommand, visible_alias = "networks")]
    Network(network::NetworkCommand),
    /// Volumes
    #[command(subcommand, visible_alias = "volumes")]
    Volume(volume::VolumeCommand),
    /// Operations: everything long
    #[command(subcommand)]
    Op(op::OpCommand),
    /// Log the daemon in at a registry, or list where it is logged in
    Login(login::LoginArgs),
    /// Forget logins at registries
    Logout {
        /// Registries: host or host:port
        #[arg(required = true, value_name = "REGISTRY")]
        registries: Vec<String>,
    },
    /// Tokens for callers from other machines
    #[command(subcommand)]
    Token(token::TokenCommand),
    /// Show what the daemon and its host are
    Info(info::InfoArgs),
    /// Show what the daemon's host can and cannot do, and what to change
    Doctor(output::ListArgs),
    /// Show the version of this command and of the daemon
    Version(info::VersionArgs),
    /// Run the daemon
    Daemon(Box<daemon::DaemonArgs>),
    /// Rebuild the daemon's database from the directories of instances; the daemon must be stopped
    Recover(daemon::RecoverArgs),
    /// Print the completion for a shell: source <(berth completion bash)
    Completion(complete::CompletionArgs),
    /// Write manual pages
    #[command(hide = true)]
    Man(help::ManArgs),
    /// Show help on a command, on exit-codes or on environment
    Help(help::HelpArgs),
}

/// What a command has at hand.
struct Context {
    /// The daemon.
    client: Client,
    /// Whether only results are wanted.
    quiet: bool,
    /// Whether stdout gets colours.
    color_out: bool,
    /// Whether stderr gets colours.
    color_err: bool,
    /// Whether stdin is a terminal.
    in_is_terminal: bool,
    /// Whether stdout is a terminal.
    out_is_terminal: bool,
    /// Whether stderr is a terminal.
    err_is_terminal: bool,
}

impl Context {
    fn new(global: &GlobalArgs) -> Outcome<Self> {
        let config = Config::resolve(global.host.as_deref(), |name| std::env::var(name).ok())?;
        let (out, err) = (io::stdout().is_terminal(), io::stderr().is_terminal());
        Ok(Self {
            client: Client::new(config),
            quiet: global.quiet,
            color_out: colored(global.color, out),
            color_err: colored(global.color, err),
            in_is_terminal: io::stdin().is_terminal(),
            out_is_terminal: out,
            err_is_terminal: err,
        })
    }

    /// Prints a line of the result.
    fn print(&self, line: &str) -> Outcome {
        writeln!(io::stdout().lock(), "{line}")?;
        Ok(())
    }

    /// Says something that is not the result, unless only results are wanted.
    fn note(&self, line: &str) {
        if !self.quiet {
            self.say(line);
        }
    }

    /// Says something that is not the result.
    #[expect(clippy::unused_self, reason = "one way to talk, beside `note`")]
    fn say(&self, line: &str) {
        // Nobody is left to be told that stderr is gone.
        let _ = writeln!(io::stderr().lock(), "{line}");
    }

    /// A mark for what is done.
    fn mark(&self) -> String {
        Style::Good.paint("✓", self.color_err)
    }

    /// Says why something failed and what to do.
    fn report(&self, failure: &Failure) {
        report(failure, self.color_err);
    }
}

/// Whether a stream gets colours (<https://no-color.org>).
fn colored(wanted: Color, terminal: bool) -> bool {
    match wanted {
        Color::Always => true,
        Color::Never => false,
        Color::Auto => terminal && std::env::var_os("NO_COLOR").is_none_or(|set| set.is_empty()),
    }
}

fn report(failure: &Failure, color: bool) {
    let label = |text: &str, code: &str| {
        if color {
            format!("\x1b[1;{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    };
    let clean = |text: String| {
        text.lines()
            .map(human::clean)
            .collect::<Vec<_>>()
            .join("\n")
    };
    let mut err = io::stderr().lock();
    let _ = writeln!(
        err,
        "{} {}",
        label("error:", "31"),
        clean(failure.to_string())
    );
    if let Some(hint) = failure.hint() {
        let _ = writeln!(err, "{} {}", label("hint:", "36"), clean(hint));
    }
}

/// A role that this module leads to and others play.
pub enum Role {
    /// The command is done; end with this code.
    Done(ExitCode),
    /// Be the daemon.
    Daemon(Box<daemon::DaemonArgs>),
    /// Rebuild the database.
    Recover(daemon::RecoverArgs),
}

/// Does what the arguments say, program name first.
pub fn main(args: impl IntoIterator<Item = OsString>) -> Role {
    complete::answer_shell();
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            let code = match error.kind() {
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Exit::Ok,
                _ => Exit::Usage,
            };
            return Role::Done(ExitCode::from(code as u8));
        }
    };
    let color = colored(cli.global.color, io::stderr().is_terminal());
    let outcome = match cli.command {
        Command::Daemon(args) => return Role::Daemon(args),
        Command::Recover(args) => return Role::Recover(args),
        Command::Help(args) => args.run().map(|()| 0),
        Command::Completion(args) => args.run().map(|()| 0),
        Command::Man(args) => args.run().map(|()| 0),
        command => talk(&cli.global, command),
    };
    Role::Done(ExitCode::from(match outcome {
        Ok(code) => code,
        // Whoever read the output has enough of it: `berth ls | head`.
        Err(Failure::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => 0,
        Err(failure) => {
            if !matches!(failure, Failure::Reported(_) | Failure::Interrupted) {
                report(&failure, color);
            }
            failure.exit()
        }
    }))
}

/// A runtime for one command: no threads of its own.
fn runtime() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
}

/// Does what needs the daemon.
fn talk(global: &GlobalArgs, command: Command) -> Outcome<u8> {
    let cx = Context::new(global)?;
    let runtime = runtime()?;
    let outcome = runtime.block_on(dispatch(&cx, command));
    // A thread that still reads stdin must not hold us up.
    runtime.shutdown_background();
    outcome
}

async fn dispatch(cx: &Context, command: Command) -> Outcome<u8> {
    match command {
        Command::Run(args) => return args.run(cx).await,
        Command::Exec(args) => return args.run(cx).await,
        Command::Shell(args) => return args.run(cx).await,
        Command::Attach(args) => return args.run(cx).await,
        Command::Console(args) => return args.run(cx).await,
        Command::Launch(args) => args.run(cx).await?,
        Command::List(args) => instance::list::list(cx, &args).await?,
        Command::Show(args) => args.run(cx).await?,
        Command::Inspect(args) => args.run(cx).await?,
        Command::Start(args) => instance::power::power(cx, Power::Start, args).await?,
        Command::Stop(args) => {
            let (power, names) = args.split(|force| Power::Stop { force });
            instance::power::power(cx, power, names).await?;
        }
        Command::Restart(args) => {
            let (power, names) = args.split(|force| Power::Restart { force });
            instance::power::power(cx, power, names).await?;
        }
        Command::Reset(args) => {
            instance::power::power(cx, Power::Restart { force: true }, args).await?;
        }
        Command::Pause(args) => instance::power::power(cx, Power::Pause, args).await?,
        Command::Resume(args) => instance::power::power(cx, Power::Resume, args).await?,
        Command::Kill(args) => args.run(cx).await?,
        Command::Rm(args) => args.run(cx).await?,
        Command::Logs(args) => args.run(cx).await?,
        Command::Cp(args) => args.run(cx).await?,
        Command::Set(args) => args.run(cx).await?,
        Command::Edit(args) => args.run(cx).await?,
        Command::Stats(args) => args.run(cx).await?,
        Command::Top(args) => args.run(cx).await?,
        Command::Wait(args) => args.run(cx).await?,
        Command::Events(args) => args.run(cx).await?,
        Command::Image(command) => command.run(cx).await?,
        Command::Network(command) => command.run(cx).await?,
        Command::Volume(command) => command.run(cx).await?,
        Command::Op(command) => command.run(cx).await?,
        Command::Login(args) => args.run(cx).await?,
        Command::Logout { registries } => login::log_out(cx, &registries).await?,
        Command::Token(command) => command.run(cx).await?,
        Command::Info(args) => args.run(cx).await?,
        Command::Doctor(args) => info::doctor(cx, &args).await?,
        Command::Version(args) => args.run(cx).await?,
        // Done before a daemon was needed.
        Command::Daemon(_)
        | Command::Recover(_)
        | Command::Help(_)
        | Command::Completion(_)
        | Command::Man(_) => {}
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_contradicts_itself_nowhere() {
        Cli::command().debug_assert();
    }

    #[test]
    fn colours_are_for_terminals_unless_asked_for() {
        assert!(colored(Color::Always, false));
        assert!(!colored(Color::Never, true));
        assert!(!colored(Color::Auto, false));
    }
}
