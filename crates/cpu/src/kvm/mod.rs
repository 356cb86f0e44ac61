//! The KVM backend: the hardware executes, the kernel holds the local APICs and the clock.
//!
//! The interrupt controller is split: local APICs are the kernel's, IOAPIC and everything before it
//! ours, so that devices meet the same [`Partition`](crate::Partition) on both backends.
//! `docs/kvm.md` lists the traps of the interface and where each is met here. That `/dev/kvm` opens
//! says little: [`probe`] executes a guest before anybody relies on it.

mod device;
mod kick;
mod msrs;
mod partition;
pub mod probe;
mod state;
mod vcpu;

pub use device::{KvmDevice, physical_bits};
pub use partition::{KvmPartition, MAX_IDS};

use std::io;

use crate::CpuError;

/// What the kernel refused.
fn refused(call: &'static str) -> impl Fn(kvm_ioctls::Error) -> CpuError {
    move |error| CpuError::Kvm {
        call,
        source: io::Error::from_raw_os_error(error.errno()),
    }
}
