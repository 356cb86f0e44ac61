//! The guest's half of Berth's agent: one static program with a life for each way to boot.
//!
//! ```text
//!   /init of the initramfs        boot: file systems, modules, configuration, root, network
//!        │                          ├─ system ──────▶ the image's init is PID 1; `berth-agent serve` beside it
//!        └──────────────────────────┴─ application ─▶ stays PID 1: runs one program, serves, powers off
//!   /berth/agent of another one   starts `berth-agent beside`, and becomes the guest's own /init
//!   berth-agent serve             answers the host until the guest ends
//!   berth-agent ready             run by the image's init when all has started
//! ```
//! It runs as root in a guest and is the guest's own: it defends nobody against the guest. It keeps what
//! the host sends within the protocol's limits, and it never brings the guest down because a request
//! was wrong.

mod boot;
mod console;
mod reaper;
mod serve;
mod start;
mod users;
mod vsock;

use std::{io::Write, process::ExitCode};

/// Where the agent keeps what it needs at run time.
const RUN_DIRECTORY: &str = "/run/berth";

/// Exists when everything that starts at boot has started.
const READY_PATH: &str = "/run/berth/ready";

fn main() -> ExitCode {
    let mut arguments = std::env::args();
    let name = arguments.next().unwrap_or_default();
    if boot::beside::is_asked_for(&name) {
        return boot::beside::begin(arguments);
    }
    match arguments.next().as_deref() {
        Some("serve") => serve::run(),
        Some("beside") => boot::beside::run(),
        Some("ready") => {
            serve::notice::ready();
            ExitCode::SUCCESS
        }
        Some("--version") => {
            let text = concat!("berth-agent ", env!("CARGO_PKG_VERSION"));
            let written = writeln!(std::io::stdout().lock(), "{text}");
            written.map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS)
        }
        None if std::process::id() == 1 => boot::run(),
        // The kernel hands words of its command line that it does not know to PID 1.
        Some(_) if std::process::id() == 1 => boot::run(),
        _ => {
            let usage = "berth-agent runs inside Berth's virtual machines: as /init of an \
                         initramfs, or as `berth-agent serve`";
            // Nowhere else to say it.
            let _ = writeln!(std::io::stderr().lock(), "{name}: {usage}");
            ExitCode::FAILURE
        }
    }
}
