//! What Berth manages, as pure data: ids, names, units, specs, status, and the lifecycle of an
//! instance as a function.
//!
//! Every crate above may depend on this one. It does no I/O, reads no clock, knows nothing of
//! async, HTTP or the store; so everything in it can be tested with plain values.

#![forbid(unsafe_code)]

mod chain;
pub mod id;
pub mod instance;
pub mod name;
pub mod network;
pub mod operation;
pub mod record;
pub mod time;
pub mod token;
pub mod units;
pub mod validate;
pub mod volume;

pub use chain::chain;
pub use id::InstanceId;
pub use instance::{
    InstanceSpec,
    lifecycle::{Event, Phase},
    status::InstanceStatus,
};
pub use name::Name;
pub use time::Timestamp;
pub use units::ByteSize;
pub use validate::{FieldError, Invalid};
