//! The agent's first life: `/init` of the initramfs.
//!
//! ```text
//!   kernel's file systems → modules → configuration → root, entered → mounts, network, files → start
//! ```
//! Runs once, alone, as PID 1. Whatever fails is said on the console with its cause and ends the guest:
//! a machine that cannot come up must not look as if it ran.

pub mod beside;
mod files;
mod kernel;
mod netlink;
mod network;
mod root;
mod ssh;

use std::{
    io,
    path::{Path, PathBuf},
    process::ExitCode,
};

use agent::config::{Config, ConfigError};

pub use files::networkd;

use crate::{
    console::{chain, say},
    start,
};

/// Where the guest's root file system is put together.
const SYSROOT: &str = "/sysroot";

/// Coming up failed.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// A file system cannot be mounted.
    #[error("cannot mount {what} on {target}")]
    Mount {
        /// What.
        what: String,
        /// Where.
        target: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The host did not attach what the configuration names.
    #[error("no {what} {name:?} appeared within {seconds} s")]
    Absent {
        /// What kind of thing.
        what: &'static str,
        /// Its name.
        name: String,
        /// How long it was waited for.
        seconds: u64,
    },
    /// A file of the guest cannot be read, written or made.
    #[error("cannot {action} {}", path.display())]
    File {
        /// What was tried, as a verb.
        action: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The host's configuration cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// An interface cannot be set up.
    #[error("cannot set up the network interface {interface}: {action}")]
    Network {
        /// Which.
        interface: String,
        /// What was tried.
        action: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The program or init to hand over to cannot be started.
    #[error("cannot start {program}")]
    Start {
        /// Which.
        program: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The image has no init.
    #[error(
        "the image has no init ({0}): it holds an application, not a system; use `berth run --vm`, \
         or an image with systemd or busybox init"
    )]
    NoInit(String),
}

/// `.map_err(at("open", path))` for I/O results.
pub fn at<E: Into<io::Error>>(
    action: &'static str,
    path: impl AsRef<Path>,
) -> impl FnOnce(E) -> BootError {
    let path = path.as_ref().to_owned();
    move |source| BootError::File {
        action,
        path,
        source: source.into(),
    }
}

/// Brings the guest up. Returns only if there is nothing left but to power off.
pub fn run() -> ExitCode {
    if let Err(error) = bring_up() {
        say(&format!("the guest cannot come up: {}", chain(&error)));
    }
    crate::serve::power::off();
    ExitCode::FAILURE
}

fn bring_up() -> Result<(), BootError> {
    kernel::mount_file_systems()?;
    kernel::load_modules()?;
    let config = read_config()?;
    let sysroot = Path::new(SYSROOT);
    root::mount(&config, sysroot)?;
    files::keep_agent()?;
    root::enter(sysroot)?;
    // From here on paths mean what the guest's own programs mean by them, links of the image included.
    root::mount_further(&config.mounts)?;
    network::bring_up(&config.interfaces)?;
    files::write(&config)?;
    if let Some(ssh) = &config.ssh {
        ssh::authorize(ssh, Path::new("/"));
    }
    for (key, value) in &config.sysctls {
        kernel::set_parameter(key, value)?;
    }
    start::run(&config)
}

fn read_config() -> Result<Config, BootError> {
    let path = agent::CONFIG_PATH;
    let bytes = std::fs::read(path).map_err(at("read", path))?;
    Ok(Config::from_json(&bytes)?)
}
