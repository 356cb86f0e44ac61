//! Verbs on many instances at once: start, stop, restart, pause, resume, kill, rm, wait.

use api::{StopRequest, WaitFor, client::ClientError};
use clap::Args;
use futures::StreamExt;

use super::create::started;
use crate::cli::{
    Context, complete,
    exit::{Exit, Failure, Outcome},
    suggest::{Noun, on_missing},
};

/// Instances worked on at once.
const AT_ONCE: usize = 8;

/// Which instances, and how long to wait.
#[derive(Debug, Args)]
pub struct NamesArgs {
    /// Seconds to wait until it is done; 0 to return at once
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    timeout: u64,
    /// The instances
    #[arg(required = true, value_name = "NAME", add = complete::instances())]
    names: Vec<String>,
}

/// Flags of `stop` and `restart`.
#[derive(Debug, Args)]
pub struct StopArgs {
    /// End the program at once
    #[arg(short, long)]
    force: bool,
    #[command(flatten)]
    names: NamesArgs,
}

/// Flags of `rm`.
#[derive(Debug, Args)]
pub struct RmArgs {
    /// Stop what runs
    #[arg(short, long)]
    force: bool,
    #[command(flatten)]
    names: NamesArgs,
}

/// Flags of `kill`.
#[derive(Debug, Args)]
pub struct KillArgs {
    /// The signal, by name or number
    #[arg(short, long, value_name = "SIGNAL", default_value = "SIGKILL")]
    signal: String,
    /// The instances
    #[arg(required = true, value_name = "NAME", add = complete::instances())]
    names: Vec<String>,
}

/// What brings an instance to a power state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Power {
    /// Start its program.
    Start,
    /// End its program.
    Stop {
        /// At once.
        force: bool,
    },
    /// Both.
    Restart {
        /// End it at once.
        force: bool,
    },
    /// Freeze it.
    Pause,
    /// Thaw it.
    Resume,
}

impl StopArgs {
    /// As power verbs take them.
    pub fn split(self, verb: fn(bool) -> Power) -> (Power, NamesArgs) {
        (verb(self.force), self.names)
    }
}

/// Does something with each of several instances, each reported as it is done; fails as the first
/// that failed.
async fn each(cx: &Context, names: &[String], act: impl AsyncFn(&str) -> Outcome) -> Outcome {
    let act = &act;
    let mut results = futures::stream::iter(names)
        .map(|name| async move {
            match act(name).await {
                Ok(()) => Ok(name),
                Err(failure) => Err(on_missing(cx, Noun::Instance, name, failure).await),
            }
        })
        .buffered(AT_ONCE);
    let mut failed = None;
    while let Some(result) = results.next().await {
        match result {
            Ok(name) => cx.print(name)?,
            Err(failure) if names.len() == 1 => return Err(failure),
            Err(failure) => {
                cx.report(&failure);
                failed.get_or_insert(Exit::from(failure.exit()));
            }
        }
    }
    failed.map_or(Ok(()), |exit| Err(Failure::Reported(exit)))
}

/// Brings instances to a power state.
pub async fn power(cx: &Context, power: Power, args: NamesArgs) -> Outcome {
    let wait = (args.timeout > 0).then_some(args.timeout);
    let client = &cx.client;
    each(cx, &args.names, async |name| {
        let (made, wanted) = match power {
            Power::Start => (client.start_instance(name, wait).await?, "running"),
            Power::Stop { force } => {
                let request = StopRequest { force };
                (client.stop_instance(name, &request, wait).await?, "stopped")
            }
            Power::Restart { force } => {
                let request = StopRequest { force };
                (
                    client.restart_instance(name, &request, wait).await?,
                    "running",
                )
            }
            Power::Pause => (client.pause_instance(name, wait).await?, "paused"),
            Power::Resume => (client.resume_instance(name, wait).await?, "running"),
        };
        let status = made.instance.status.as_str();
        if wanted == "running" {
            started(&made)?;
        }
        // A program that ends at once has still been started.
        let ran = wanted == "running" && status == "stopped";
        if wait.is_none() || status == wanted || ran {
            return Ok(());
        }
        if status == "failed" {
            let why = made.instance.message.unwrap_or_default();
            return Err(Failure::error(format!("{name} failed: {why}"))
                .advise(format!("berth logs {name} shows what it said")));
        }
        Err(Failure::said(
            Exit::Timeout,
            format!(
                "{name} is still {status} after {} s; it goes on",
                args.timeout
            ),
        )
        .advise(format!("berth wait {name}, or berth stop --force {name}")))
    })
    .await
}

impl KillArgs {
    /// Sends the signal.
    pub async fn run(self, cx: &Context) -> Outcome {
        each(cx, &self.names, async |name| {
            Ok(cx.client.signal_instance(name, &self.signal).await?)
        })
        .await
    }
}

impl RmArgs {
    /// Deletes instances.
    pub async fn run(self, cx: &Context) -> Outcome {
        let wait = (self.names.timeout > 0).then_some(self.names.timeout);
        each(cx, &self.names.names, async |name| {
            let deleted = cx.client.delete_instance(name, self.force, wait).await;
            let operation = deleted.map_err(|error| running(error, name))?;
            match operation.error {
                Some(why) if operation.state.is_final() => Err(Failure::error(format!(
                    "{name} could not be deleted: {why}"
                ))
                .advise(format!("berth op show {}", operation.id))),
                _ if wait.is_some() && !operation.state.is_final() => Err(Failure::said(
                    Exit::Timeout,
                    format!("{name} is still being deleted; it goes on"),
                )
                .advise(format!("berth op watch {}", operation.id))),
                _ => Ok(()),
            }
        })
        .await
    }
}

fn running(error: ClientError, name: &str) -> Failure {
    let conflict = error.code() == Some(api::ErrorCode::Conflict);
    let hinted = error.hint().is_some();
    let failure = Failure::from(error);
    if conflict && !hinted {
        return failure.advise(format!("stop it first, or berth rm --force {name}"));
    }
    failure
}

/// What `wait` waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Until {
    /// Created, and at the power state asked for.
    Settled,
    /// Its program runs.
    Running,
    /// Nothing runs.
    #[default]
    Stopped,
    /// Its health checks pass.
    Healthy,
    /// It is gone.
    Removed,
}

impl From<Until> for WaitFor {
    fn from(until: Until) -> Self {
        match until {
            Until::Settled => Self::Settled,
            Until::Running => Self::Running,
            Until::Stopped => Self::Stopped,
            Until::Healthy => Self::Healthy,
            Until::Removed => Self::Removed,
        }
    }
}

/// Flags of `wait`.
#[derive(Debug, Args)]
pub struct WaitArgs {
    /// What to wait for
    #[arg(long = "for", value_enum, default_value_t, value_name = "STATE")]
    until: Until,
    /// Time to wait at most; as long as it takes when not given
    #[arg(long, value_name = "TIME", value_parser = crate::cli::parse::duration::duration)]
    timeout: Option<std::time::Duration>,
    /// The instances
    #[arg(required = true, value_name = "NAME", add = complete::instances())]
    names: Vec<String>,
}

impl WaitArgs {
    /// Waits. For `stopped`, prints the exit code of each program.
    pub async fn run(self, cx: &Context) -> Outcome {
        let deadline = self
            .timeout
            .map(|timeout| std::time::Instant::now() + timeout);
        for name in &self.names {
            match self.one(cx, name, deadline).await {
                Ok(Some(code)) => cx.print(&code.to_string())?,
                Ok(None) => {}
                Err(failure) => return Err(on_missing(cx, Noun::Instance, name, failure).await),
            }
        }
        Ok(())
    }

    async fn one(
        &self,
        cx: &Context,
        name: &str,
        deadline: Option<std::time::Instant>,
    ) -> Outcome<Option<i32>> {
        // In rounds, so that no connection is silent for long.
        const ROUND_S: u64 = 60;
        loop {
            let left = deadline.map_or(ROUND_S, |deadline| {
                let left = deadline.saturating_duration_since(std::time::Instant::now());
                left.as_secs_f64().ceil() as u64
            });
            let round = left.min(ROUND_S);
            match cx
                .client
                .wait_instance(name, self.until.into(), round)
                .await
            {
                Ok(detail) if self.until == Until::Stopped => {
                    return Ok(detail.instance.exit.map(|exit| exit.code));
                }
                Ok(_) => return Ok(None),
                Err(error) => {
                    let failure = Failure::from(error);
                    if self.until == Until::Removed && failure.is_not_found() {
                        return Ok(None);
                    }
                    if !failure.is_timeout() || left <= round && deadline.is_some() {
                        return Err(failure);
                    }
                }
            }
        }
    }
}
