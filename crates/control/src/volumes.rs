//! Volumes: records in the store, content in the pool.

use std::sync::Arc;

use api::{ErrorCode, Problem, Volume, VolumeCreate};
use model::{
    ByteSize, Name,
    instance::{InstanceSpec, MountSource},
    record::VolumeRecord,
    volume::VolumeSpec,
};
use node::{clock, tables};
use store::{CommitError, Txn};
use volume::{Enforcement, Kind, Pool, VolumeError, VolumeId};

use crate::{
    Control,
    error::{internal, joined, wrong_field},
};

impl Control {
    pub(crate) async fn volumes(&self) -> Result<Vec<Volume>, Problem> {
        let all = tables::VOLUMES.list(self.store()).await.map_err(internal)?;
        let mut shown = Vec::new();
        for entry in all.entries {
            shown.push(self.shown_volume(&entry.value, false).await?);
        }
        Ok(shown)
    }

    pub(crate) async fn volume(&self, name: &str) -> Result<Volume, Problem> {
        let record = tables::VOLUMES
            .get(self.store(), name)
            .await
            .map_err(internal)?;
        let record = record.ok_or_else(|| unknown(name))?.value;
        self.shown_volume(&record, true).await
    }

    pub(crate) async fn new_volume(&self, request: VolumeCreate) -> Result<Volume, Problem> {
        let name: Name = request
            .name
            .parse()
            .map_err(|error: model::name::InvalidName| wrong_field("name", error.to_string()))?;
        let size = match request.size.as_deref().map(str::parse::<ByteSize>) {
            Some(Err(error)) => return Err(wrong_field("size", error.to_string())),
            Some(Ok(size)) => Some(size),
            None => None,
        };
        let record = VolumeRecord {
            name: name.clone(),
            spec: VolumeSpec {
                size,
                labels: request.labels,
            },
            created_at: clock::now(),
        };
        let mut txn = Txn::new();
        tables::VOLUMES
            .insert(&mut txn, name.as_str(), &record)
            .map_err(internal)?;
        match self.store().commit(txn).await {
            Ok(_) => {}
            Err(CommitError::Conflict { .. }) => {
                let text = format!("there is already a volume {name:?}");
                return Err(Problem::new(ErrorCode::Conflict, text));
            }
            Err(error) => return Err(internal(error)),
        }
        // Recorded first: what a crash leaves unmade is made at first use.
        let spec = volume::VolumeSpec {
            size_bytes: size.map(|size| size.0),
            uid: 0,
            gid: 0,
            mode: 0o755,
        };
        self.in_pool(name.as_str(), move |pool, id| pool.ensure(id, &spec))
            .await?;
        self.inner
            .events
            .tell("volume.created", format!("volumes/{name}"), "made", []);
        self.shown_volume(&record, false).await
    }

    pub(crate) async fn remove_volume(&self, name: &str) -> Result<(), Problem> {
        let entry = tables::VOLUMES
            .get(self.store(), name)
            .await
            .map_err(internal)?;
        let entry = entry.ok_or_else(|| unknown(name))?;
        if let Some(user) = self.users_of_volume(name).await?.first() {
            let text = format!("volume {name:?} is used by instance {user:?}");
            return Err(Problem::new(ErrorCode::Conflict, text)
                .hint("delete the instances that mount it first; berth volume show lists them"));
        }
        // Content goes first: a crash in between leaves a record of an empty volume, not content
        // without a record.
        self.in_pool(name, |pool, id| pool.remove(id)).await?;
        let mut txn = Txn::new();
        tables::VOLUMES.delete(&mut txn, name, entry.revision);
        self.store().commit(txn).await.map_err(internal)?;
        self.inner
            .events
            .tell("volume.removed", format!("volumes/{name}"), "removed", []);
        Ok(())
    }

    async fn shown_volume(&self, record: &VolumeRecord, measure: bool) -> Result<Volume, Problem> {
        let name = record.name.as_str();
        let info = self.in_pool(name, |pool, id| pool.info(id)).await?;
        let used = match (&info, measure) {
            (Some(_), true) => Some(self.in_pool(name, |pool, id| pool.usage(id)).await?.bytes),
            _ => None,
        };
        let quota = match info.as_ref().map(|info| &info.quota) {
            Some(Enforcement::Enforced) => "enforced",
            Some(Enforcement::Unsupported { .. }) => "unsupported",
            Some(Enforcement::Unlimited) | None => "none",
        };
        Ok(Volume {
            name: name.to_owned(),
            path: info
                .map(|info| info.path.display().to_string())
                .unwrap_or_default(),
            size_bytes: record.spec.size.map(|size| size.0),
            used_bytes: used,
            quota: quota.to_owned(),
            instances: self.users_of_volume(name).await?,
            labels: record.spec.labels.clone(),
            created_at: record.created_at.to_string(),
        })
    }

    async fn users_of_volume(&self, name: &str) -> Result<Vec<String>, Problem> {
        let mounts = |spec: &InstanceSpec| {
            spec.mounts.iter().any(|mount| {
                matches!(&mount.source, MountSource::Volume { name: other } if other.as_str() == name)
            })
        };
        let all = self.all().await?;
        let users = all.iter().filter(|(record, _)| mounts(&record.spec));
        Ok(users.map(|(record, _)| record.name.to_string()).collect())
    }

    async fn in_pool<T: Send + 'static>(
        &self,
        name: &str,
        work: impl FnOnce(&dyn Pool, &VolumeId) -> Result<T, VolumeError> + Send + 'static,
    ) -> Result<T, Problem> {
        let id = VolumeId::new(Kind::Named, name)
            .map_err(|error| wrong_field("name", error.to_string()))?;
        let pool = Arc::clone(&self.node().parts().volumes);
        joined(tokio::task::spawn_blocking(move || work(&*pool, &id)).await).map_err(|error| {
            match error {
                error @ (VolumeError::TooSmall { .. } | VolumeError::Refused { .. }) => {
                    Problem::new(ErrorCode::Conflict, error.to_string())
                }
                error => internal(error),
            }
        })
    }
}

fn unknown(name: &str) -> Problem {
    Problem::not_found("volume", name).hint("berth volume list shows what there is")
}
