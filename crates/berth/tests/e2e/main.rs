//! The whole house on a real kernel: a daemon in a namespace of its own, driven by its command line,
//! with real images, real programs and real crashes.
//!
//! Each test has its own daemon ([`testkit::Daemon`]) and fails if anything of it is left on the host.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod cloud;
mod common;
mod crash;
mod customize;
mod debian;
mod disk;
mod images;
mod lifecycle;
mod limits;
mod machine;
mod network;
mod rates;
mod recover;
mod refusals;
mod resume;
mod software;
mod systemd;
mod terminal;
mod tokens;
mod unified;
mod volumes;
