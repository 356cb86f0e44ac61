//! Which model-specific registers are saved, and in which order they are put back.

use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::{Kvm, VcpuFd};

use super::refused;
use crate::CpuError;

/// `IA32_TSC`.
const TSC: u32 = 0x10;
/// `IA32_TSC_DEADLINE`.
const TSC_DEADLINE: u32 = 0x6e0;
/// `IA32_APIC_BASE`: part of the special registers in KVM's interface.
const APIC_BASE: u32 = 0x1b;
/// `IA32_EFER`: likewise.
const EFER: u32 = 0xc000_0080;
/// Most registers in one call (`MAX_IO_MSRS` of the kernel).
const AT_ONCE: usize = 256;

/// The registers this kernel saves, for what they are now. One that cannot be read is left out: the
/// list names what the kernel knows, not what this vCPU's `cpuid` gives it.
pub(super) fn read(kvm: &Kvm, fd: &VcpuFd) -> Result<Vec<(u32, u64)>, CpuError> {
    let list = kvm
        .get_msr_index_list()
        .map_err(refused("KVM_GET_MSR_INDEX_LIST"))?;
    let wanted: Vec<u32> = list
        .as_slice()
        .iter()
        .copied()
        .filter(|index| ![APIC_BASE, EFER].contains(index))
        .collect();
    let mut found = Vec::with_capacity(wanted.len());
    let mut rest = wanted.as_slice();
    while !rest.is_empty() {
        let entries: Vec<kvm_msr_entry> = rest.iter().take(AT_ONCE).map(|i| entry(*i, 0)).collect();
        let mut msrs = collection(&entries);
        let count = fd.get_msrs(&mut msrs).map_err(refused("KVM_GET_MSRS"))?;
        let read = &msrs.as_slice()[..count];
        found.extend(read.iter().map(|entry| (entry.index, entry.data)));
        // It stops at the first that it refuses.
        rest = &rest[(count + usize::from(count < entries.len())).min(rest.len())..];
    }
    Ok(found)
}

/// Puts registers back: the deadline after the clock it is measured by. Gives those that were
/// refused: a guest moved from a host with more of them goes on without.
pub(super) fn write(fd: &VcpuFd, msrs: &[(u32, u64)]) -> Result<Vec<u32>, CpuError> {
    let order = |index: u32| match index {
        TSC => 0,
        TSC_DEADLINE => 2,
        _ => 1,
    };
    let mut sorted = msrs.to_vec();
    sorted.sort_by_key(|(index, _)| order(*index));
    let entries: Vec<kvm_msr_entry> = sorted.iter().map(|(i, value)| entry(*i, *value)).collect();
    let mut refused_ones = Vec::new();
    let mut rest = entries.as_slice();
    while !rest.is_empty() {
        let now = &rest[..rest.len().min(AT_ONCE)];
        let count = fd
            .set_msrs(&collection(now))
            .map_err(refused("KVM_SET_MSRS"))?;
        if count < now.len() {
            refused_ones.push(now[count].index);
        }
        rest = &rest[(count + usize::from(count < now.len())).min(rest.len())..];
    }
    Ok(refused_ones)
}

fn entry(index: u32, data: u64) -> kvm_msr_entry {
    kvm_msr_entry {
        index,
        data,
        ..kvm_msr_entry::default()
    }
}

fn collection(entries: &[kvm_msr_entry]) -> Msrs {
    Msrs::from_entries(entries).expect("far fewer entries than the collection may hold")
}
