//! The next step that brings one instance to the power state its user wants.
//!
//! The node observes, asks [`next`], does that one step, and observes again. Nothing is kept
//! between two passes but the stored status, so a pass may be cut off anywhere.
//!
//! ```text
//!              wants nothing        wants it running
//!  absent      rest                 prepare (when its run is due)
//!  prepared    end                  start
//!  running     signal, then end     rest            (another run: signal, then end)
//!  paused      thaw to be signalled resume
//!  exited      settle ─ the exit is recorded, then what is left is taken away
//! ```

use engine::{GuestState, Observed};
use model::{
    InstanceStatus, Timestamp,
    instance::{PowerState, RestartPolicy, spec::signal_number, status::Exit},
    record::InstanceRecord,
};

/// Longest pause between two restarts.
pub const MAX_BACKOFF_MS: u64 = 60_000;
/// Pause before the first restart; doubles each time.
pub const FIRST_BACKOFF_MS: u64 = 100;
/// A run at least so long is a success, after which the pauses begin anew.
pub const STEADY_MS: u64 = 10_000;
/// Patience when neither the user nor the kind of instance says otherwise.
pub const STOP_TIMEOUT_S: u32 = 10;

/// One step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// All is as wanted, until something changes or `until`.
    Rest {
        /// When to look again even if nothing changes.
        until: Option<Timestamp>,
    },
    /// Set it up, and attach its network.
    Prepare,
    /// Start the program.
    Start,
    /// Freeze it.
    Pause,
    /// Thaw it.
    Resume,
    /// Ask the program to end.
    AskToEnd {
        /// The signal.
        signal: i32,
    },
    /// End it and take away what is left.
    End,
    /// Record how it ended and what that means, then take away what is left.
    Settle(Settlement),
}

/// What the end of a program means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settlement {
    /// How it ended; `None` when it was found gone and nobody saw it end.
    pub exit: Option<Exit>,
    /// When it is started again; `None` for not by itself.
    pub restart_at: Option<Timestamp>,
    /// Starts in a row after it ended by itself.
    pub restarts: u32,
}

/// The next step.
#[must_use]
pub fn next(
    record: &InstanceRecord,
    status: &InstanceStatus,
    observed: &Observed,
    now: Timestamp,
) -> Step {
    let wanted = match record.desired {
        PowerState::Stopped => None,
        PowerState::Prepared | PowerState::Running | PowerState::Paused => Some(record.desired),
    };
    match observed.state {
        GuestState::Absent if status.phase.is_live() => {
            Step::Settle(settle(record, status, None, now))
        }
        GuestState::Exited => Step::Settle(settle(record, status, observed.exit.clone(), now)),
        GuestState::Absent => match wanted {
            Some(_) => begin(record, status, now),
            None => Step::Rest { until: None },
        },
        _ if wanted.is_none() || status.run < record.run => end(record, status, observed, now),
        GuestState::Prepared => match wanted {
            Some(PowerState::Running | PowerState::Paused) => Step::Start,
            _ => Step::Rest { until: None },
        },
        GuestState::Running if wanted == Some(PowerState::Paused) => Step::Pause,
        GuestState::Paused if wanted == Some(PowerState::Running) => Step::Resume,
        GuestState::Running | GuestState::Paused => Step::Rest { until: None },
    }
}

/// Whether, and when, a new run of what is absent begins.
fn begin(record: &InstanceRecord, status: &InstanceStatus, now: Timestamp) -> Step {
    if status.run < record.run {
        return Step::Prepare;
    }
    if status.run_over {
        return Step::Rest { until: None };
    }
    match status.restart_at {
        Some(due) if due > now => Step::Rest { until: Some(due) },
        _ => Step::Prepare,
    }
}

/// How to bring what lives to its end.
fn end(
    record: &InstanceRecord,
    status: &InstanceStatus,
    observed: &Observed,
    now: Timestamp,
) -> Step {
    let spec = &record.spec;
    if observed.state == GuestState::Prepared || record.stop_now {
        return Step::End;
    }
    if observed.state == GuestState::Paused {
        // A frozen program cannot answer a signal.
        return Step::Resume;
    }
    let patience = spec.process.stop_timeout_s.unwrap_or(STOP_TIMEOUT_S);
    match status.stopping_since {
        None => {
            let usual = if spec.kind == model::instance::Kind::System {
                "RTMIN+3"
            } else {
                "TERM"
            };
            let asked = spec.process.stop_signal.as_deref();
            let signal = asked
                .and_then(signal_number)
                .or_else(|| signal_number(usual));
            Step::AskToEnd {
                signal: signal.unwrap_or(15),
            }
        }
        Some(since) => {
            let due = Timestamp::from_millis(since.as_millis() + u64::from(patience) * 1000);
            if due > now {
                Step::Rest { until: Some(due) }
            } else {
                Step::End
            }
        }
    }
}

/// What an end means: asked for, or a case for the restart policy.
fn settle(
    record: &InstanceRecord,
    status: &InstanceStatus,
    exit: Option<Exit>,
    now: Timestamp,
) -> Settlement {
    let asked_for = record.desired == PowerState::Stopped || status.run < record.run;
    if asked_for {
        return Settlement {
            exit,
            restart_at: None,
            restarts: 0,
        };
    }
    let ended_at = exit.as_ref().map_or(now, |exit| exit.at);
    let steady = status
        .started_at
        .is_some_and(|at| ended_at.millis_since(at) >= STEADY_MS);
    let restarts = if steady { 0 } else { status.restarts };
    // What was found gone (the host went down under it) has not ended well.
    let failed = exit.as_ref().is_none_or(|exit| exit.code != 0);
    let again = match record.spec.restart {
        RestartPolicy::No => false,
        RestartPolicy::OnFailure { max_retries } => {
            failed && max_retries.is_none_or(|most| restarts < most)
        }
        RestartPolicy::Always | RestartPolicy::UnlessStopped => true,
    };
    if !again {
        return Settlement {
            exit,
            restart_at: None,
            restarts,
        };
    }
    let pause = (FIRST_BACKOFF_MS << restarts.min(20)).min(MAX_BACKOFF_MS);
    let restart_at = Some(Timestamp::from_millis(ended_at.as_millis() + pause));
    Settlement {
        exit,
        restart_at,
        restarts: restarts + 1,
    }
}

#[cfg(test)]
mod tests;
