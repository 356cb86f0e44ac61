//! `/dev/kvm` itself: opened by whoever still may, checked, and then handed to a partition.
//!
//! A process that locks itself up opens it before, or gets it as a descriptor from whoever started it.
//! Nothing else in this backend opens a file.

use std::{
    io,
    os::fd::{FromRawFd, IntoRawFd, OwnedFd},
};

use kvm_bindings::{CpuId, KVM_API_VERSION, KVM_MAX_CPUID_ENTRIES};
use kvm_ioctls::{Cap, Kvm};

use super::refused;
use crate::CpuError;

/// Leaf of `cpuid` with the widths of addresses.
const WIDTHS: u32 = 0x8000_0008;
/// Width of a physical address where the hardware does not say (AMD APM 3, E.4.7).
const USUAL_PHYSICAL_BITS: u32 = 36;

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

/// An open `/dev/kvm` that has all that the backend needs.
pub struct KvmDevice {
    kvm: Kvm,
}

impl KvmDevice {
    /// Opens `/dev/kvm`.
    ///
    /// # Errors
    /// When there is none, it may not be used, or it lacks something.
    pub fn open() -> Result<Self, CpuError> {
        let kvm = Kvm::new().map_err(refused("open /dev/kvm"))?;
        Self::checked(kvm)
    }

    /// Takes one that is open.
    ///
    /// # Errors
    /// When it is something else, or lacks something.
    pub fn from_fd(fd: OwnedFd) -> Result<Self, CpuError> {
        // SAFETY: the descriptor is owned here and given away; whatever it is of, requests to it are
        // checked by the kernel, the first of them below.
        Self::checked(unsafe { Kvm::from_raw_fd(fd.into_raw_fd()) })
    }

    fn checked(kvm: Kvm) -> Result<Self, CpuError> {
        let unusable = |what: String| CpuError::System {
            what: "use KVM",
            source: io::Error::new(io::ErrorKind::Unsupported, what),
        };
        match kvm.get_api_version() {
            version if version == KVM_API_VERSION as i32 => {}
            ..0 => return Err(unusable("what was opened is not /dev/kvm".to_owned())),
            version => {
                let text = format!("its interface has version {version}, not {KVM_API_VERSION}");
                return Err(unusable(text));
            }
        }
        match NEEDED.iter().find(|(cap, _)| !kvm.check_extension(*cap)) {
            Some((_, name)) => Err(unusable(format!("it lacks {name}"))),
            None => Ok(Self { kvm }),
        }
    }

    /// What the kernel and the hardware can show a guest, for whoever makes a `cpuid`.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn supported_cpuid(&self) -> Result<CpuId, CpuError> {
        self.kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(refused("KVM_GET_SUPPORTED_CPUID"))
    }

    pub(super) fn into_inner(self) -> Kvm {
        self.kvm
    }
}

impl std::fmt::Debug for KvmDevice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KvmDevice").finish_non_exhaustive()
    }
}

/// How many bits a guest's physical address may have: the hardware walks its tables, so a wider one would
/// fault where the guest expects memory.
#[must_use]
pub fn physical_bits(supported: &CpuId) -> u32 {
    let mut entries = supported.as_slice().iter();
    let widths = entries.find(|it| it.function == WIDTHS);
    match widths.map(|it| it.eax & 0xff) {
        None | Some(0) => USUAL_PHYSICAL_BITS,
        Some(bits) => bits,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use kvm_bindings::kvm_cpuid_entry2;

    use super::*;

    #[test]
    fn what_is_not_kvm_is_told_from_it() {
        let file = std::fs::File::open("/dev/null").unwrap();
        let error = KvmDevice::from_fd(file.into()).unwrap_err();
        let source = std::error::Error::source(&error).unwrap().to_string();
        assert_eq!(source, "what was opened is not /dev/kvm");
    }

    #[test]
    fn the_width_of_addresses_is_the_hosts() {
        let table = |eax| {
            let entry = kvm_cpuid_entry2 {
                function: WIDTHS,
                eax,
                ..kvm_cpuid_entry2::default()
            };
            CpuId::from_entries(&[entry]).unwrap()
        };
        assert_eq!(physical_bits(&table(0x3027)), 39);
        assert_eq!(physical_bits(&table(0)), 36);
        assert_eq!(physical_bits(&CpuId::new(0).unwrap()), 36);
    }
}
