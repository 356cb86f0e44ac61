//! The bundle's `config.json` as plain types (OCI runtime-spec 1.3.0).
//!
//! Own types rather than a spec crate: start latency and size count here, every field is public and has
//! a default, so that the daemon can build a spec as a literal, and JSON `null` reads as "absent",
//! which is what Go producers mean by it. Unknown fields are ignored, as the specification demands.
//! Only shapes live here: what they must satisfy is [`crate::validate`], how bytes become a [`Spec`]
//! is [`crate::bundle`]. Nothing in this module touches the system.

mod linux;
mod process;

pub use linux::*;
pub use process::*;

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Deserializer, Serialize};

/// The version of the runtime specification this crate implements.
pub const OCI_VERSION: &str = "1.3.0";

/// Reads `null` as the type's default.
pub(crate) fn nullable<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    Option::<T>::deserialize(deserializer).map(Option::unwrap_or_default)
}

/// True for a value that need not be written out.
pub(crate) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Declares one JSON object: absent, `null` and default are the same thing in both directions.
macro_rules! object {
    ($(#[$meta:meta])* pub struct $name:ident {
        $($(#[$field_meta:meta])* pub $field:ident: $type:ty,)*
    }) => {
        $(#[$meta])*
        #[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
        #[serde(default, rename_all = "camelCase")]
        pub struct $name {
            $(
                $(#[$field_meta])*
                #[serde(
                    deserialize_with = "crate::spec::nullable",
                    skip_serializing_if = "crate::spec::is_default"
                )]
                pub $field: $type,
            )*
        }
    };
}
pub(crate) use object;

object! {
    /// A container's configuration: the root object of `config.json`.
    pub struct Spec {
        /// Version of the specification the bundle follows (SemVer).
        #[serde(rename = "ociVersion")]
        pub oci_version: String,
        /// The container's first process; required by `start`.
        pub process: Option<Process>,
        /// The root file system.
        pub root: Option<Root>,
        /// Host name inside a new UTS namespace.
        pub hostname: String,
        /// NIS domain name inside a new UTS namespace.
        pub domainname: String,
        /// Mounts, made in this order on top of the root.
        pub mounts: Vec<Mount>,
        /// Programs run at points of the life cycle.
        pub hooks: Hooks,
        /// Free-form metadata, passed to hooks and shown by `state`.
        pub annotations: BTreeMap<String, String>,
        /// What only Linux has.
        pub linux: Linux,
    }
}

object! {
    /// The root file system of a container.
    pub struct Root {
        /// Directory on the host, absolute or relative to the bundle.
        pub path: PathBuf,
        /// Makes the root read-only before the process runs.
        pub readonly: bool,
    }
}

object! {
    /// One mount inside the container.
    pub struct Mount {
        /// Absolute path inside the container.
        pub destination: PathBuf,
        /// File system type; empty or `bind` with a bind option for a bind mount.
        #[serde(rename = "type")]
        pub kind: String,
        /// Device name, file or directory; for binds absolute or relative to the bundle.
        pub source: PathBuf,
        /// Options as in fstab plus the specification's additions.
        pub options: Vec<String>,
        /// Maps owners of the source's files (an id-mapped mount).
        #[serde(rename = "uidMappings")]
        pub uid_mappings: Vec<IdMapping>,
        /// Maps groups of the source's files.
        #[serde(rename = "gidMappings")]
        pub gid_mappings: Vec<IdMapping>,
    }
}

object! {
    /// Programs to run at points of the life cycle, each list in order.
    pub struct Hooks {
        /// Deprecated: before the process starts, in the runtime's namespaces.
        pub prestart: Vec<Hook>,
        /// After the namespaces exist and before the root changes, in the runtime's namespaces.
        pub create_runtime: Vec<Hook>,
        /// As `create_runtime`, in the container's namespaces.
        pub create_container: Vec<Hook>,
        /// After `start` was called and before the process runs, inside the container.
        pub start_container: Vec<Hook>,
        /// After the process runs, in the runtime's namespaces; failures are only logged.
        pub poststart: Vec<Hook>,
        /// After the container is deleted, in the runtime's namespaces; failures are only logged.
        pub poststop: Vec<Hook>,
    }
}

object! {
    /// One program to run at a point of the life cycle.
    pub struct Hook {
        /// Absolute path of the program.
        pub path: PathBuf,
        /// Its arguments, the program's own name first.
        pub args: Vec<String>,
        /// Its environment, `KEY=value`. If empty, a `startContainer` hook gets that of the container's
        /// process; nothing is inherited otherwise.
        pub env: Vec<String>,
        /// Seconds after which it is killed and counts as failed.
        pub timeout: Option<i64>,
    }
}

/// Where a container is in its life (runtime.md, "State"), with `paused` as every runtime adds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// `create` has not finished.
    Creating,
    /// Set up and waiting for `start`.
    Created,
    /// The process runs.
    Running,
    /// The process is frozen.
    Paused,
    /// The process has exited.
    Stopped,
}

impl Status {
    /// The word used in JSON and on terminals.
    pub fn as_str(self) -> &'static str {
        match self {
            Status::Creating => "creating",
            Status::Created => "created",
            Status::Running => "running",
            Status::Paused => "paused",
            Status::Stopped => "stopped",
        }
    }
}

/// The state of a container as hooks receive it and `state` prints it (runtime.md, "State").
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct State {
    /// Version of the specification.
    #[serde(rename = "ociVersion")]
    pub oci_version: String,
    /// The container's id, unique on this host for one runtime root.
    pub id: String,
    /// Where it is in its life.
    pub status: Status,
    /// Process id of its first process as the runtime sees it; 0 once stopped.
    #[serde(default, skip_serializing_if = "is_default")]
    pub pid: i32,
    /// Absolute path of the bundle.
    pub bundle: PathBuf,
    /// Annotations of its configuration.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}
