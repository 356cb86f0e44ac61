//! What runs inside a virtual machine for Berth, and how the host speaks to it.
//!
//! ```text
//!   host                                     guest
//!   Config ──/berth/config.json in initrd──▶ berth-agent as /init: modules, root, network
//!                                                │ hands over to the image's init, or stays PID 1
//!   Client ──vsock port 1024, one request──────▶ berth-agent serving: exec, files, power, clock, …
//!          ◀─────vsock port 1025, notices─────── ready, exited
//! ```
//! The library is the host's half: [`config`] is what a guest is told at boot, [`protocol`] the wire
//! format as pure functions, [`client`] a blocking client over any stream. The binary `berth-agent` is
//! the guest's half; it is static and travels in the initramfs, so a guest always has the agent of its
//! host's version and an image needs nothing installed.
//!
//! Nothing a guest says is trusted: every length has a limit, text is checked, and no answer names a
//! file of the host. The library knows nothing of virtual machine monitors, engines and the store.
#![forbid(unsafe_code)]

pub mod client;
pub mod config;
#[doc(hidden)]
pub mod fuzzing;
pub mod protocol;

/// The vsock port an agent listens on.
pub const AGENT_PORT: u32 = 1024;

/// The vsock port of the host that agents tell their notices to.
pub const NOTICE_PORT: u32 = 1025;

/// The virtio-console port an agent also listens on, for hosts without vsock.
pub const CONSOLE_PORT_NAME: &str = "org.berth.agent.0";

/// Where a guest finds its [`config::Config`] in the initramfs.
pub const CONFIG_PATH: &str = "/berth/config.json";

/// Where a guest finds the modules to load, one file name a line, in the order to load them; the
/// files lie beside it. `<this>-<file system>` lists those that one kind of file system needs more.
pub const MODULE_LIST_PATH: &str = "/berth/modules/order";
