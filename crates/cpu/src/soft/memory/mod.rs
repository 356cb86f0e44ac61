//! Guest memory as instructions see it: linear addresses, checked, translated and cached.
//!
//! ```text
//!  segment:offset ─ access ─► linear ─ tlb ─► host address
//!                               │ miss
//!                               └─ walk ─► physical ─► RAM (entered into the tlb) or device
//! ```
//! Handlers call the methods of [`super::Core`] that `access` defines, nothing below.

pub mod access;
pub(in crate::soft) mod journal;
pub mod tlb;
pub mod walk;
