//! `berth-vmm`: the process of one virtual machine, and a way to try a kernel out.
//!
//! The daemon starts it with a configuration and talks to its sockets from then on; people use
//! `berth-vmm boot`. All the work is in the library.

#![forbid(unsafe_code)]

mod block;
mod boot;
mod terminal;

use std::{
    io::{self, Read, Write},
    path::PathBuf,
    process::ExitCode,
    time::Instant,
};

use clap::{Args, Parser, Subcommand};
use devices::virtio::block::probe_ring;
use vmm::{
    StopReason, VmConfig,
    config::{MAX_CONFIG, Stdio},
    front,
    machine::choose,
    process::{Supervision, supervise},
};

/// Run one virtual machine.
#[derive(Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(flatten)]
    run: Option<Run>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Args)]
struct Run {
    /// The machine's configuration (JSON)
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Do not lock the process up; for debugging only
    #[arg(long)]
    no_jail: bool,
    /// Say on standard error how long the start took
    #[arg(long)]
    verbose: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Say, in JSON, what executes machines on this host and how their disks are read
    Probe,
    /// Boot a kernel in the foreground, with the serial console on this terminal
    Boot(Box<boot::Arguments>),
    /// Show how the software CPU translates a block of code
    Block(block::Arguments),
}

fn main() -> ExitCode {
    let since = Instant::now();
    // What is read and opened from here on passes while the counter is measured.
    cpu::soft::clock::begin_measuring();
    let cli = Cli::parse();
    let ended = match (cli.command, cli.run) {
        (Some(Command::Boot(arguments)), _) => boot::run(&arguments, since).map(tell),
        (Some(Command::Probe), _) => probe(),
        (Some(Command::Block(arguments)), _) => block::run(&arguments),
        (None, Some(run)) => run.supervise(since),
        (None, None) => Err("nothing to run: give --config FILE, or boot".into()),
    };
    ended.unwrap_or_else(|error| {
        if let StopReason::Error { message } = StopReason::error(&*error) {
            // Where standard error is closed nobody is told.
            let _closed = writeln!(io::stderr().lock(), "berth-vmm: {message}");
        }
        ExitCode::FAILURE
    })
}

/// Says why a machine stopped, where that is news.
fn tell(reason: StopReason) -> ExitCode {
    if !matches!(reason, StopReason::PowerOff | StopReason::Killed) {
        let mut err = io::stderr().lock();
        let _closed = writeln!(err, "berth-vmm: the machine stopped: {reason}");
    }
    ExitCode::from(reason.status())
}

fn probe() -> Result<ExitCode, Failure> {
    let found = serde_json::json!({ "kvm": cpu::kvm::probe::run(), "io_uring": io_uring() });
    writeln!(io::stdout().lock(), "{found}")?;
    Ok(ExitCode::SUCCESS)
}

/// Whether machines in their jail can use io_uring, or why not.
fn io_uring() -> serde_json::Value {
    const SYSCTL: &str = "/proc/sys/kernel/io_uring_disabled";
    let disabled = std::fs::read_to_string(SYSCTL).is_ok_and(|it| it.trim() != "0");
    let reason = match disabled {
        // With 1 it is for privileged processes, which this may be and a machine is not.
        true => Some("the sysctl kernel.io_uring_disabled is not 0".to_owned()),
        false => probe_ring().err().map(|error| error.to_string()),
    };
    serde_json::json!({ "usable": reason.is_none(), "reason": reason })
}

/// What failed, for people.
type Failure = Box<dyn std::error::Error>;

impl Run {
    fn supervise(&self, since: Instant) -> Result<ExitCode, Failure> {
        let mut json = Vec::new();
        std::fs::File::open(&self.config)
            .and_then(|file| file.take(MAX_CONFIG + 1).read_to_end(&mut json))
            .map_err(|error| format!("read {}: {error}", self.config.display()))?;
        if json.len() as u64 > MAX_CONFIG {
            return Err(format!("{} is no configuration: too long", self.config.display()).into());
        }
        let config = VmConfig::parse(&json)?;
        let how = Supervision {
            backend: choose(config.accel),
            jail: !self.no_jail,
            verbose: self.verbose,
            since,
        };
        if config.stdio == Stdio::None {
            return Ok(tell(supervise(&config, how, None)?));
        }
        Ok(ExitCode::from(front::run(&config, how)?))
    }
}
