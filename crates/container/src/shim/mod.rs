//! The shim: one small process per container, which is its parent, owns its streams, keeps its log,
//! records its end, and outlives the daemon.
//!
//! The daemon writes `DIR/shim.json`, runs `berth-oci shim --dir DIR`, and talks to `DIR/shim.sock`.
//!
//! ```text
//!  daemon ── shim --dir DIR ──► launcher ──fork──► shim (own session, single thread, epoll)
//!     ▲                            │                 │ locks DIR/lock, creates the container,
//!     └── {"pid":…} or an error ◄──┘ ◄── one line ───┤ opens DIR/shim.sock
//!                                                    ▼
//!                     Created ──start──► Running ◄─pause/resume─► Paused
//!                        └──────────────────┴───── first process exits ─────┘
//!   drain output → exit record on disk → remove group and state → unlink, unlock → tell clients, go
//! ```
//!
//! What is in `DIR` (mode 0700): `shim.json` (the daemon's), `lock` (held while a shim lives),
//! `shim.sock`, `shim.err` (what a dying shim says), and, if the disk with the exit record fails,
//! `exit.json` instead of it.
//!
//! The container's first process is killed by the kernel when its shim dies. What such a death
//! leaves (group, state, socket) is removed by [`cleanup`], which the daemon calls.
//!
//! Knows nothing of images, networks or restarts. Never uses threads or an async runtime: 500 of
//! these run on a host, and each should cost the kernel's objects and little more.

mod cleanup;
pub mod client;
mod clock;
mod config;
mod durable;
mod exit;
mod launch;
mod lock;
mod log;
pub mod logs;
pub mod protocol;
mod server;

use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;

pub use cleanup::{CleanupError, cleanup};
pub use clock::{Timestamp, TimestampError};
pub use config::{CONFIG_FILE, CONFIG_VERSION, ConfigError, LogConfig, Rootfs, ShimConfig};
pub use durable::FileError;
pub use exit::{EXIT_VERSION, ExitError, ExitRecord, Usage};
pub use launch::{LaunchError, Launched};
pub use lock::holder;
pub use log::Stream;

/// The socket's name in the shim's directory.
pub const SOCKET_FILE: &str = "shim.sock";
/// Where the exit record goes if its own place takes nothing.
pub const FALLBACK_EXIT_FILE: &str = "exit.json";

/// Fuzz target: every parser of this module.
#[doc(hidden)]
pub fn fuzz(data: &[u8]) {
    protocol::fuzz(data);
    let _ = logs::Record::parse(data);
    let _ = Timestamp::from_bytes(data);
    let _ = serde_json::from_slice::<ShimConfig>(data);
    let _ = serde_json::from_slice::<ExitRecord>(data);
}

const USAGE: &str = "usage: berth-oci shim --dir DIR\n\n\
    Creates the container that DIR/shim.json describes, stays its parent in the background, and\n\
    prints {\"pid\":…,\"shim_pid\":…} once it is created. Meant for the daemon.\n";

/// Runs `berth-oci shim` with the arguments behind that word; returns the exit status. The launching
/// process returns when the container is created or could not be (126 or 127 if only for want of a program
/// that can be executed, as shells have it); the forked shim returns when all is over. The process must have a single thread.
pub fn main(args: impl IntoIterator<Item = OsString>) -> u8 {
    let mut args = args.into_iter();
    let mut dir = None;
    while let Some(arg) = args.next() {
        match arg.to_str() {
            Some("--dir") => dir = args.next().map(PathBuf::from),
            Some("--help" | "-h") => {
                let _ = std::io::stdout().lock().write_all(USAGE.as_bytes());
                return 0;
            }
            _ => {
                dir = None;
                break;
            }
        }
    }
    let Some(dir) = dir else {
        let _ = std::io::stderr().lock().write_all(USAGE.as_bytes());
        return 2;
    };
    match launch::launch(&dir) {
        Ok(launch::Role::Launcher(launched)) => {
            let line = serde_json::to_string(&launched).unwrap_or_default();
            let _ = writeln!(std::io::stdout().lock(), "{line}");
            0
        }
        Ok(launch::Role::Shim) => 0,
        Err(error) => {
            let _ = writeln!(std::io::stderr().lock(), "{}", crate::chain(&error));
            match error {
                LaunchError::Reported {
                    program_status: Some(status),
                    ..
                } => status,
                _ => 1,
            }
        }
    }
}
