//! What surrounds one core and is not memory: its local APIC, its clocks, what `cpuid` tells, and
//! the other vCPUs.

use std::sync::Arc;

use kvm_bindings::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

use super::{
    Core,
    clock::{KvmClock, Tsc},
    lapic::{LocalApic, Router},
    peers::{Peer, Peers},
};
use crate::{Bus, CpuError};

/// What surrounds one core.
pub struct Platform {
    /// Its local APIC.
    pub apic: LocalApic,
    /// Its paravirtual clock.
    pub clock: KvmClock,
    /// The counter of all vCPUs.
    pub tsc: Arc<Tsc>,
    /// What `cpuid` tells.
    pub cpuid: Cpuid,
    /// All vCPUs.
    pub(super) peers: Arc<Peers>,
    /// This one among them.
    pub(super) peer: Arc<Peer>,
}

/// What `cpuid` tells, in the form that KVM takes too.
#[derive(Debug, Clone, Default)]
pub struct Cpuid {
    entries: Vec<kvm_cpuid_entry2>,
}

impl Cpuid {
    /// From a table as `KVM_SET_CPUID2` takes it.
    #[must_use]
    pub fn new(entries: &[kvm_cpuid_entry2]) -> Self {
        Self {
            entries: entries.to_vec(),
        }
    }

    /// `eax`, `ebx`, `ecx` and `edx` of a leaf; zeros where there is none, as on AMD's processors.
    #[must_use]
    pub fn lookup(&self, leaf: u32, subleaf: u32) -> [u32; 4] {
        let matches = |it: &&kvm_cpuid_entry2| {
            it.function == leaf
                && (it.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX == 0 || it.index == subleaf)
        };
        self.entries
            .iter()
            .find(matches)
            .map_or([0; 4], |it| [it.eax, it.ebx, it.ecx, it.edx])
    }
}

/// What the vCPUs of a partition have in common.
pub(super) struct Common {
    pub(super) router: Arc<Router>,
    pub(super) tsc: Arc<Tsc>,
    pub(super) peers: Arc<Peers>,
}

impl Common {
    pub(super) fn new() -> Self {
        Self {
            router: Arc::new(Router::new()),
            tsc: Arc::new(Tsc::new()),
            peers: Arc::default(),
        }
    }
}

impl Platform {
    /// Of the vCPU with this index.
    ///
    /// # Errors
    /// When the index is taken already.
    pub(super) fn new(
        index: u32,
        common: &Common,
        bus: Arc<dyn Bus>,
        cpuid: Cpuid,
    ) -> Result<Self, CpuError> {
        let apic = LocalApic::new(
            index,
            Arc::clone(&common.router),
            bus,
            Arc::clone(&common.tsc),
        )?;
        let peer = common.peers.add(Arc::clone(apic.inbox()));
        Ok(Self {
            apic,
            clock: KvmClock::default(),
            tsc: Arc::clone(&common.tsc),
            cpuid,
            peers: Arc::clone(&common.peers),
            peer,
        })
    }

    /// Of a core that is alone in the world, for tests.
    pub(super) fn alone(bus: Arc<dyn Bus>) -> Self {
        Self::new(0, &Common::new(), bus, Cpuid::default())
            .expect("the first index of a new partition is free")
    }
}

impl Core {
    /// `cr8`.
    pub(super) fn task_priority(&self) -> u64 {
        self.platform.apic.cr8()
    }

    /// Sets `cr8`.
    pub(super) fn set_task_priority(&mut self, value: u64) {
        self.platform.apic.set_cr8(value);
    }

    /// Reads what is not RAM: the local APIC, else the bus.
    pub(super) fn device_read(&mut self, address: u64, data: &mut [u8]) {
        if self.platform.apic.base() == Some(address & !0xfff) {
            self.platform.apic.mmio_read(address & 0xfff, data);
        } else {
            self.bus.mmio_read(address, data);
        }
    }

    /// Writes what is not RAM.
    pub(super) fn device_write(&mut self, address: u64, data: &[u8]) {
        if self.platform.apic.base() == Some(address & !0xfff) {
            self.platform.apic.mmio_write(address & 0xfff, data);
        } else {
            self.bus.mmio_write(address, data);
        }
    }
}
