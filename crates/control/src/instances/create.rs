//! A new instance: checked, claimed and logged in one transaction; acquired by an operation.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use api::{ErrorCode, InstanceCreate, InstanceDetail, Problem};
use model::{
    InstanceId, InstanceSpec, InstanceStatus, Name,
    instance::{MountSource, NetworkMode, PowerState},
    operation::OperationKind,
    record::{InstanceRecord, NetworkRecord, RecordState, VolumeRecord},
    volume::VolumeSpec,
};
use node::{clock, tables};
use rand::TryRngCore;
use store::{CommitError, Txn};
use tokio::sync::MutexGuard;
use uuid::Uuid;

use crate::{
    Control, claims,
    error::{internal, invalid, wrong_field},
    operations::InstanceInput,
    wire::from_wire,
};

/// Names tried when nobody chose one, and transactions that met another's claim.
const ATTEMPTS: u32 = 8;

impl Control {
    pub(crate) async fn create(
        &self,
        request: InstanceCreate,
        wait: Option<Duration>,
    ) -> Result<InstanceDetail, Problem> {
        let spec = from_wire(&request.spec).map_err(|wrong| invalid("the instance", wrong))?;
        crate::operations::reference(&spec.image)
            .map_err(|error| wrong_field("image", error.to_string()))?;
        let desired = desired(request.desired.as_deref())?;
        let name: Option<Name> = match &request.name {
            Some(text) => {
                let name = text.parse();
                Some(name.map_err(|error: model::name::InvalidName| {
                    wrong_field("name", error.to_string())
                })?)
            }
            None => None,
        };
        let (network, asked, note) = self.network_of(&spec).await?;
        for attempt in 0..ATTEMPTS {
            let name = match &name {
                Some(name) => name.clone(),
                None => model::name::from_random(random(), attempt),
            };
            let record = new_record(name.clone(), spec.clone(), desired);
            match self.commit_new(record, network.as_ref(), asked).await? {
                Ok((record, operation)) => {
                    let mut made = self.begin(record, operation, wait).await?;
                    made.notes.extend(note);
                    return Ok(made);
                }
                Err(key) if retriable(&key, &request) => {}
                Err(key) => return Err(claims::conflict(&key)),
            }
        }
        Err(
            Problem::new(ErrorCode::Conflict, "no free name or address was found")
                .hint("give the instance a --name"),
        )
    }

    /// Commits a new record with its claims and its operation; the key in the way if it conflicts.
    async fn commit_new(
        &self,
        mut record: InstanceRecord,
        network: Option<&NetworkRecord>,
        asked: Option<IpAddr>,
    ) -> Result<Result<(InstanceRecord, workflow::OperationId), String>, Problem> {
        let _turn = self.turn_at_ports(&record).await?;
        let mut txn = Txn::new();
        let claimed = self
            .inner
            .claims
            .claim(&mut record, network, asked, &mut txn);
        if let Err(problem) = claimed {
            self.inner.claims.discard(&record);
            return Err(problem);
        }
        let key = record.id.to_string();
        let volumes = self.missing_volumes(&record.spec).await?;
        let planned = self
            .workflow()
            .plan(
                OperationKind::InstanceCreate.as_str(),
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
        let mut fill = || -> Result<(), store::TableError> {
            tables::INSTANCES.insert(&mut txn, &key, &record)?;
            tables::STATUSES.put(&mut txn, &key, &InstanceStatus::new(record.generation))?;
            for (name, volume) in &volumes {
                tables::VOLUMES.put(&mut txn, name, volume)?;
            }
            if let Some(network) = network {
                // Not if the network is deleted just now.
                txn.expect_present(tables::NETWORKS.key(network.name.as_str()));
            }
            Ok(())
        };
        fill().map_err(internal)?;
        txn.append(planned.txn.clone());
        match self.store().commit(txn).await {
            Ok(_) => Ok(Ok((record, planned.operation.id))),
            Err(error) => {
                self.workflow().discard(&planned);
                self.inner.claims.discard(&record);
                match error {
                    CommitError::Conflict { key, .. } => Ok(Err(key)),
                    error => Err(internal(error)),
                }
            }
        }
    }

    /// The turn at claiming ports of the host, with those of `record` known to be free: neither
    /// published at an address in common, nor a program's of the host itself.
    async fn turn_at_ports(
        &self,
        record: &InstanceRecord,
    ) -> Result<Option<MutexGuard<'_, ()>>, Problem> {
        let ports = &record.spec.ports;
        if ports.is_empty() {
            return Ok(None);
        }
        let turn = self.inner.ports.lock().await;
        let name = tables::NAMES.get(self.store(), record.name.as_str());
        if name.await.map_err(internal)?.is_some() {
            // Of the two, the commit had better complain of the name.
            return Ok(Some(turn));
        }
        for port in ports {
            if let Some(key) = claims::published(self.store(), port)
                .await
                .map_err(internal)?
            {
                return Err(claims::conflict(&key));
            }
        }
        match self.node().parts().wiring.port_in_use(ports).await {
            Ok(None) => {}
            Ok(Some((port, at))) => return Err(claims::in_use(&port, at)),
            Err(error) => tracing::warn!(error = %error.chain(), "published all the same"),
        }
        Ok(Some(turn))
    }

    /// Named volumes of a spec that do not exist yet: first use makes them.
    async fn missing_volumes(
        &self,
        spec: &InstanceSpec,
    ) -> Result<BTreeMap<String, VolumeRecord>, Problem> {
        let mut missing = BTreeMap::new();
        for mount in &spec.mounts {
            let MountSource::Volume { name } = &mount.source else {
                continue;
            };
            let found = tables::VOLUMES
                .get(self.store(), name.as_str())
                .await
                .map_err(internal)?;
            if found.is_none() {
                let record = VolumeRecord {
                    name: name.clone(),
                    spec: VolumeSpec::default(),
                    created_at: clock::now(),
                };
                missing.insert(name.to_string(), record);
            }
        }
        Ok(missing)
    }

    /// The network a spec names; the default one is made at first use.
    async fn network_of(
        &self,
        spec: &InstanceSpec,
    ) -> Result<(Option<NetworkRecord>, Option<IpAddr>, Option<String>), Problem> {
        let NetworkMode::Network { name, address } = &spec.network else {
            return Ok((None, None, None));
        };
        let (record, note) = self.network_or_default(name).await?;
        let here = |address: IpAddr| match address {
            IpAddr::V4(address) => record.spec.ipv4.is_some_and(|net| net.contains(address)),
            IpAddr::V6(address) => record.spec.ipv6.is_some_and(|net| net.contains(address)),
        };
        if let Some(address) = address.filter(|address| !here(*address)) {
            let text = format!("{address} is not an address of the network {name:?}");
            return Err(wrong_field("address", text));
        }
        Ok((Some(record), *address, note))
    }

    async fn begin(
        &self,
        record: InstanceRecord,
        operation: workflow::OperationId,
        wait: Option<Duration>,
    ) -> Result<InstanceDetail, Problem> {
        self.workflow().launch(operation).await.map_err(internal)?;
        let resource = format!("instances/{}", record.name);
        self.inner
            .events
            .tell("instance.created", &resource, "asked for", []);
        let Some(wait) = wait else {
            return self.detail(&record).await;
        };
        let begun = tokio::time::Instant::now();
        let ended = tokio::time::timeout(wait, self.workflow().wait(operation)).await;
        let Ok(ended) = ended else {
            return self.detail(&record).await;
        };
        let ended = ended.map_err(internal)?;
        if !ended.state.is_final() {
            // This daemon stops, and the next one goes on with it.
            return self.detail(&record).await;
        }
        if ended.state != workflow::State::Succeeded {
            let failure = ended.stuck.or(ended.error);
            let text = failure.map_or_else(|| "it was cancelled".to_owned(), |why| why.message);
            let code = match ended.state {
                workflow::State::Cancelled => ErrorCode::Cancelled,
                _ => ErrorCode::Failed,
            };
            let text = format!("instance {:?} could not be created: {text}", record.name);
            return Err(Problem::new(code, text));
        }
        let settled = self.wait_settled(record.id, wait.saturating_sub(begun.elapsed()));
        match settled.await {
            // It is made, and on its way: whoever did not want to wait longer is told how far it is.
            Err(problem) if problem.code == ErrorCode::Timeout => self.detail(&record).await,
            settled => settled,
        }
    }
}

fn desired(text: Option<&str>) -> Result<PowerState, Problem> {
    match text {
        None | Some("running") => Ok(PowerState::Running),
        Some("prepared") => Ok(PowerState::Prepared),
        Some("stopped") => Ok(PowerState::Stopped),
        Some(other) => Err(wrong_field(
            "desired",
            format!("{other:?} is none of running, prepared, stopped"),
        )),
    }
}

fn new_record(name: Name, spec: InstanceSpec, desired: PowerState) -> InstanceRecord {
    InstanceRecord {
        id: InstanceId::from_uuid(Uuid::now_v7()),
        name,
        generation: 1,
        spec,
        desired,
        stop_now: false,
        run: u64::from(desired != PowerState::Stopped),
        state: RecordState::Creating,
        image_digest: None,
        lease: None,
        idmap: None,
        created_at: clock::now(),
    }
}

/// Whether another attempt may get past the key in the way: one that nobody chose.
fn retriable(key: &str, request: &InstanceCreate) -> bool {
    let name = key.starts_with(tables::NAMES.prefix());
    let address = key.starts_with(tables::ADDRESSES.prefix());
    (name && request.name.is_none())
        || (address && request.spec.address.is_none())
        || key.starts_with(tables::IDMAPS.prefix())
}

fn random() -> u64 {
    rand::rngs::OsRng.try_next_u64().unwrap_or_else(|_| {
        // Without the kernel's randomness any spread will do: it only makes a name.
        u64::from(std::process::id()) ^ clock::now().as_millis()
    })
}
