//! What surrounds one core and is not memory: its local APIC, its clocks, what `cpuid` tells, and
//! the other vCPUs.

use std::sync::Arc;

use super::{
    Core,
    clock::{KvmClock, Tsc},
    lapic::{LocalApic, Router},
    peers::{Peer, Peers},
};
use crate::{Bus, CpuError, cpuid::Table};

/// What surrounds one core.
pub struct Platform {
    /// Its local APIC.
    pub apic: LocalApic,
    /// Its paravirtual clock.
    pub clock: KvmClock,
    /// The counter of all vCPUs.
    pub tsc: Arc<Tsc>,
    /// What `cpuid` tells.
    pub cpuid: Table,
    /// All vCPUs.
    pub(super) peers: Arc<Peers>,
    /// This one among them.
    pub(super) peer: Arc<Peer>,
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
        cpuid: Table,
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
        Self::new(0, &Common::new(), bus, Table::default())
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
        self.cannot_take_back();
        if self.platform.apic.base() == Some(address & !0xfff) {
            self.platform.apic.mmio_read(address & 0xfff, data);
        } else {
            self.bus.mmio_read(address, data);
        }
    }

    /// Writes what is not RAM.
    pub(super) fn device_write(&mut self, address: u64, data: &[u8]) {
        self.cannot_take_back();
        if self.platform.apic.base() == Some(address & !0xfff) {
            self.platform.apic.mmio_write(address & 0xfff, data);
        } else {
            self.bus.mmio_write(address, data);
        }
    }
}
