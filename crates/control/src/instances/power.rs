//! Power: a request changes what is wanted; the node brings it about.

use std::time::Duration;

use api::{ErrorCode, InstanceDetail, Problem, StopRequest};
use model::{
    InstanceStatus, Phase,
    instance::{PowerState, spec::signal_number},
    record::{InstanceRecord, RecordState},
};
use node::tables;
use store::{CommitError, Txn};

use crate::{
    Control,
    error::{from_engine, internal, wrong_field},
    wire,
};

/// Attempts to change a record that others change too.
const ATTEMPTS: u32 = 16;

impl Control {
    pub(crate) async fn start(
        &self,
        name: &str,
        wait: Option<Duration>,
    ) -> Result<InstanceDetail, Problem> {
        self.power(name, wait, |record, status| {
            let live = status
                .is_some_and(|status| status.phase.is_live() && status.phase != Phase::Stopping);
            if record.desired != PowerState::Running || !live {
                // What is prepared or frozen goes on with its run; all else begins another.
                record.run += u64::from(!live);
                record.desired = PowerState::Running;
            }
            Ok(())
        })
        .await
    }

    pub(crate) async fn stop(
        &self,
        name: &str,
        request: StopRequest,
        wait: Option<Duration>,
    ) -> Result<InstanceDetail, Problem> {
        self.power(name, wait, |record, _| {
            record.desired = PowerState::Stopped;
            record.stop_now = request.force;
            Ok(())
        })
        .await
    }

    pub(crate) async fn restart(
        &self,
        name: &str,
        request: StopRequest,
        wait: Option<Duration>,
    ) -> Result<InstanceDetail, Problem> {
        self.power(name, wait, |record, _| {
            record.desired = PowerState::Running;
            record.run += 1;
            record.stop_now = request.force;
            Ok(())
        })
        .await
    }

    pub(crate) async fn pause(
        &self,
        name: &str,
        pause: bool,
        wait: Option<Duration>,
    ) -> Result<InstanceDetail, Problem> {
        let capable = self.engine().capabilities().pause;
        self.power(name, wait, |record, status| {
            let phase = wire::phase(record, status);
            let (from, to) = match pause {
                true => ([Phase::Running, Phase::Paused], PowerState::Paused),
                false => ([Phase::Paused, Phase::Running], PowerState::Running),
            };
            if !capable {
                let text = "instances cannot be paused on this host: it has no freezer";
                return Err(Problem::new(ErrorCode::Unsupported, text));
            }
            if !from.contains(&phase) {
                let text = format!("instance {:?} is {phase}, not {}", record.name, from[0]);
                return Err(Problem::new(ErrorCode::Conflict, text));
            }
            record.desired = to;
            Ok(())
        })
        .await
    }

    pub(crate) async fn signal(&self, name: &str, signal: &str) -> Result<(), Problem> {
        let number = signal_number(signal)
            .ok_or_else(|| wrong_field("signal", format!("{signal:?} is not a signal")))?;
        let record = self.find(name).await?.value;
        let status = self.status(record.id).await?;
        let phase = wire::phase(&record, status.as_ref());
        if !phase.is_live() {
            let text = format!("instance {name:?} is {phase}");
            return Err(Problem::new(ErrorCode::Conflict, text));
        }
        let sent = self.engine().signal(record.id, number).await;
        sent.map_err(|error| from_engine(name, error))
    }

    async fn power(
        &self,
        name: &str,
        wait: Option<Duration>,
        change: impl Fn(&mut InstanceRecord, Option<&InstanceStatus>) -> Result<(), Problem>,
    ) -> Result<InstanceDetail, Problem> {
        let record = self.change(name, None, change).await?;
        match wait {
            Some(wait) => self.wait_settled(record.id, wait).await,
            None => self.detail(&record).await,
        }
    }

    /// Changes a record that is ready, as a new generation; again when another changed it
    /// meanwhile. A change that changes nothing is no new generation.
    pub(crate) async fn change(
        &self,
        name: &str,
        seen: Option<u64>,
        change: impl Fn(&mut InstanceRecord, Option<&InstanceStatus>) -> Result<(), Problem>,
    ) -> Result<InstanceRecord, Problem> {
        for _ in 0..ATTEMPTS {
            let entry = self.find(name).await?;
            let before = entry.value;
            usable(&before)?;
            if seen.is_some_and(|seen| seen != before.generation) {
                let text = format!(
                    "instance {name:?} was changed meanwhile: it is at generation {}",
                    before.generation
                );
                let hint = "look at it again and repeat the change";
                return Err(Problem::new(ErrorCode::Conflict, text).hint(hint));
            }
            let status = self.status(before.id).await?;
            let mut record = before.clone();
            change(&mut record, status.as_ref())?;
            if record == before {
                return Ok(record);
            }
            record.generation += 1;
            let mut txn = Txn::new();
            let key = record.id.to_string();
            tables::INSTANCES
                .update(&mut txn, &key, entry.revision, &record)
                .map_err(internal)?;
            match self.store().commit(txn).await {
                Ok(_) => {
                    self.node().kick(record.id);
                    return Ok(record);
                }
                Err(CommitError::Conflict { .. }) => {}
                Err(error) => return Err(internal(error)),
            }
        }
        Err(Problem::new(
            ErrorCode::Conflict,
            format!("instance {name:?} is changed all the time"),
        ))
    }
}

/// Refuses a record that an operation works on.
pub(crate) fn usable(record: &InstanceRecord) -> Result<(), Problem> {
    let name = &record.name;
    let (text, hint) = match &record.state {
        RecordState::Ready => return Ok(()),
        RecordState::Creating => (
            format!("instance {name:?} is still being created"),
            format!("wait for it: berth wait {name}"),
        ),
        RecordState::Failed { message } => (
            format!("instance {name:?} could not be created: {message}"),
            format!("delete it: berth rm {name}"),
        ),
        RecordState::Deleting => (
            format!("instance {name:?} is being deleted"),
            "berth op list shows how far".to_owned(),
        ),
    };
    Err(Problem::new(ErrorCode::Conflict, text).hint(hint))
}
