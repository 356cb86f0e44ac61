//! A KVM virtual machine: memory slots and the split interrupt controller.

use std::{os::fd::AsRawFd, sync::Arc};

use kvm_bindings::{
    CpuId, KVM_CAP_SPLIT_IRQCHIP, KVM_CAP_X2APIC_API, KVM_MSI_VALID_DEVID,
    KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK, KVM_X2APIC_API_USE_32BIT_IDS, kvm_enable_cap, kvm_msi,
    kvm_userspace_memory_region,
};
use kvm_ioctls::{Kvm, VmFd};
use memory::Ram;

use super::{KvmDevice, refused, vcpu::KvmVcpu};
use crate::{Backend, Bus, CpuError, Msi, Partition, Vcpu};

/// Pins of the IOAPIC, which is ours.
const IOAPIC_PINS: u64 = 24;
/// Three pages the kernel needs on old Intel processors, at an address where a PC has its firmware
/// and a guest of ours has nothing.
const TSS_ADDRESS: usize = 0xfffb_d000;
/// One page likewise.
const IDENTITY_MAP_ADDRESS: u64 = 0xfffb_c000;
/// Most vCPUs the kernel can name.
pub const MAX_IDS: u32 = 4096;

/// vCPUs on KVM.
pub struct KvmPartition {
    shared: Arc<Shared>,
}

/// What vCPUs share with their partition.
pub(super) struct Shared {
    pub(super) kvm: Kvm,
    pub(super) vm: VmFd,
    pub(super) bus: Arc<dyn Bus>,
    /// What `cpuid` answers, but for what differs between vCPUs.
    pub(super) cpuid: Box<dyn Fn(u32) -> CpuId + Send + Sync>,
    /// Mapped by the slots for as long as the machine exists.
    _ram: Ram,
}

impl KvmPartition {
    /// A machine of `device` with `ram` and `bus`. `cpuid` says what each vCPU, by its index, answers; it is
    /// bounded by what the kernel supports by whoever makes it.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn new(
        device: KvmDevice,
        ram: &Ram,
        bus: Arc<dyn Bus>,
        cpuid: impl Fn(u32) -> CpuId + Send + Sync + 'static,
    ) -> Result<Self, CpuError> {
        let kvm = device.into_inner();
        let vm = kvm.create_vm().map_err(refused("KVM_CREATE_VM"))?;
        // Both before the first vCPU (api.rst, 4.35 and 4.41).
        vm.set_tss_address(TSS_ADDRESS)
            .map_err(refused("KVM_SET_TSS_ADDR"))?;
        vm.set_identity_map_address(IDENTITY_MAP_ADDRESS)
            .map_err(refused("KVM_SET_IDENTITY_MAP_ADDR"))?;
        split_interrupt_controller(&vm)?;
        map(&vm, ram)?;
        Ok(Self {
            shared: Arc::new(Shared {
                kvm,
                vm,
                bus,
                cpuid: Box::new(cpuid),
                _ram: ram.clone(),
            }),
        })
    }
}

fn split_interrupt_controller(vm: &VmFd) -> Result<(), CpuError> {
    let split = kvm_enable_cap {
        cap: KVM_CAP_SPLIT_IRQCHIP,
        args: [IOAPIC_PINS, 0, 0, 0],
        ..kvm_enable_cap::default()
    };
    vm.enable_cap(&split)
        .map_err(refused("KVM_CAP_SPLIT_IRQCHIP"))?;
    // Destinations above 255, and no broadcast by the id 255 (api.rst, 7.7).
    let ids = KVM_X2APIC_API_USE_32BIT_IDS | KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK;
    let wide = kvm_enable_cap {
        cap: KVM_CAP_X2APIC_API,
        args: [u64::from(ids), 0, 0, 0],
        ..kvm_enable_cap::default()
    };
    vm.enable_cap(&wide).map_err(refused("KVM_CAP_X2APIC_API"))
}

fn map(vm: &VmFd, ram: &Ram) -> Result<(), CpuError> {
    for (slot, region) in ram.regions().iter().enumerate() {
        let region = kvm_userspace_memory_region {
            slot: slot as u32,
            flags: 0,
            guest_phys_addr: region.start,
            memory_size: region.bytes,
            userspace_addr: region.host.as_ptr() as u64,
        };
        // SAFETY: the region is mapped, and stays so: the partition keeps the RAM.
        unsafe { vm.set_user_memory_region(region) }
            .map_err(refused("KVM_SET_USER_MEMORY_REGION"))?;
    }
    Ok(())
}

impl Partition for KvmPartition {
    fn backend(&self) -> Backend {
        Backend::Kvm
    }

    fn create_vcpu(&self, index: u32) -> Result<Box<dyn Vcpu>, CpuError> {
        Ok(Box::new(KvmVcpu::new(Arc::clone(&self.shared), index)?))
    }

    fn signal_msi(&self, msi: Msi) -> Result<(), CpuError> {
        let msi = kvm_msi {
            address_lo: msi.address as u32,
            address_hi: (msi.address >> 32) as u32,
            data: msi.data,
            ..kvm_msi::default()
        };
        debug_assert_eq!(msi.flags & KVM_MSI_VALID_DEVID, 0);
        // The answer counts destinations: none is no error.
        self.shared
            .vm
            .signal_msi(msi)
            .map(drop)
            .map_err(refused("KVM_SIGNAL_MSI"))
    }
}

impl std::fmt::Debug for KvmPartition {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KvmPartition")
            .field("vm", &self.shared.vm.as_raw_fd())
            .finish_non_exhaustive()
    }
}
