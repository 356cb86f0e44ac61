//! Which backend executes the vCPUs, and what processor they show.

use std::sync::Arc;

use cpu::{
    Backend, Bus, CpuError, Partition,
    cpuid::{Features, Level, Profile},
    kvm::{KvmPartition, probe},
    soft::{SoftPartition, Tier, clock::Tsc},
};
use memory::Ram;

use crate::config::{Accel, CpuLevel, VmConfig};

/// What `accel` means on this host. For [`Accel::Auto`] a probe is executed, which may take half a
/// second: whoever starts many machines does it once.
#[must_use]
pub fn choose(accel: Accel) -> Backend {
    match accel {
        Accel::Kvm => Backend::Kvm,
        Accel::Soft => Backend::Soft,
        Accel::Auto if probe::run().usable => Backend::Kvm,
        Accel::Auto => Backend::Soft,
    }
}

/// The vCPUs to be made of `config`.
pub(super) fn partition(
    config: &VmConfig,
    backend: Backend,
    tier: Tier,
    ram: &Ram,
    bus: Arc<dyn Bus>,
) -> Result<Arc<dyn Partition>, CpuError> {
    let level = match config.cpu {
        CpuLevel::V1 => Level::V1,
        CpuLevel::V2 => Level::V2,
        CpuLevel::V3 => Level::V3,
        CpuLevel::Host => Level::Host,
    };
    let available = match backend {
        Backend::Kvm => Features::of_kvm(&KvmPartition::supported_cpuid()?),
        Backend::Soft => Features::soft(),
    };
    let profile = Profile::new(level, available, config.vcpus, Tsc::new().hz());
    Ok(match backend {
        Backend::Kvm => {
            let cpuid = move |index| profile.table(index).to_kvm();
            Arc::new(KvmPartition::new(ram, bus, cpuid)?)
        }
        Backend::Soft => {
            let cpuid = move |index| profile.table(index);
            Arc::new(SoftPartition::new(ram, bus, cpuid).with_tier(tier))
        }
    })
}
