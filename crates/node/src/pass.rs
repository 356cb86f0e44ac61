//! One look at one instance: read the record, observe, let the planner say the next step, do it,
//! write down what is, and again until there is nothing left to do.

use std::time::Duration;

use engine::{EngineError, GuestState, Observed, Target};
use model::{
    InstanceId, InstanceStatus, Phase,
    instance::{
        lifecycle::{self, Event},
        spec::signal_number,
        status::{Exit, Health},
    },
    record::{InstanceRecord, RecordState},
};
use planner::power::{Settlement, Step};
use store::{Durability, Txn, crash};

use crate::{Node, NodeError, Notice, clock, directory, kicks::Next, lock, tables};

/// Pause before a failed pass is tried again.
const RETRY: Duration = Duration::from_secs(2);
/// Steps after which a look gives others a turn; no instance needs so many.
const MAX_STEPS: usize = 32;
/// `SIGKILL`.
const KILL: i32 = 9;

impl Node {
    /// Looks at an instance until it has settled or has to wait.
    pub(crate) async fn settle_in(&self, id: InstanceId) -> Next {
        for _ in 0..MAX_STEPS {
            match self.one_step(id).await {
                Ok(None) => {}
                Ok(Some(next)) => return next,
                Err(error) => {
                    tracing::error!(%id, error = %error.chain(), "an instance cannot be looked at");
                    return Next::After(RETRY);
                }
            }
        }
        tracing::warn!(%id, "an instance does not settle");
        Next::After(RETRY)
    }

    /// One step; `None` when another may follow at once.
    async fn one_step(&self, id: InstanceId) -> Result<Option<Next>, NodeError> {
        let _turn = self.turn(id).await;
        let store = &self.parts().store;
        let key = id.to_string();
        let Some(entry) = tables::INSTANCES.get(store, &key).await? else {
            return Ok(Some(Next::Idle));
        };
        let record = entry.value;
        if record.state != RecordState::Ready {
            return Ok(Some(Next::Idle));
        }
        let status = tables::STATUSES
            .get(store, &key)
            .await?
            .map(|entry| entry.value);
        let mut status = status.unwrap_or_else(|| InstanceStatus::new(0));
        if status.phase == Phase::Creating {
            status.phase = happened(status.phase, Event::Created);
        }
        let observed = self.engine().observe(id).await.map_err(NodeError::Engine)?;
        let step = planner::power::next(&record, &status, &observed, clock::now());
        tracing::debug!(%id, ?step, state = ?observed.state, "step");
        let name = step_name(&step);
        crash::point(&["node", name, "before"]);
        let rest = self.take(step, &record, &mut status, &observed).await?;
        crash::point(&["node", name, "after"]);
        Ok(rest)
    }

    async fn take(
        &self,
        step: Step,
        record: &InstanceRecord,
        status: &mut InstanceStatus,
        observed: &Observed,
    ) -> Result<Option<Next>, NodeError> {
        match step {
            Step::Rest { until } => {
                self.keep_in_line(record, status, observed).await?;
                let wait = |due: model::Timestamp| {
                    Next::After(Duration::from_millis(due.millis_since(clock::now()).max(1)))
                };
                return Ok(Some(until.map_or(Next::Idle, wait)));
            }
            Step::Prepare => {
                let prepared = self.prepare(record).await;
                return self.prepared(prepared, record, status).await;
            }
            Step::Start => return self.start_program(record, status).await,
            Step::Pause => {
                self.ensure_as(record, status, Target::Paused, Event::Paused)
                    .await?
            }
            Step::Resume => {
                self.ensure_as(record, status, Target::Running, Event::Resumed)
                    .await?
            }
            Step::AskToEnd { signal } => {
                let asked = record
                    .spec
                    .process
                    .stop_signal
                    .as_deref()
                    .and_then(signal_number);
                let signal = asked
                    .or_else(|| self.image_stop_signal(record))
                    .unwrap_or(signal);
                self.engine()
                    .signal(record.id, signal)
                    .await
                    .map_err(NodeError::Engine)?;
                status.stopping_since = Some(clock::now());
                status.phase = happened(status.phase, Event::Stopping);
                self.write(record, status, Durability::Relaxed).await?;
            }
            Step::End => return self.end_program(record, status, observed).await,
            Step::Settle(settlement) => {
                self.settle(settlement, record, status, observed).await?;
            }
        }
        Ok(None)
    }

    /// Sets a guest up and joins it to its network.
    async fn prepare(&self, record: &InstanceRecord) -> Result<Observed, NodeError> {
        let guest = self.resolve(record).await?;
        // Its root is mounted once at a time.
        self.inner.roots.close(record.id).await?;
        let engine = self.engine();
        let seen = engine
            .ensure(&guest, Target::Prepared)
            .await
            .map_err(NodeError::Engine)?;
        crash::point(&["node", "prepare", "ensured"]);
        if let Some(pid) = seen.pid
            && let Err(error) = self.parts().wiring.attach(record, pid).await
        {
            engine.remove(record.id).await.map_err(NodeError::Engine)?;
            return Err(error.into());
        }
        crash::point(&["node", "prepare", "attached"]);
        Ok(seen)
    }

    async fn prepared(
        &self,
        prepared: Result<Observed, NodeError>,
        record: &InstanceRecord,
        status: &mut InstanceStatus,
    ) -> Result<Option<Next>, NodeError> {
        status.run = record.run;
        status.run_over = false;
        status.restart_at = None;
        status.stopping_since = None;
        match prepared {
            Ok(seen) => {
                status.phase = happened(status.phase, Event::Prepared);
                status.generation = record.generation;
                status.pid = seen.pid;
                status.exit = None;
                status.message = None;
                self.write(record, status, Durability::Relaxed).await?;
                Ok(None)
            }
            Err(error) => self.failed_to_start(&error, record, status).await,
        }
    }

    async fn start_program(
        &self,
        record: &InstanceRecord,
        status: &mut InstanceStatus,
    ) -> Result<Option<Next>, NodeError> {
        let guest = self.resolve(record).await?;
        match self.engine().ensure(&guest, Target::Running).await {
            Ok(seen) => {
                crash::point(&["node", "start", "ensured"]);
                status.phase = happened(status.phase, Event::Started);
                // The guest came with these limits; only its directory's record is still to follow.
                status.generation = record.generation;
                status.pid = seen.pid;
                self.note_limits(record);
                status.started_at = seen.started_at.or_else(|| Some(clock::now()));
                status.health = record.spec.health.as_ref().map(|_| Health::Starting);
                self.write(record, status, Durability::Relaxed).await?;
                self.notify(notice(
                    record,
                    "started",
                    format!("{} is running", record.name),
                ));
                self.start_health(record);
                Ok(None)
            }
            Err(error) => {
                let error = NodeError::Engine(error);
                self.engine()
                    .remove(record.id)
                    .await
                    .map_err(NodeError::Engine)?;
                self.parts().wiring.detach(record.id).await?;
                self.failed_to_start(&error, record, status).await
            }
        }
    }

    /// A start that failed is an end of the run: the restart policy says whether to try again.
    async fn failed_to_start(
        &self,
        error: &NodeError,
        record: &InstanceRecord,
        status: &mut InstanceStatus,
    ) -> Result<Option<Next>, NodeError> {
        status.phase = happened(status.phase, Event::StartFailed);
        status.pid = None;
        status.message = Some(error.chain());
        status.exit = unrunnable(error);
        let gone = Observed::absent(record.id);
        // The planner settles what it is told was live.
        let lost = InstanceStatus {
            phase: Phase::Prepared,
            ..status.clone()
        };
        if let Step::Settle(settlement) = planner::power::next(record, &lost, &gone, clock::now()) {
            status.restart_at = settlement.restart_at;
            status.restarts = settlement.restarts;
            status.run_over = settlement.restart_at.is_none();
        }
        self.write(record, status, Durability::Durable).await?;
        let text = format!("{} could not be started: {}", record.name, error.chain());
        let mut notice = notice(record, "start_failed", text);
        if let Some(exit) = &status.exit {
            notice.attributes.push(("exit_code", exit.code.to_string()));
        }
        self.notify(notice);
        Ok(None)
    }

    async fn ensure_as(
        &self,
        record: &InstanceRecord,
        status: &mut InstanceStatus,
        target: Target,
        event: Event,
    ) -> Result<(), NodeError> {
        let guest = self.resolve(record).await?;
        self.engine()
            .ensure(&guest, target)
            .await
            .map_err(NodeError::Engine)?;
        // What is being stopped stays so while it is thawed to hear the signal.
        if status.phase != Phase::Stopping {
            status.phase = lifecycle::next(status.phase, event).unwrap_or(match target {
                Target::Paused => Phase::Paused,
                _ => Phase::Running,
            });
        }
        self.write(record, status, Durability::Relaxed).await?;
        let kind = if target == Target::Paused {
            "paused"
        } else {
            "resumed"
        };
        self.notify(notice(record, kind, format!("{} is {kind}", record.name)));
        Ok(())
    }

    async fn end_program(
        &self,
        record: &InstanceRecord,
        status: &mut InstanceStatus,
        observed: &Observed,
    ) -> Result<Option<Next>, NodeError> {
        if observed.state == GuestState::Prepared {
            // Nothing has run, so there is no exit to wait for.
            self.engine()
                .remove(record.id)
                .await
                .map_err(NodeError::Engine)?;
            return Ok(None);
        }
        self.engine()
            .signal(record.id, KILL)
            .await
            .map_err(NodeError::Engine)?;
        if status.phase != Phase::Stopping {
            status.phase = happened(status.phase, Event::Stopping);
            status.stopping_since = Some(clock::now());
            self.write(record, status, Durability::Relaxed).await?;
        }
        // Its end is an event; this is only for an event that never comes.
        Ok(Some(Next::After(RETRY)))
    }

    async fn settle(
        &self,
        settlement: Settlement,
        record: &InstanceRecord,
        status: &mut InstanceStatus,
        observed: &Observed,
    ) -> Result<(), NodeError> {
        self.stop_health(record.id);
        status.phase = happened(status.phase, Event::Exited);
        status.pid = None;
        status.health = None;
        status.stopping_since = None;
        status.usage = status.usage.plus(observed.usage);
        status.restart_at = settlement.restart_at;
        status.restarts = settlement.restarts;
        status.run_over = settlement.restart_at.is_none() && status.run >= record.run;
        if settlement.exit.is_none() && observed.state == GuestState::Absent {
            status.message =
                Some("its processes were gone: the host or its shim was ended".to_owned());
        }
        status.exit.clone_from(&settlement.exit);
        let durability = if record.spec.remove_on_exit {
            Durability::Relaxed
        } else {
            Durability::Durable
        };
        // The exit is written down before the engine's own record of it is taken away.
        self.write(record, status, durability).await?;
        crash::point(&["node", "settle", "written"]);
        self.engine()
            .remove(record.id)
            .await
            .map_err(NodeError::Engine)?;
        crash::point(&["node", "settle", "removed"]);
        self.parts().wiring.detach(record.id).await?;
        self.notify(exit_notice(record, &settlement));
        Ok(())
    }

    /// What may have changed while all stays as it is: limits, and the directory's record.
    async fn keep_in_line(
        &self,
        record: &InstanceRecord,
        status: &mut InstanceStatus,
        observed: &Observed,
    ) -> Result<(), NodeError> {
        let seen = match observed.state {
            GuestState::Running if status.phase == Phase::Stopping => Phase::Stopping,
            GuestState::Running => Phase::Running,
            GuestState::Paused => Phase::Paused,
            GuestState::Prepared => Phase::Prepared,
            GuestState::Absent | GuestState::Exited => status.phase,
        };
        let live = observed.pid.is_some();
        let mut changed = seen != status.phase || status.pid != observed.pid;
        if status.generation != record.generation {
            if live {
                self.change_limits(record, status).await?;
            }
            status.generation = record.generation;
            changed = true;
        } else if live && status.message.is_none() {
            self.note_limits(record);
        }
        status.phase = seen;
        status.pid = observed.pid;
        if changed {
            self.write(record, status, Durability::Relaxed).await?;
        }
        if seen == Phase::Running {
            self.start_health(record);
        }
        self.keep_directory(record).await
    }

    /// Writes the record into its directory when it changed; after the status, which others wait
    /// for.
    async fn keep_directory(&self, record: &InstanceRecord) -> Result<(), NodeError> {
        let known = lock(&self.inner.written).get(&record.id).copied();
        // What goes away with its program is never recovered.
        if known == Some(record.generation) || record.spec.remove_on_exit {
            return Ok(());
        }
        let (paths, copy) = (self.parts().paths.clone(), record.clone());
        let written = tokio::task::spawn_blocking(move || {
            if known.is_none() && directory::generation(&paths, copy.id) == Some(copy.generation) {
                return Ok(());
            }
            directory::write_record(&paths, &copy)
        });
        written
            .await
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))?;
        lock(&self.inner.written).insert(record.id, record.generation);
        Ok(())
    }

    /// Remembers the limits that the guest came with.
    fn note_limits(&self, record: &InstanceRecord) {
        let mut known = lock(&self.inner.limits);
        if known.get(&record.id) != Some(&record.spec.limits) {
            known.insert(record.id, record.spec.limits.clone());
        }
    }

    async fn change_limits(
        &self,
        record: &InstanceRecord,
        status: &mut InstanceStatus,
    ) -> Result<(), NodeError> {
        if lock(&self.inner.limits).get(&record.id) == Some(&record.spec.limits) {
            // Something else of the record changed.
            return Ok(());
        }
        let guest = self
            .engine()
            .set_limits(record.id, &record.spec.limits)
            .await;
        let in_force = match guest {
            Ok(()) => {
                let wired = self.parts().wiring.set_limits(record).await;
                wired.map_err(|error| error.chain())
            }
            Err(error @ EngineError::Stale { .. }) => return Err(NodeError::Engine(error)),
            Err(error) => Err(error.chain()),
        };
        match in_force {
            Ok(()) => {
                status.message = None;
                self.note_limits(record);
                let text = format!("the limits of {} are in force", record.name);
                self.notify(notice(record, "limits_changed", text));
            }
            Err(why) => {
                lock(&self.inner.limits).remove(&record.id);
                status.message = Some(format!("other limits are not in force: {why}"));
            }
        }
        Ok(())
    }

    /// Writes a status, but never one of an instance that is gone.
    pub(crate) async fn write(
        &self,
        record: &InstanceRecord,
        status: &InstanceStatus,
        durability: Durability,
    ) -> Result<(), NodeError> {
        let mut txn = match durability {
            Durability::Durable => Txn::new(),
            Durability::Relaxed => Txn::relaxed(),
        };
        let key = record.id.to_string();
        txn.expect_present(tables::INSTANCES.key(&key));
        tables::STATUSES.put(&mut txn, &key, status)?;
        match self.parts().store.commit(txn).await {
            // Deleted meanwhile: there is nothing to say about it any more.
            Err(store::CommitError::Conflict { .. }) => Ok(()),
            written => written.map(drop).map_err(NodeError::Commit),
        }
    }
}

/// A program that could not be executed has ended as shells have it.
fn unrunnable(error: &NodeError) -> Option<Exit> {
    match error {
        NodeError::Engine(EngineError::Program { code, .. }) => Some(Exit {
            code: (*code).into(),
            signal: None,
            oom_killed: false,
            at: clock::now(),
        }),
        _ => None,
    }
}

/// The step's name among the crash points.
const fn step_name(step: &Step) -> &'static str {
    match step {
        Step::Rest { .. } => "rest",
        Step::Prepare => "prepare",
        Step::Start => "start",
        Step::Pause => "pause",
        Step::Resume => "resume",
        Step::AskToEnd { .. } => "ask",
        Step::End => "end",
        Step::Settle(_) => "settle",
    }
}

/// The phase after an event. An event that cannot be is a fault of this program: it is logged,
/// and what is seen wins.
fn happened(phase: Phase, event: Event) -> Phase {
    lifecycle::next(phase, event).unwrap_or_else(|error| {
        tracing::error!(%error, "unexpected event");
        match event {
            Event::Prepared => Phase::Prepared,
            Event::Started | Event::Resumed => Phase::Running,
            Event::Paused => Phase::Paused,
            Event::Stopping => Phase::Stopping,
            Event::Deleting => Phase::Deleting,
            Event::Created | Event::StartFailed | Event::Exited => Phase::Stopped,
            Event::CreateFailed => Phase::Failed,
        }
    })
}

pub(crate) fn notice(record: &InstanceRecord, kind: &'static str, message: String) -> Notice {
    Notice {
        id: record.id,
        name: record.name.to_string(),
        kind,
        message,
        attributes: Vec::new(),
    }
}

fn exit_notice(record: &InstanceRecord, settlement: &Settlement) -> Notice {
    let name = &record.name;
    let text = match &settlement.exit {
        Some(exit) if exit.oom_killed => format!("{name} was ended for want of memory"),
        Some(exit) => format!("{name} ended with exit code {}", exit.code),
        None => format!("{name} was found gone"),
    };
    let mut notice = notice(record, "exited", text);
    if let Some(exit) = &settlement.exit {
        notice.attributes.push(("exit_code", exit.code.to_string()));
        notice
            .attributes
            .push(("oom_killed", exit.oom_killed.to_string()));
    }
    if let Some(at) = settlement.restart_at {
        notice.attributes.push(("restart_at", at.to_string()));
    }
    notice
}
