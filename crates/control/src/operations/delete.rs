//! Deleting an instance: end it, remove its directory, then forget it with all it claimed. Only
//! goes forward; a step that fails is tried again on demand.

use node::{Node, directory, tables};
use store::{Store, Txn};
use workflow::{Context, Finish, Operation, Progress, State, Step, StepError};

use super::InstanceInput;
use crate::{claims, error::joined};

/// Ends the guest and takes back its network.
pub(super) struct EndGuest {
    pub(super) node: Node,
}

impl Step for EndGuest {
    fn name(&self) -> &'static str {
        "end"
    }

    async fn run(&self, ctx: &Context) -> Result<(), StepError> {
        ctx.progress(Progress::message("ending its processes"));
        let input: InstanceInput = ctx.input()?;
        self.node
            .end(input.id)
            .await
            .map_err(|error| StepError::because(&error))
    }

    async fn undo(&self, _ctx: &Context) -> Result<(), StepError> {
        Ok(())
    }
}

/// Removes the instance's directory.
pub(super) struct RemoveDirectory {
    pub(super) node: Node,
}

impl Step for RemoveDirectory {
    fn name(&self) -> &'static str {
        "directory"
    }

    async fn run(&self, ctx: &Context) -> Result<(), StepError> {
        ctx.progress(Progress::message("removing its directory"));
        let input: InstanceInput = ctx.input()?;
        let paths = self.node.parts().paths.clone();
        let removed = tokio::task::spawn_blocking(move || directory::remove(&paths, input.id));
        joined(removed.await).map_err(|error| StepError::because(&error))
    }

    async fn undo(&self, _ctx: &Context) -> Result<(), StepError> {
        Ok(())
    }
}

/// Ends a deletion: the record, its status and its claims are gone at once.
pub(super) struct Gone {
    pub(super) node: Node,
}

impl Finish for Gone {
    async fn finish(
        &self,
        operation: &Operation,
        store: &Store,
        txn: &mut Txn,
    ) -> Result<(), StepError> {
        if operation.state != State::Succeeded {
            return Ok(());
        }
        let input: InstanceInput = serde_json::from_value(operation.input.clone())
            .map_err(|error| StepError::because(&error))?;
        let key = input.id.to_string();
        let Some(entry) = tables::INSTANCES.get(store, &key).await? else {
            return Ok(());
        };
        tables::INSTANCES.delete(txn, &key, entry.revision);
        tables::STATUSES.remove(txn, &key);
        for claim in claims::keys(&entry.value) {
            txn.delete(claim);
        }
        self.node.forget(input.id);
        Ok(())
    }
}
