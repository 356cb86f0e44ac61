//! Creating an instance: its image, its directory; then the record is ready, or gone with all it
//! claimed.

use std::net::IpAddr;

use model::record::{InstanceRecord, RecordState};
use node::{Node, directory, tables};
use store::{Entry, Store, Txn};
use workflow::{Context, Finish, Operation, Progress, State, Step, StepError};

use super::{
    InstanceInput,
    images::{self, Transfer},
};
use crate::{claims, error::joined};

/// Times an image is fetched that others remove at once.
const ATTEMPTS: u32 = 3;

/// Finds the image, fetching it when it is not here, and pins it in the record.
pub(super) struct FindImage {
    pub(super) transfer: Transfer,
}

impl Step for FindImage {
    fn name(&self) -> &'static str {
        "image"
    }

    async fn run(&self, ctx: &Context) -> Result<(), StepError> {
        let input: InstanceInput = ctx.input()?;
        for _ in 0..ATTEMPTS {
            if self.pin(&input).await? {
                return Ok(());
            }
            let entry = creating(&self.transfer.node.parts().store, &input).await?;
            self.transfer
                .pull(ctx, &entry.value.spec.image, None, None)
                .await?;
        }
        Err(StepError::permanent(
            "the image was removed each time it had been fetched; try again",
        ))
    }

    async fn undo(&self, _ctx: &Context) -> Result<(), StepError> {
        // The image stays: it is a cache, and the collection takes what nobody names.
        Ok(())
    }
}

impl FindImage {
    /// Writes the image's digest into the record; `false` when the image is not here.
    async fn pin(&self, input: &InstanceInput) -> Result<bool, StepError> {
        // No collection runs between finding the image and naming it in the record.
        let _using = self.transfer.collection.read().await;
        let store = &self.transfer.node.parts().store;
        let entry = creating(store, input).await?;
        let mut record = entry.value;
        if record.image_digest.is_some() {
            return Ok(true);
        }
        let digest = match self
            .transfer
            .node
            .parts()
            .images
            .resolve(&record.spec.image)
        {
            Ok(digest) => digest,
            Err(image::StoreError::NotFound(_)) => return Ok(false),
            Err(error) => return Err(StepError::because(&error)),
        };
        record.image_digest = Some(digest.to_string());
        // Not waited for: the transaction that ends the operation carries it to the disk.
        let mut txn = Txn::relaxed();
        let key = record.id.to_string();
        tables::INSTANCES.update(&mut txn, &key, entry.revision, &record)?;
        store.commit(txn).await?;
        Ok(true)
    }
}

/// Makes the instance's directory.
pub(super) struct MakeDirectory {
    pub(super) node: Node,
}

impl Step for MakeDirectory {
    fn name(&self) -> &'static str {
        "directory"
    }

    async fn run(&self, ctx: &Context) -> Result<(), StepError> {
        ctx.progress(Progress::message("making its directory"));
        let input: InstanceInput = ctx.input()?;
        let store = &self.node.parts().store;
        // What the directory says is what the record will say when all is done.
        let record = ready(creating(store, &input).await?.value);
        let nameservers = nameservers(store, &record).await?;
        let paths = self.node.parts().paths.clone();
        let made =
            tokio::task::spawn_blocking(move || directory::make(&paths, &record, &nameservers));
        joined(made.await).map_err(|error| StepError::because(&error))
    }

    async fn undo(&self, ctx: &Context) -> Result<(), StepError> {
        let input: InstanceInput = ctx.input()?;
        let paths = self.node.parts().paths.clone();
        let removed = tokio::task::spawn_blocking(move || directory::remove(&paths, input.id));
        joined(removed.await).map_err(|error| StepError::because(&error))
    }
}

/// Refuses an image that does not fit, and makes what only a virtual machine needs: its kernel, unless an
/// earlier one did or its disk has one, and its disk.
pub(super) struct MakeMachine {
    pub(super) node: Node,
}

impl Step for MakeMachine {
    fn name(&self) -> &'static str {
        "machine"
    }

    async fn run(&self, ctx: &Context) -> Result<(), StepError> {
        let input: InstanceInput = ctx.input()?;
        let record = creating(&self.node.parts().store, &input).await?.value;
        let is_machine = record.spec.machine.is_some();
        if is_machine {
            ctx.progress(Progress::message("making its kernel and its disk"));
        }
        let (job, news) = images::job();
        let making = async {
            self.node.prepare_boot(&record, job.clone()).await?;
            match is_machine {
                true => self.node.make_disk(&record, job.clone()).await,
                false => Ok(()),
            }
        };
        match news.follow(ctx, making, &job).await {
            Ok(()) => Ok(()),
            Err(_) if job.cancel_token().is_cancelled() => Err(StepError::Cancelled),
            Err(error) => Err(StepError::because(&error)),
        }
    }

    async fn undo(&self, _ctx: &Context) -> Result<(), StepError> {
        // The kernel is for all; the disk goes with the directory.
        Ok(())
    }
}

/// Ends a creation: the record is ready and the node takes over, or all claims are given back.
pub(super) struct Ready {
    pub(super) node: Node,
}

impl Finish for Ready {
    async fn finish(
        &self,
        operation: &Operation,
        store: &Store,
        txn: &mut Txn,
    ) -> Result<(), StepError> {
        let input: InstanceInput = serde_json::from_value(operation.input.clone())
            .map_err(|error| StepError::because(&error))?;
        let key = input.id.to_string();
        let Some(entry) = tables::INSTANCES.get(store, &key).await? else {
            return Ok(());
        };
        if entry.value.state != RecordState::Creating {
            return Ok(());
        }
        match operation.state {
            State::Succeeded => {
                tables::INSTANCES.update(txn, &key, entry.revision, &ready(entry.value))?;
            }
            State::Undone | State::Cancelled => {
                tables::INSTANCES.delete(txn, &key, entry.revision);
                tables::STATUSES.remove(txn, &key);
                for claim in claims::keys(&entry.value) {
                    txn.delete(claim);
                }
                self.node.forget(input.id);
            }
            _ => {
                let failure = operation.stuck.as_ref().or(operation.error.as_ref());
                let message = failure.map_or_else(String::new, |failure| failure.message.clone());
                let record = InstanceRecord {
                    state: RecordState::Failed { message },
                    ..entry.value
                };
                tables::INSTANCES.update(txn, &key, entry.revision, &record)?;
            }
        }
        Ok(())
    }
}

fn ready(record: InstanceRecord) -> InstanceRecord {
    InstanceRecord {
        state: RecordState::Ready,
        ..record
    }
}

async fn creating(
    store: &Store,
    input: &InstanceInput,
) -> Result<Entry<InstanceRecord>, StepError> {
    let entry = tables::INSTANCES.get(store, &input.id.to_string()).await?;
    entry.ok_or_else(|| {
        StepError::permanent(format!(
            "the record of {:?} is gone; create it again",
            input.name
        ))
    })
}

async fn nameservers(store: &Store, record: &InstanceRecord) -> Result<Vec<IpAddr>, StepError> {
    let Some(lease) = &record.lease else {
        return Ok(Vec::new());
    };
    let network = tables::NETWORKS.get(store, lease.network.as_str()).await?;
    Ok(network
        .map(|entry| node::gateways(&entry.value))
        .unwrap_or_default())
}
