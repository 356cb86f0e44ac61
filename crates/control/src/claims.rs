//! What only one instance may hold: its name, addresses, published ports and host ids.
//!
//! A claim is a key of the store that must be absent when the transaction commits: that alone
//! makes it exclusive, across crashes and hosts. What is kept in memory only makes good proposals
//! without reading all keys, and follows the store.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use api::{ErrorCode, Problem};
use ipnetwork::IpNetwork;
use model::{
    InstanceId, Name,
    instance::{PortSpec, Protocol},
    network::AddressLease,
    record::{IdMap, InstanceRecord, NetworkRecord},
};
use network::{Mac, ipam};
use node::tables;
use store::{ReadError, Store, TableError, Txn};

use crate::error::{internal, wrong_field};

/// Host ids an instance gets: all that 16 bits can name.
const IDS: u32 = 65_536;
/// First host id given away: above what systemd-nspawn takes (systemd's UIDS-GIDS document).
const FIRST_ID: u32 = 0x7000_0000;
/// Slots of [`IDS`] ids below the last usable one.
const SLOTS: u32 = (u32::MAX - FIRST_ID) / IDS;

#[derive(Debug, Default)]
struct Taken {
    addresses: BTreeMap<String, BTreeSet<IpAddr>>,
    last: BTreeMap<String, IpAddr>,
    slots: BTreeSet<u32>,
    next_slot: u32,
}

/// Proposals for new claims. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Claims {
    taken: Arc<Mutex<Taken>>,
}

impl Claims {
    /// Reads what is claimed, and follows it from then on.
    pub(crate) async fn load(store: &Store) -> Result<Self, TableError> {
        let claims = Self::default();
        let from = claims.read_all(store).await?;
        let (follower, store) = (claims.clone(), store.clone());
        tokio::spawn(async move { follower.follow(store, from).await });
        Ok(claims)
    }

    async fn read_all(&self, store: &Store) -> Result<store::Revision, TableError> {
        let addresses = tables::ADDRESSES.list(store).await?;
        let last = tables::LAST_ADDRESSES.list(store).await?;
        let slots = tables::IDMAPS.list(store).await?;
        let mut taken = self.lock();
        *taken = Taken {
            next_slot: taken.next_slot,
            ..Taken::default()
        };
        for entry in &addresses.entries {
            taken.hold_address(&entry.id);
        }
        for entry in &last.entries {
            if let Ok(address) = entry.value.parse() {
                taken.last.insert(entry.id.clone(), address);
            }
        }
        taken.slots = slots
            .entries
            .iter()
            .filter_map(|entry| entry.id.parse().ok())
            .collect();
        Ok(addresses.revision)
    }

    /// Gives back in memory what is deleted from the store.
    async fn follow(self, store: Store, mut from: store::Revision) {
        loop {
            if let Ok(mut watcher) = store.watch("", from) {
                while let Ok(batch) = watcher.next().await {
                    let gone = batch.events.iter().filter(|event| event.record.is_none());
                    let mut taken = self.lock();
                    for event in gone {
                        taken.give_back(&event.key);
                    }
                }
            }
            match self.read_all(&store).await {
                Ok(revision) => from = revision,
                Err(_) => return,
            }
        }
    }

    /// Puts all that `record` holds into `txn`, choosing addresses and host ids.
    pub(crate) fn claim(
        &self,
        record: &mut InstanceRecord,
        network: Option<&NetworkRecord>,
        asked: Option<IpAddr>,
        txn: &mut Txn,
    ) -> Result<(), Problem> {
        let owner = record.id.to_string();
        let add = |result: Result<(), TableError>| result.map_err(internal);
        add(tables::NAMES.insert(txn, record.name.as_str(), &owner))?;
        for port in &record.spec.ports {
            let key = port_key(port.protocol, port.host_port, port.host_address);
            add(tables::PORTS.insert(txn, &key, &owner))?;
        }
        if record.spec.security.user_namespace {
            let slot = self.slot()?;
            add(tables::IDMAPS.insert(txn, &slot.to_string(), &owner))?;
            record.idmap = Some(IdMap {
                base: FIRST_ID + slot * IDS,
                count: IDS,
            });
        }
        if let Some(network) = network {
            let lease = self.lease(record.id, network, asked)?;
            for address in &lease.addresses {
                let key = format!("{}/{address}", network.name);
                add(tables::ADDRESSES.insert(txn, &key, &owner))?;
                let family = family_key(&network.name, address);
                add(tables::LAST_ADDRESSES.put(txn, &family, &address.to_string()))?;
            }
            record.lease = Some(lease);
        }
        Ok(())
    }

    /// Takes back proposals of a transaction that did not commit.
    pub(crate) fn discard(&self, record: &InstanceRecord) {
        let mut taken = self.lock();
        for key in keys(record) {
            taken.give_back(&key);
        }
    }

    fn slot(&self) -> Result<u32, Problem> {
        let mut taken = self.lock();
        for _ in 0..SLOTS {
            let slot = taken.next_slot % SLOTS;
            taken.next_slot = slot + 1;
            if taken.slots.insert(slot) {
                return Ok(slot);
            }
        }
        Err(
            Problem::new(ErrorCode::Failed, "all ranges of host ids are taken")
                .hint("delete instances, or make one that shares the host's users"),
        )
    }

    fn lease(
        &self,
        id: InstanceId,
        network: &NetworkRecord,
        asked: Option<IpAddr>,
    ) -> Result<AddressLease, Problem> {
        let v4 = network.spec.gateway_v4().zip(network.spec.ipv4);
        let v6 = network.spec.gateway_v6().zip(network.spec.ipv6);
        let subnets = [
            v4.and_then(|(gateway, net)| IpNetwork::new(gateway.into(), net.prefix()).ok()),
            v6.and_then(|(gateway, net)| IpNetwork::new(gateway.into(), net.prefix()).ok()),
        ];
        let mut guard = self.lock();
        let taken = &mut *guard;
        let held = taken.addresses.entry(network.name.to_string()).or_default();
        let mut addresses = Vec::new();
        for subnet in subnets.into_iter().flatten() {
            let wanted = asked.filter(|address| address.is_ipv4() == subnet.is_ipv4());
            let family = family_key(&network.name, &subnet.ip());
            let address = match wanted {
                Some(wanted) => ipam::request(&subnet, held, wanted)
                    .map_err(|error| wrong_field("address", error.to_string()))?,
                None => ipam::next_free(&subnet, held, taken.last.get(&family).copied())
                    .map_err(|error| Problem::new(ErrorCode::Failed, error.to_string()))?,
            };
            addresses.push(address);
            taken.last.insert(family, address);
        }
        held.extend(&addresses);
        Ok(AddressLease {
            network: network.name.clone(),
            addresses,
            mac: Mac::derive(&id.to_string()).0,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Taken {
    fn hold_address(&mut self, id: &str) {
        if let Some((network, address)) = id.split_once('/')
            && let Ok(address) = address.parse()
        {
            self.addresses
                .entry(network.to_owned())
                .or_default()
                .insert(address);
        }
    }

    fn give_back(&mut self, key: &str) {
        if let Some(id) = key.strip_prefix(tables::ADDRESSES.prefix())
            && let Some((network, address)) = id.split_once('/')
            && let Ok(address) = address.parse::<IpAddr>()
            && let Some(held) = self.addresses.get_mut(network)
        {
            held.remove(&address);
        }
        if let Some(slot) = key.strip_prefix(tables::IDMAPS.prefix())
            && let Ok(slot) = slot.parse()
        {
            self.slots.remove(&slot);
        }
    }
}

/// The keys of all that `record` holds.
pub(crate) fn keys(record: &InstanceRecord) -> Vec<String> {
    let mut keys = vec![tables::NAMES.key(record.name.as_str())];
    for port in &record.spec.ports {
        keys.push(tables::PORTS.key(&port_key(port.protocol, port.host_port, port.host_address)));
    }
    if let Some(map) = record.idmap {
        keys.push(tables::IDMAPS.key(&((map.base - FIRST_ID) / IDS).to_string()));
    }
    if let Some(lease) = &record.lease {
        let key = |address| tables::ADDRESSES.key(&format!("{}/{address}", lease.network));
        keys.extend(lease.addresses.iter().map(key));
    }
    keys
}

/// The claims of a record that already chose, as a recovery finds it.
pub(crate) fn reclaim(record: &InstanceRecord, txn: &mut Txn) -> Result<(), TableError> {
    let owner = record.id.to_string();
    for key in keys(record) {
        // Every claim is the id of its holder, whatever the table.
        let id = key.split_once('/').map_or("", |(_, id)| id).to_owned();
        for table in [
            &tables::NAMES,
            &tables::PORTS,
            &tables::IDMAPS,
            &tables::ADDRESSES,
        ] {
            if key == table.key(&id) {
                table.insert(txn, &id, &owner)?;
            }
        }
    }
    Ok(())
}

/// What a claim that was taken by another means, for the user.
pub(crate) fn conflict(key: &str) -> Problem {
    if let Some(name) = key.strip_prefix(tables::NAMES.prefix()) {
        return Problem::new(
            ErrorCode::Conflict,
            format!("there is already an instance {name:?}"),
        )
        .hint(format!(
            "choose another --name, or delete it: berth rm {name}"
        ));
    }
    if let Some(port) = key.strip_prefix(tables::PORTS.prefix()) {
        let mut parts = port.split('/');
        let (protocol, number) = (parts.next().unwrap_or(""), parts.next().unwrap_or(""));
        let text = format!("port {number}/{protocol} of the host is already published");
        return Problem::new(ErrorCode::Conflict, text)
            .hint("publish another host port; berth list -o wide shows who has it");
    }
    Problem::new(
        ErrorCode::Conflict,
        format!("{key} was changed by another request"),
    )
    .hint("look at it again and repeat the request")
}

/// The claim to a port that leaves no room for another one, if there is any. Claims at addresses
/// that have nothing in common have different keys too; those of which one contains the other only
/// meet here.
pub(crate) async fn published(store: &Store, port: &PortSpec) -> Result<Option<String>, ReadError> {
    let same_port = format!("{}/{}/", protocol(port.protocol), port.host_port);
    let page = store.list(&tables::PORTS.key(&same_port)).await?;
    let mut keys = page.records.into_iter().map(|record| record.key);
    Ok(keys.find(|key| {
        let address = key.rsplit('/').next().and_then(|text| text.parse().ok());
        overlap(port.host_address, address)
    }))
}

/// Whether two addresses to listen at, every one if `None`, have one in common.
fn overlap(one: Option<IpAddr>, other: Option<IpAddr>) -> bool {
    let (Some(one), Some(other)) = (one, other) else {
        return true;
    };
    let any = one.is_unspecified() || other.is_unspecified();
    one == other || (any && one.is_ipv4() == other.is_ipv4())
}

/// A port that a program of the host has, for the user.
pub(crate) fn in_use(port: &PortSpec, at: SocketAddr) -> Problem {
    let (protocol, number) = (protocol(port.protocol), port.host_port);
    let text = format!(
        "port {number}/{protocol} of the host is taken: a program of the host listens at {at}"
    );
    let option = match port.protocol {
        Protocol::Tcp => "-t",
        Protocol::Udp => "-u",
    };
    Problem::new(ErrorCode::Conflict, text).hint(format!(
        "publish another host port, or end that program: ss -lnp {option} 'sport = :{number}' shows it"
    ))
}

fn protocol(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
    }
}

fn port_key(transport: Protocol, port: u16, address: Option<IpAddr>) -> String {
    let protocol = protocol(transport);
    let address = address.map_or_else(|| "*".to_owned(), |address| address.to_string());
    format!("{protocol}/{port}/{address}")
}

fn family_key(network: &Name, address: &IpAddr) -> String {
    format!("{network}/{}", if address.is_ipv4() { "v4" } else { "v6" })
}
