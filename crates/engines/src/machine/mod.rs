//! Virtual machines: the process `berth-vmm`, jailed in a container of its own.
//!
//! ```text
//!  Guest with a machine ─▶ jail: Guest without ─▶ the container adapter ─▶ shim ─▶ berth-vmm
//!                          guests/<id>/vm/ ──────────── /vm inside the jail:
//!                              vm.json, guest.cpio        what it is, what the guest is told
//!                              vsock ◀── exec, files, usage: the agent in the guest
//!                              control ◀── what executes it and how: berth-vmm itself
//! ```
//! To all that follows processes, a machine is its process: its control group, its end, its output
//! and its terminal are those of `berth-vmm`, which passes signals and input on and ends with the
//! guest's exit code. So everything a container has, a machine has, by the same code, and a machine
//! is shut in as a container is. What only the inside knows is asked of the agent there; what it
//! answers is the guest's word and never trusted.

mod agent;
mod config;
mod control;
pub(crate) mod files;
mod jail;
mod limits;
mod session;

use std::{
    io,
    path::{Path, PathBuf},
};

use engine::{Guest, GuestMachine};
use model::instance::Limits;

pub(crate) use agent::{Agent, AgentError};
pub(crate) use control::{ControlError, cpu_stats};
pub(crate) use jail::jail;
pub(crate) use session::{exec, processes};

/// Directory of a guest's own in which the jail and the host meet.
const DIRECTORY: &str = "vm";

/// Where that directory is, for a guest whose files are in `guest`.
fn directory(guest: &Path) -> PathBuf {
    guest.join(DIRECTORY)
}

/// Whether the guest whose files are in `guest` is a virtual machine.
pub(crate) fn is_one(guest: &Path) -> bool {
    directory(guest).join(config::FILE).exists()
}

/// The limits of a machine's process that runs, for what is asked of the instance. The guest's memory
/// and vCPUs stay those it was started with.
pub(crate) fn live_limits(guest: &Path, asked: &Limits) -> io::Result<Limits> {
    let started = config::Started::read(&directory(guest))?;
    Ok(limits::of_group(asked, started.memory_bytes, started.vcpus))
}

/// Has a machine that is about to start do so with the limits it has now; whether those are others
/// than it was prepared for.
pub(crate) fn renew(guest: &Guest, machine: &GuestMachine, directory: &Path) -> io::Result<bool> {
    config::renew(guest, machine, &self::directory(directory))
}

/// Has the process of a machine that runs keep to other limits of its devices and vCPUs.
pub(crate) async fn set_limits(guest: &Path, asked: &Limits) -> Result<(), ControlError> {
    let started = config::Started::read(&directory(guest))?;
    let request = limits::request(asked, &started);
    control::order(guest, &request).await
}

/// The socket on which the machine's process itself is asked.
fn control_socket(guest: &Path) -> PathBuf {
    directory(guest).join(config::CONTROL)
}

/// The socket that leads to ports inside the guest.
fn socket(guest: &Path) -> PathBuf {
    directory(guest).join(config::SOCKET)
}
