//! Records rebuilt from the instances' directories: for a database that is lost, and for
//! directories that were copied here.

use model::{
    Name,
    instance::{MountSource, PowerState},
    network::NetworkSpec,
    record::{InstanceRecord, NetworkRecord, VolumeRecord},
    volume::VolumeSpec,
};
use node::{Paths, clock, directory, tables};
use store::{CommitError, Store, Txn};

use crate::claims;

/// What a recovery did.
#[derive(Debug, Default)]
pub struct Recovered {
    /// Instances that are recorded again, stopped.
    pub instances: Vec<String>,
    /// Instances that were recorded all along.
    pub known: usize,
    /// Networks that are recorded again, with the subnets their instances' addresses lie in.
    pub networks: Vec<String>,
    /// Directories that could not be used, and why.
    pub unusable: Vec<(String, String)>,
}

/// Why nothing could be recovered.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    /// The directories cannot be read.
    #[error(transparent)]
    Node(#[from] node::NodeError),
    /// The store cannot be read.
    #[error(transparent)]
    Table(#[from] store::TableError),
    /// The store cannot be written.
    #[error(transparent)]
    Commit(#[from] CommitError),
}

/// Records every instance whose directory is there and that is not recorded. Run while no daemon
/// has the store. Idempotent.
///
/// # Errors
/// When directories or store cannot be read or written; what was recovered stays.
pub async fn recover(paths: &Paths, store: &Store) -> Result<Recovered, RecoverError> {
    let mut done = Recovered::default();
    let found = directory::scan(paths)?;
    for (path, reason) in found.unusable {
        done.unusable.push((path.display().to_string(), reason));
    }
    for record in found.records {
        if tables::INSTANCES
            .get(store, &record.id.to_string())
            .await?
            .is_some()
        {
            done.known += 1;
            continue;
        }
        if let Some(network) = recover_network(&record, store).await? {
            done.networks.push(network);
        }
        recover_volumes(&record, store).await?;
        match recover_instance(&record, store).await? {
            None => done.instances.push(record.name.to_string()),
            Some(key) => {
                let path = paths.instance(record.id).display().to_string();
                done.unusable
                    .push((path, format!("another instance holds {key}")));
            }
        }
    }
    Ok(done)
}

/// Records one instance, stopped; the key in the way if another holds one of its claims.
async fn recover_instance(
    record: &InstanceRecord,
    store: &Store,
) -> Result<Option<String>, RecoverError> {
    let mut record = record.clone();
    // Whether it should run is for its user to say: the host it comes from may still run it.
    record.desired = PowerState::Stopped;
    record.generation += 1;
    let mut txn = Txn::new();
    claims::reclaim(&record, &mut txn)?;
    tables::INSTANCES.insert(&mut txn, &record.id.to_string(), &record)?;
    match store.commit(txn).await {
        Ok(_) => Ok(None),
        Err(CommitError::Conflict { key, .. }) => Ok(Some(key)),
        Err(error) => Err(error.into()),
    }
}

/// Records the network of an instance if it is unknown: one as long as a default one around its addresses.
async fn recover_network(
    record: &InstanceRecord,
    store: &Store,
) -> Result<Option<String>, RecoverError> {
    let Some(lease) = &record.lease else {
        return Ok(None);
    };
    let networks = tables::NETWORKS.list(store).await?;
    if networks
        .entries
        .iter()
        .any(|entry| entry.value.name == lease.network)
    {
        return Ok(None);
    }
    let v4 = lease.addresses.iter().find_map(|address| match address {
        std::net::IpAddr::V4(address) => {
            ipnetwork::Ipv4Network::new(*address, network::ipam::DEFAULT_PREFIX4).ok()
        }
        std::net::IpAddr::V6(_) => None,
    });
    let v6 = lease.addresses.iter().find_map(|address| match address {
        std::net::IpAddr::V6(address) => ipnetwork::Ipv6Network::new(*address, 64).ok(),
        std::net::IpAddr::V4(_) => None,
    });
    let index = networks
        .entries
        .iter()
        .map(|entry| entry.value.index)
        .max()
        .unwrap_or(0)
        + 1;
    let network = NetworkRecord {
        name: lease.network.clone(),
        spec: NetworkSpec {
            ipv4: v4.and_then(|net| ipnetwork::Ipv4Network::new(net.network(), net.prefix()).ok()),
            ipv6: v6.and_then(|net| ipnetwork::Ipv6Network::new(net.network(), 64).ok()),
            outside: model::network::Outside::Nat,
            mtu: None,
        },
        index,
        created_at: clock::now(),
    };
    let mut txn = Txn::new();
    tables::NETWORKS.put(&mut txn, lease.network.as_str(), &network)?;
    txn.put(
        format!("network_indexes/{index}"),
        lease.network.to_string(),
    );
    store.commit(txn).await?;
    Ok(Some(lease.network.to_string()))
}

async fn recover_volumes(record: &InstanceRecord, store: &Store) -> Result<(), RecoverError> {
    let named = |source: &MountSource| match source {
        MountSource::Volume { name } => Some(name.clone()),
        _ => None,
    };
    for name in record
        .spec
        .mounts
        .iter()
        .filter_map(|mount| named(&mount.source))
    {
        let name: Name = name;
        if tables::VOLUMES.get(store, name.as_str()).await?.is_none() {
            let volume = VolumeRecord {
                name: name.clone(),
                spec: VolumeSpec::default(),
                created_at: clock::now(),
            };
            let mut txn = Txn::new();
            tables::VOLUMES.put(&mut txn, name.as_str(), &volume)?;
            store.commit(txn).await?;
        }
    }
    Ok(())
}
