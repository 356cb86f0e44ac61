//! The daemon's log: text for people or JSON for machines, on standard error, where systemd and
//! terminals both find it.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use crate::cli::daemon::{DaemonArgs, LogFormat};

/// Starts logging.
pub(super) fn start(args: &DaemonArgs) {
    let filter = EnvFilter::try_new(&args.log).unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    match args.log_format {
        LogFormat::Json => log.json().init(),
        LogFormat::Text => {
            let color = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
            log.with_ansi(color).init();
        }
    }
}
