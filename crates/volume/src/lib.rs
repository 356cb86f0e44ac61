//! Pools and the volumes in them.
//!
//! | module | owns |
//! |---|---|
//! | [`Pool`] | what every kind of pool can do, and the promises it makes |
//! | [`DirectoryPool`] | volumes as directories of any file system, with project quotas where it has them |
//! | [`conformance`] | the suite every pool passes |
//!
//! Called by the node (roots of instances, named volumes). It knows no instances: a volume has an
//! id and a size. It never follows a symbolic link that a guest or an image could have made, and
//! never leaves a volume half made or half removed where [`Pool::list`] could see it.
#![deny(unsafe_code)]

pub mod conformance;
mod directory;
mod id;
mod pool;
#[allow(unsafe_code)]
mod quota;
mod tree;

pub use directory::{DirectoryPool, OpenError};
pub use id::{IdError, Kind, VolumeId};
pub use pool::{
    Capabilities, Enforcement, Pool, Populated, Space, Usage, VolumeError, VolumeInfo, VolumeSpec,
};
