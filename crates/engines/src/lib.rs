//! Adapters: what runs instances, behind the [`engine::Engine`] trait. Only the binary's
//! composition root names them.

#![forbid(unsafe_code)]

pub mod container;
mod machine;
