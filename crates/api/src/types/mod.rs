//! Wire types of version 1. Unknown fields in requests are refused; answers may gain fields.

mod access;
mod image;
mod instance;
mod network;
mod operation;
mod spec;
mod system;
mod volume;

pub use access::{Login, LoginCreate, Token, TokenCreate, TokenCreated};
pub use image::{
    Image, ImageBuild, ImageDetail, ImageDf, ImageDfRow, ImageGc, ImageLayer, ImagePull, ImagePush,
    ImageTag, Recipe, RegistryAuth,
};
pub use instance::{
    CpuCounter, CpuStats, Exit, Instance, InstanceCreate, InstanceDetail, Process, Stats,
    StopRequest, TopRow, Untranslated, Usage, WaitFor,
};
pub use network::{Lease, Network, NetworkCreate};
pub use operation::{Operation, OperationState, Progress};
pub use spec::{
    Accel, Device, HealthCheck, InstanceSpec, Io, Kind, Log, Machine, Mount, MountType, Net, Port,
    Protocol, Ulimit,
};
pub use system::{Check, Event, Info, Verdict};
pub use volume::{Volume, VolumeCreate};
