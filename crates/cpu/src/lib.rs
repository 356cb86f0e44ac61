//! A virtual CPU with its local APIC, behind one interface and from two backends: KVM, where the
//! hardware gives it ([`kvm`]), and our own software CPU, where it does not ([`soft`]).
//!
//! ```text
//!  vmm ── Partition ── create_vcpu ──► Vcpu::run on a thread of its own
//!           ▲  │                          │
//!   devices │  └─ signal_msi ─► local APICs of all vCPUs
//!           └───── Bus ◄── port and memory accesses that are not RAM
//! ```
//! A partition is the set of vCPUs that share RAM and a bus. The crate knows no device: whatever is
//! not RAM goes to the [`Bus`]; whatever interrupts comes as a message-signalled interrupt
//! ([`Msi`]). [`VcpuState`] is the same for both backends, so a machine saved on one goes on on the
//! other.

mod bus;
pub mod cpuid;
mod error;
#[doc(hidden)]
pub mod fuzzing;
pub mod kvm;
pub mod soft;
pub mod state;
mod vcpu;

pub use bus::{Bus, Msi};
pub use error::CpuError;
pub use state::VcpuState;
pub use vcpu::{Backend, Exit, Kick, Partition, Vcpu};
