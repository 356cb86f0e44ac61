//! What is stored: durable, versioned, owned by the control plane (records) and the node
//! (statuses). Golden files under `tests/golden` pin the stored form.
//!
//! Keys, each value one JSON document:
//!
//! | key | value | written by |
//! |---|---|---|
//! | `instances/<id>` | [`InstanceRecord`] | control |
//! | `statuses/<id>` | [`crate::InstanceStatus`] | node |
//! | `names/<name>` | the instance's id | control |
//! | `networks/<name>` | [`NetworkRecord`] | control |
//! | `addresses/<network>/<address>` | the instance's id | control |
//! | `ports/<protocol>/<port>/<address or *>` | the instance's id | control |
//! | `idmaps/<slot>` | the instance's id | control |
//! | `volumes/<name>` | [`VolumeRecord`] | control |
//! | `tokens/<id>` | [`TokenRecord`] | control |

use serde::{Deserialize, Serialize};

use crate::{
    InstanceId, InstanceSpec, Name, Timestamp,
    instance::PowerState,
    network::{AddressLease, NetworkSpec},
    token::Scope,
    volume::VolumeSpec,
};

/// Where the record of an instance stands between the first transaction and the last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RecordState {
    /// An operation is acquiring what it needs.
    Creating,
    /// Creating failed or was cancelled; what is left can only be deleted.
    Failed {
        /// What happened, why, what to do.
        message: String,
    },
    /// It is whole; the node brings it to its desired power state.
    Ready,
    /// An operation is giving back what it holds.
    Deleting,
}

/// The range of 65,536 host ids that an instance's users map to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMap {
    /// Host id of id 0 inside.
    pub base: u32,
    /// How many.
    pub count: u32,
}

/// An instance as stored, and as written to `instance.json` in its directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceRecord {
    /// Identity.
    pub id: InstanceId,
    /// Name, unique.
    pub name: Name,
    /// Raised by one at each change of `spec` or `desired`; an older one is refused everywhere.
    pub generation: u64,
    /// What is asked for.
    pub spec: InstanceSpec,
    /// The power state asked for.
    pub desired: PowerState,
    /// Whether a stop gives the program no time to end by itself.
    #[serde(default)]
    pub stop_now: bool,
    /// Number of the run a user wants: raised by a start of what has ended and by a restart.
    pub run: u64,
    /// Where the record stands.
    pub state: RecordState,
    /// Digest of the image's manifest, once it is known. The image is not collected while a
    /// record names it.
    #[serde(default)]
    pub image_digest: Option<String>,
    /// Addresses held.
    #[serde(default)]
    pub lease: Option<AddressLease>,
    /// Host ids held, with a user namespace.
    #[serde(default)]
    pub idmap: Option<IdMap>,
    /// When it was asked for.
    pub created_at: Timestamp,
}

/// A network as stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkRecord {
    /// Name, unique.
    pub name: Name,
    /// What is asked for.
    pub spec: NetworkSpec,
    /// Number that names the bridge; unique on the host.
    pub index: u32,
    /// When it was asked for.
    pub created_at: Timestamp,
}

/// A volume as stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeRecord {
    /// Name, unique.
    pub name: Name,
    /// What is asked for.
    pub spec: VolumeSpec,
    /// When it was asked for.
    pub created_at: Timestamp,
}

/// A token as stored: its hash, never itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRecord {
    /// Name for people, unique.
    pub name: Name,
    /// Lower-case hexadecimal SHA-256 of the token.
    pub sha256: String,
    /// What it allows.
    pub scope: Scope,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it stops working.
    #[serde(default)]
    pub expires_at: Option<Timestamp>,
}
