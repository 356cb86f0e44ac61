//! Waiting until an instance is as asked: woken by the store, never by a timer.

use std::time::Duration;

use api::{ErrorCode, InstanceDetail, Problem, WaitFor};
use model::{
    InstanceId, InstanceStatus, Phase,
    instance::{PowerState, status::Health},
    record::{InstanceRecord, RecordState},
};
use node::tables;

use crate::{Control, error::internal, wire};

impl Control {
    pub(crate) async fn wait(
        &self,
        name: &str,
        wait_for: WaitFor,
        timeout: Duration,
    ) -> Result<InstanceDetail, Problem> {
        let record = self.find(name).await?.value;
        self.wait_until(record.id, timeout, move |record, status| {
            reached(wait_for, record, status)
        })
        .await
    }

    /// Waits until an instance is at the power state wanted, or cannot get there by itself.
    pub(crate) async fn wait_settled(
        &self,
        id: InstanceId,
        timeout: Duration,
    ) -> Result<InstanceDetail, Problem> {
        self.wait_until(id, timeout, |record, status| {
            reached(WaitFor::Settled, record, status)
        })
        .await
    }

    /// Waits, but not for ever, until the node has seen a change: what it means for what runs is
    /// then in force, or the status says why not.
    pub(crate) async fn wait_in_force(
        &self,
        changed: &InstanceRecord,
        timeout: Duration,
    ) -> Result<(), Problem> {
        let generation = changed.generation;
        let seen = self.wait_until(changed.id, timeout, move |record, status| {
            record.is_none_or(|record| record.state != RecordState::Ready)
                || status.is_some_and(|status| status.generation >= generation)
        });
        match seen.await {
            Err(problem) if problem.code != ErrorCode::Timeout => Err(problem),
            _ => Ok(()),
        }
    }

    /// Waits, but not for ever, until the end of a run is recorded, or another has begun.
    pub(crate) async fn wait_ended(&self, id: InstanceId, timeout: Duration) {
        // Whoever waits is told of the end in any case.
        let _ = self
            .wait_until(id, timeout, |record, status| {
                let phase = record.map(|record| wire::phase(record, status));
                phase.is_none_or(|phase| !phase.is_live())
                    || status.is_some_and(|status| status.restart_at.is_some())
            })
            .await;
    }

    async fn wait_until(
        &self,
        id: InstanceId,
        timeout: Duration,
        reached: impl Fn(Option<&InstanceRecord>, Option<&InstanceStatus>) -> bool,
    ) -> Result<InstanceDetail, Problem> {
        // What was last seen of it: an instance may go while its end is waited for.
        let mut last: Option<(InstanceRecord, Option<InstanceStatus>)> = None;
        let waiting = async {
            loop {
                // Watched from before it is read, so that no change falls between.
                let from = self.store().revision().map_err(internal)?;
                let status = self.status(id).await?;
                let record = self.record(id).await?.map(|entry| entry.value);
                let there = reached(record.as_ref(), status.as_ref());
                if let Some(record) = record {
                    last = Some((record, status));
                }
                if there {
                    return Ok(());
                }
                let key = id.to_string();
                self.changed(
                    &tables::STATUSES.key(&key),
                    &tables::INSTANCES.key(&key),
                    from,
                )
                .await?;
            }
        };
        let outcome = tokio::time::timeout(timeout, waiting).await;
        if outcome.is_err() && last.is_none() {
            // There was no time left even for one look.
            let record = self.record(id).await?.map(|entry| entry.value);
            let status = self.status(id).await?;
            last = record.map(|record| (record, status));
        }
        let Some((record, status)) = last else {
            return Err(Problem::not_found("instance", &id.to_string()));
        };
        match outcome {
            Ok(result) => {
                result?;
                let directory = self.node().parts().paths.instance(id);
                Ok(wire::detail(&record, status.as_ref(), &directory))
            }
            Err(_elapsed) => {
                let phase = wire::phase(&record, status.as_ref());
                let text = format!(
                    "after {:.0} s instance {:?} is {phase}, not as asked",
                    timeout.as_secs_f64(),
                    record.name
                );
                Err(Problem::new(ErrorCode::Timeout, text)
                    .hint("it goes on: wait again, or look at berth show and berth logs"))
            }
        }
    }

    /// Waits for a change of either key.
    async fn changed(&self, one: &str, other: &str, from: store::Revision) -> Result<(), Problem> {
        // Missed changes are changes too: whoever waits reads anew.
        let (Ok(mut one), Ok(mut other)) = (
            self.store().watch(one, from),
            self.store().watch(other, from),
        ) else {
            return Ok(());
        };
        let outcome = tokio::select! {
            news = one.next() => news,
            news = other.next() => news,
        };
        match outcome {
            Err(store::WatchError::Closed) => {
                Err(Problem::new(ErrorCode::Internal, "the daemon is stopping"))
            }
            _ => Ok(()),
        }
    }
}

fn reached(
    wait_for: WaitFor,
    record: Option<&InstanceRecord>,
    status: Option<&InstanceStatus>,
) -> bool {
    let Some(record) = record else {
        // What is gone is stopped, and will not become anything else.
        return true;
    };
    let phase = wire::phase(record, status);
    match wait_for {
        WaitFor::Removed => false,
        WaitFor::Settled => settled(record, phase, status),
        WaitFor::Running => phase == Phase::Running,
        WaitFor::Stopped => matches!(phase, Phase::Stopped | Phase::Failed),
        WaitFor::Healthy => status.is_some_and(|status| status.health == Some(Health::Healthy)),
    }
}

fn settled(record: &InstanceRecord, phase: Phase, status: Option<&InstanceStatus>) -> bool {
    match record.state {
        RecordState::Failed { .. } => return true,
        RecordState::Creating | RecordState::Deleting => return false,
        RecordState::Ready => {}
    }
    let Some(status) = status else { return false };
    // A run that is over, or has to wait for its next try, is as far as it gets by itself.
    let ended = status.run >= record.run
        && phase == Phase::Stopped
        && (status.run_over || status.restart_at.is_some());
    match record.desired {
        PowerState::Stopped => phase == Phase::Stopped,
        PowerState::Prepared => ended || matches!(phase, Phase::Prepared | Phase::Running),
        PowerState::Running => ended || (phase == Phase::Running && status.run >= record.run),
        PowerState::Paused => ended || phase == Phase::Paused,
    }
}
