//! Guest memory: where it lies ([`layout`]), the memory itself ([`Ram`]), and what is known of its
//! pages ([`Pages`]): written since asked, and holding code somebody keeps a translation of.
//!
//! Devices use it through [`GuestMemory`] of rust-vmm, vCPUs through host addresses; both mark the
//! pages they write. It never looks at what the pages hold.

pub mod layout;
mod pages;
mod ram;

pub use pages::{PageLog, Pages};
pub use ram::{Ram, RamError, Region};

/// Bytes of a page.
pub const PAGE_BYTES: u64 = 4096;

/// Guest memory as devices see it; every write marks its pages.
pub type GuestMemory = vm_memory::GuestMemoryMmap<PageLog>;
