//! The interface of both backends.

use std::sync::Arc;

use crate::{CpuError, Msi, VcpuState, soft::translate::Counters};

/// What executes guest code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// The hardware, by the kernel's KVM.
    Kvm,
    /// Our own software CPU.
    Soft,
}

/// The vCPUs that share one RAM and one bus.
pub trait Partition: Send + Sync {
    /// What executes them.
    fn backend(&self) -> Backend;

    /// Makes the vCPU with this index, which is also its APIC id. Index 0 is the bootstrap
    /// processor: it waits for [`Vcpu::set_state`] and then runs; all others wait for INIT and
    /// SIPI.
    ///
    /// # Errors
    /// When the kernel refuses, or the index was taken already.
    fn create_vcpu(&self, index: u32) -> Result<Box<dyn Vcpu>, CpuError>;

    /// Delivers an interrupt. Never waits.
    ///
    /// # Errors
    /// When the kernel refuses; a destination that does not exist is no error.
    fn signal_msi(&self, msi: Msi) -> Result<(), CpuError>;

    /// Instructions executed so far by all vCPUs, where the backend counts them; lags behind while
    /// they run.
    fn instructions(&self) -> Option<u64> {
        None
    }

    /// What happened how often on each vCPU so far, in the order they were made in, where the
    /// backend counts; may be called at any time.
    fn counters(&self) -> Option<Vec<Counters>> {
        None
    }
}

/// Why [`Vcpu::run`] came back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Exit {
    /// [`Kick::kick`] was called. Its state can be saved; running again goes on where it was.
    Kicked,
    /// A triple fault: the processor shut down. A physical machine would be reset.
    Shutdown,
}

/// One vCPU. It is run by one thread, to which it stays bound.
pub trait Vcpu: Send {
    /// Its index and APIC id.
    fn index(&self) -> u32;

    /// What brings [`Vcpu::run`] back from any thread.
    fn kicker(&self) -> Arc<dyn Kick>;

    /// Runs guest code. Waiting for an interrupt after `hlt`, and for a SIPI, happens inside.
    ///
    /// # Errors
    /// When the guest did what this CPU cannot follow, or the kernel failed: the guest is lost.
    fn run(&mut self) -> Result<Exit, CpuError>;

    /// Everything architectural, while it does not run.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn state(&self) -> Result<VcpuState, CpuError>;

    /// Replaces everything architectural.
    ///
    /// # Errors
    /// When a part makes no sense for this backend, or the kernel refuses.
    fn set_state(&mut self, state: &VcpuState) -> Result<(), CpuError>;
}

/// Brings a vCPU back from [`Vcpu::run`].
pub trait Kick: Send + Sync {
    /// Makes the current or the next call of [`Vcpu::run`] return [`Exit::Kicked`] soon; once,
    /// however often it was called before.
    fn kick(&self);
}
