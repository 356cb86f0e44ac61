//! An instance: what is asked for ([`InstanceSpec`]), what is seen ([`status`]), and how it may
//! change ([`lifecycle`]).

pub mod customize;
pub mod lifecycle;
pub mod limits;
pub mod machine;
pub mod spec;
pub mod status;

pub use limits::{IoLimits, Limits, NetLimits};
pub use machine::{Accel, MachineSpec};
pub use spec::{
    DeviceSpec, HealthCheck, InstanceSpec, Kind, LogSpec, Mount, MountSource, NetworkMode,
    PortSpec, PowerState, ProcessSpec, Protocol, RestartPolicy, Security, Ulimit,
};
