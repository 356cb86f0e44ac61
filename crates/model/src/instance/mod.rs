//! An instance: what is asked for ([`InstanceSpec`]), what is seen ([`status`]), and how it may
//! change ([`lifecycle`]).

pub mod customize;
pub mod lifecycle;
pub mod machine;
pub mod spec;
pub mod status;

pub use machine::{Accel, MachineSpec};
pub use spec::{
    DeviceSpec, HealthCheck, InstanceSpec, IoLimits, Kind, Limits, LogSpec, Mount, MountSource,
    NetworkMode, PortSpec, PowerState, ProcessSpec, Protocol, RestartPolicy, Security, Ulimit,
};
