//! Which backend executes the vCPUs, and what processor they show.

use std::sync::Arc;

use cpu::{
    Backend, Bus, CpuError, Partition,
    cpuid::{Features, Level, Profile},
    kvm::{KvmDevice, KvmPartition, physical_bits, probe},
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

/// The vCPUs to be made of `config`: on KVM if its device is given, else on the software CPU.
pub(super) fn partition(
    config: &VmConfig,
    kvm: Option<KvmDevice>,
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
    let profile = |available| Profile::new(level, available, config.vcpus, Tsc::new().hz());
    Ok(match kvm {
        Some(device) => {
            let supported = device.supported_cpuid()?;
            let profile = profile(Features::of_kvm(&supported));
            // The hardware walks the guest's tables: what is wider there than here would fault.
            let profile = profile.with_physical_bits(physical_bits(&supported));
            let cpuid = move |index| profile.table(index).to_kvm();
            Arc::new(KvmPartition::new(device, ram, bus, cpuid)?)
        }
        None => {
            let profile = profile(Features::soft());
            let cpuid = move |index| profile.table(index);
            Arc::new(SoftPartition::new(ram, bus, cpuid).with_tier(tier))
        }
    })
}
