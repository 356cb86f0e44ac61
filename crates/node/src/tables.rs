//! The tables of the store: which record stands under which key. See [`model::record`].

use model::{
    InstanceStatus,
    record::{InstanceRecord, NetworkRecord, TokenRecord, VolumeRecord},
};
use store::Table;

/// Instances, by id.
pub const INSTANCES: Table<InstanceRecord> = Table::new("instances/", 1);
/// Statuses of instances, by id.
pub const STATUSES: Table<InstanceStatus> = Table::new("statuses/", 1);
/// Ids of instances, by name.
pub const NAMES: Table<String> = Table::new("names/", 1);
/// Networks, by name.
pub const NETWORKS: Table<NetworkRecord> = Table::new("networks/", 1);
/// Ids of instances, by `network/address` held.
pub const ADDRESSES: Table<String> = Table::new("addresses/", 1);
/// The address last handed out, by `network/family`.
pub const LAST_ADDRESSES: Table<String> = Table::new("last_addresses/", 1);
/// Ids of instances, by `protocol/port/address` of the host published.
pub const PORTS: Table<String> = Table::new("ports/", 1);
/// Ids of instances, by slot of host ids held.
pub const IDMAPS: Table<String> = Table::new("idmaps/", 1);
/// Volumes, by name.
pub const VOLUMES: Table<VolumeRecord> = Table::new("volumes/", 1);
/// Tokens, by name.
pub const TOKENS: Table<TokenRecord> = Table::new("tokens/", 1);
