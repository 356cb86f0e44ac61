//! Why a vCPU cannot go on, or cannot be had.

/// What went wrong with a vCPU or a partition. A guest cannot cause one by what it executes, with
/// the exception of [`CpuError::Unsupported`].
#[derive(Debug, thiserror::Error)]
pub enum CpuError {
    /// The kernel refused a call of its KVM interface.
    #[error("KVM: {call}")]
    Kvm {
        /// Which.
        call: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// The kernel refused something else.
    #[error("{what}")]
    System {
        /// What was attempted.
        what: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// The guest executed something this CPU does not have and cannot refuse in the guest's own
    /// terms.
    #[error("vCPU {index} cannot execute {what} at {rip:#x}")]
    Unsupported {
        /// Which vCPU.
        index: u32,
        /// What it met.
        what: String,
        /// Where.
        rip: u64,
    },
    /// A saved state that this backend cannot take.
    #[error("the saved state of vCPU {index} cannot be taken: {reason}")]
    State {
        /// Which vCPU.
        index: u32,
        /// Why.
        reason: String,
    },
}
