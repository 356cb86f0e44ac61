//! A partition of software vCPUs.

use std::{sync::Arc, thread};

use memory::Ram;

use super::{
    Tier, native,
    platform::{Common, Platform},
    translate::Counters,
    vcpu::SoftVcpu,
};
use crate::{Backend, Bus, CpuError, Msi, Partition, Vcpu, cpuid::Table};

/// vCPUs in software.
pub struct SoftPartition {
    common: Common,
    ram: Ram,
    bus: Arc<dyn Bus>,
    cpuid: Box<dyn Fn(u32) -> Table + Send + Sync>,
    tier: Tier,
}

impl SoftPartition {
    /// A machine with `ram` and `bus`. `cpuid` says what each vCPU, by its index, answers.
    #[must_use]
    pub fn new(
        ram: &Ram,
        bus: Arc<dyn Bus>,
        cpuid: impl Fn(u32) -> Table + Send + Sync + 'static,
    ) -> Self {
        Self {
            common: Common::new(),
            ram: ram.clone(),
            bus,
            cpuid: Box::new(cpuid),
            tier: Tier::default(),
        }
    }

    /// Says how vCPUs made from now on run code.
    #[must_use]
    pub fn with_tier(mut self, tier: Tier) -> Self {
        self.tier = tier;
        self
    }

    /// Lets the next store of any vCPU to any page be seen by the dirty log: to be called after the
    /// log was turned on, and after it was taken and before the pages are read.
    pub fn flush_writes(&self) {
        self.common.peers.flush_writes();
    }
}

impl Partition for SoftPartition {
    fn backend(&self) -> Backend {
        Backend::Soft
    }

    fn create_vcpu(&self, index: u32) -> Result<Box<dyn Vcpu>, CpuError> {
        native::prepare().map_err(|source| CpuError::System {
            what: "map memory for generated code",
            source,
        })?;
        let cpuid = (self.cpuid)(index);
        let platform = Platform::new(index, &self.common, Arc::clone(&self.bus), cpuid)?;
        let (ram, bus) = (self.ram.clone(), Arc::clone(&self.bus));
        // A quarter of a MiB that is moved while it is made: a thread gives its stack back.
        thread::scope(|scope| {
            let make = move || SoftVcpu::new(index, platform, ram, bus, self.tier);
            let made = thread::Builder::new().spawn_scoped(scope, make);
            let made = made.map_err(|source| CpuError::System {
                what: "start a thread",
                source,
            })?;
            let vcpu = made.join();
            let vcpu = vcpu.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            Ok(Box::new(vcpu) as Box<dyn Vcpu>)
        })
    }

    fn signal_msi(&self, msi: Msi) -> Result<(), CpuError> {
        self.common.router.signal(msi);
        Ok(())
    }

    /// A repeated string instruction counts once per part.
    fn instructions(&self) -> Option<u64> {
        Some(self.common.peers.instructions())
    }

    fn counters(&self) -> Option<Vec<Counters>> {
        Some(self.common.peers.counters())
    }
}
