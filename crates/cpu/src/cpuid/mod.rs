//! What `cpuid` tells a guest, as data: the same processor whatever runs it.
//!
//! ```text
//!  Features::soft() / of_kvm() ─┐
//!  Level (v1, v2, v3, host) ────┼─► Profile ─► table(vCPU) ─► Table: lookup, to_kvm
//!  vCPUs, counter's rate ───────┘
//! ```
//! It is an AMD processor of the second Zen generation, because kernels isolate no page tables on
//! those, and says of itself that it needs no mitigation of side channels: those of the host are
//! the host's business. Beside it are the leaves of a KVM guest, so that kernels use kvmclock and
//! calibrate nothing (AMD APM 3, appendix E; Linux, Documentation/virt/kvm/x86/cpuid.rst).
//!
//! What depends on the moment (OSXSAVE, the size of the XSAVE area) is up to who executes the
//! instruction.

mod features;
mod profile;
mod table;
#[cfg(test)]
mod tests;

pub use features::{Features, Level};
pub use profile::Profile;
pub use table::{Leaf, Table};
