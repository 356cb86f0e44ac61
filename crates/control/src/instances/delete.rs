//! Deleting: one transaction marks the record, an operation gives back what it holds. Also the
//! reaper: instances that go away with their program.

use std::time::Duration;

use api::{ErrorCode, Operation, Problem};
use model::{
    InstanceId, InstanceStatus, Phase,
    instance::PowerState,
    operation::OperationKind,
    record::{InstanceRecord, RecordState},
};
use node::tables;
use store::{CommitError, Txn};

use crate::{Control, error::internal, operations::InstanceInput, wire};

/// Most time an unfinished creation is waited for before what it made is taken away.
const SETTLING: Duration = Duration::from_secs(60);

impl Control {
    pub(crate) async fn delete(
        &self,
        name: &str,
        force: bool,
        wait: Option<Duration>,
    ) -> Result<Operation, Problem> {
        let id = self.find(name).await?.value.id;
        let operation = loop {
            let Some(entry) = self.record(id).await? else {
                return Err(Problem::not_found("instance", name));
            };
            let record = entry.value;
            self.check_deletable(&record, force).await?;
            if record.state == RecordState::Deleting {
                break self.deletion_of(&record).await?;
            }
            if let Some(operation) = self.commit_delete(record, entry.revision).await? {
                break operation;
            }
        };
        let Some(wait) = wait else {
            return self.operation(operation).await;
        };
        // Whether it took longer than the caller waits shows in its state.
        let _ = tokio::time::timeout(wait, self.workflow().wait(operation)).await;
        let ended = self.operation(operation).await?;
        match ended.error {
            Some(error) if ended.state.is_final() => {
                let text = format!("instance {name:?} could not be deleted: {error}");
                Err(Problem::new(ErrorCode::Failed, text).hint(format!(
                    "when the cause is gone: berth op retry {}",
                    ended.id
                )))
            }
            _ => Ok(ended),
        }
    }

    async fn check_deletable(&self, record: &InstanceRecord, force: bool) -> Result<(), Problem> {
        let name = &record.name;
        if record.state == RecordState::Creating {
            let text = format!("instance {name:?} is still being created");
            return Err(Problem::new(ErrorCode::Conflict, text)
                .hint("cancel that first: berth op list, then berth op cancel"));
        }
        let status = self.status(record.id).await?;
        let phase = wire::phase(record, status.as_ref());
        if phase.is_live() && !force {
            let text = format!("instance {name:?} is {phase}");
            return Err(Problem::new(ErrorCode::Conflict, text)
                .hint(format!("stop it first, or: berth rm --force {name}")));
        }
        Ok(())
    }

    /// Marks a record and logs the operation; `None` when the record changed meanwhile.
    async fn commit_delete(
        &self,
        mut record: InstanceRecord,
        revision: store::Revision,
    ) -> Result<Option<workflow::OperationId>, Problem> {
        record.state = RecordState::Deleting;
        record.generation += 1;
        let key = record.id.to_string();
        let planned = self
            .workflow()
            .plan(
                OperationKind::InstanceDelete.as_str(),
                &InstanceInput {
                    id: record.id,
                    name: record.name.to_string(),
                },
                [
                    format!("instances/{}", record.name),
                    format!("ids/{}", record.id),
                ],
            )
            .map_err(internal)?;
        let mut txn = Txn::new();
        tables::INSTANCES
            .update(&mut txn, &key, revision, &record)
            .map_err(internal)?;
        txn.append(planned.txn.clone());
        match self.store().commit(txn).await {
            Ok(_) => {
                self.workflow()
                    .launch(planned.operation.id)
                    .await
                    .map_err(internal)?;
                Ok(Some(planned.operation.id))
            }
            Err(error) => {
                self.workflow().discard(&planned);
                match error {
                    CommitError::Conflict { .. } => Ok(None),
                    error => Err(internal(error)),
                }
            }
        }
    }

    /// The operation that is deleting an instance; a failed one is tried again.
    async fn deletion_of(&self, record: &InstanceRecord) -> Result<workflow::OperationId, Problem> {
        let resource = format!("ids/{}", record.id);
        let operations = self
            .workflow()
            .list(Some(&resource))
            .await
            .map_err(internal)?;
        let kind = OperationKind::InstanceDelete.as_str();
        let deletion = operations
            .into_iter()
            .rev()
            .find(|operation| operation.kind == kind);
        let Some(deletion) = deletion else {
            let text = format!("instance {:?} is being deleted by nobody", record.name);
            return Err(Problem::new(ErrorCode::Internal, text).hint("restart the daemon"));
        };
        if deletion.state.is_retriable() {
            self.workflow().retry(deletion.id).await.map_err(internal)?;
        }
        Ok(deletion.id)
    }

    /// Deletes an instance if it goes away with its program and the program has ended.
    pub(crate) async fn reap(&self, id: InstanceId) {
        let Ok(Some(entry)) = self.record(id).await else {
            return;
        };
        let Ok(status) = self.status(id).await else {
            return;
        };
        if !is_over(&entry.value, status.as_ref()) {
            return;
        }
        let name = entry.value.name.clone();
        if let Err(problem) = self.commit_delete(entry.value, entry.revision).await {
            tracing::error!(instance = %name, %problem, "an ended instance is not removed");
        }
    }

    /// As [`Control::reap`], for all.
    pub(crate) async fn reap_all(&self) {
        let Ok(all) = self.all().await else { return };
        for (record, status) in all {
            if is_over(&record, status.as_deref()) {
                self.reap(record.id).await;
            }
        }
    }

    /// At a start: deletes what a foreground run prepared and never began. Who was to attach to it
    /// lost its connection with the daemon of before, and it was to go away with its program.
    pub(crate) async fn reap_abandoned(&self) {
        let Ok(all) = self.all().await else { return };
        for (record, _) in all {
            if is_waiting(&record) {
                let control = self.clone();
                tokio::spawn(async move { control.reap_unbegun(record.id).await });
            }
        }
    }

    async fn reap_unbegun(&self, id: InstanceId) {
        // One that was being created is so now, too.
        let _ = self.wait_settled(id, SETTLING).await;
        let Ok(Some(entry)) = self.record(id).await else {
            return;
        };
        // Not if somebody found and started it after all.
        if is_waiting(&entry.value) && entry.value.state == RecordState::Ready {
            let name = entry.value.name.clone();
            tracing::info!(instance = %name, "removing what was prepared for a run that never began");
            if let Err(problem) = self.commit_delete(entry.value, entry.revision).await {
                tracing::error!(instance = %name, %problem, "it is not removed");
            }
        }
    }
}

fn is_waiting(record: &InstanceRecord) -> bool {
    record.spec.remove_on_exit && record.desired == PowerState::Prepared
}

fn is_over(record: &InstanceRecord, status: Option<&InstanceStatus>) -> bool {
    record.spec.remove_on_exit
        && record.state == RecordState::Ready
        && status.is_some_and(|status| {
            status.run_over && status.run >= record.run && status.phase == Phase::Stopped
        })
}
