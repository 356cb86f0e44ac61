//! A KVM virtual machine: memory slots and the split interrupt controller.

use std::{os::fd::AsRawFd, sync::Arc};

use kvm_bindings::{
    CpuId, KVM_API_VERSION, KVM_CAP_SPLIT_IRQCHIP, KVM_CAP_X2APIC_API, KVM_MSI_VALID_DEVID,
    KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK, KVM_X2APIC_API_USE_32BIT_IDS, kvm_enable_cap, kvm_msi,
    kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, Kvm, VmFd};
use memory::Ram;

use super::{refused, vcpu::KvmVcpu};
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

/// What the backend cannot be without, and what for.
const NEEDED: [(Cap, &str); 10] = [
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::SplitIrqchip, "KVM_CAP_SPLIT_IRQCHIP"),
    (Cap::SignalMsi, "KVM_CAP_SIGNAL_MSI"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
    (Cap::MpState, "KVM_CAP_MP_STATE"),
    (Cap::VcpuEvents, "KVM_CAP_VCPU_EVENTS"),
    (Cap::Debugregs, "KVM_CAP_DEBUGREGS"),
    (Cap::Xsave, "KVM_CAP_XSAVE"),
    (Cap::Xcrs, "KVM_CAP_XCRS"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
];

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
    /// A machine with `ram` and `bus`. `cpuid` says what each vCPU, by its index, answers; it is
    /// bounded by what the kernel supports by whoever makes it.
    ///
    /// # Errors
    /// When there is no KVM, it lacks something, or it refuses.
    pub fn new(
        ram: &Ram,
        bus: Arc<dyn Bus>,
        cpuid: impl Fn(u32) -> CpuId + Send + Sync + 'static,
    ) -> Result<Self, CpuError> {
        let kvm = Kvm::new().map_err(refused("open /dev/kvm"))?;
        check(&kvm)?;
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

    /// What the kernel and the hardware can show a guest, for whoever makes a `cpuid`.
    ///
    /// # Errors
    /// When there is no KVM or it refuses.
    pub fn supported_cpuid() -> Result<CpuId, CpuError> {
        let kvm = Kvm::new().map_err(refused("open /dev/kvm"))?;
        kvm.get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES)
            .map_err(refused("KVM_GET_SUPPORTED_CPUID"))
    }
}

fn check(kvm: &Kvm) -> Result<(), CpuError> {
    let missing = |what: String| CpuError::System {
        what: "use KVM",
        source: std::io::Error::new(std::io::ErrorKind::Unsupported, what),
    };
    let version = kvm.get_api_version();
    if version != KVM_API_VERSION as i32 {
        let text = format!("its interface has version {version}, not {KVM_API_VERSION}");
        return Err(missing(text));
    }
    match NEEDED.iter().find(|(cap, _)| !kvm.check_extension(*cap)) {
        Some((_, name)) => Err(missing(format!("it lacks {name}"))),
        None => Ok(()),
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
