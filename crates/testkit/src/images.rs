//! Images that many tests need: made once, kept between runs, lent to each daemon.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::ensure;

use crate::Daemon;

/// A root whose images are made: by `make`, with a daemon that reaches what the host reaches, if
/// `cache` has none called `name` yet. For [`Daemon::lend_images`]. Tests that ask at once wait for one.
///
/// # Errors
/// When they cannot be made; the next caller tries again.
pub fn images(
    berth: &Path,
    cache: &Path,
    name: &str,
    make: impl FnOnce(&Daemon) -> anyhow::Result<()>,
) -> anyhow::Result<PathBuf> {
    fs::create_dir_all(cache)?;
    let turn = fs::File::create(cache.join(format!("{name}.lock")))?;
    // Given back when dropped.
    turn.lock()?;
    let made = cache.join(name);
    if made.exists() {
        return Ok(made);
    }
    let mut daemon = Daemon::new(berth, &[])?.in_host_network();
    daemon.restart()?;
    make(&daemon)?;
    daemon.stop();
    let fresh = cache.join(format!("{name}.new"));
    let _ = fs::remove_dir_all(&fresh);
    fs::create_dir(&fresh)?;
    let mut copy = Command::new("cp");
    copy.arg("-a").arg(daemon.root().join("images")).arg(&fresh);
    ensure!(copy.status()?.success(), "{copy:?} failed");
    fs::rename(&fresh, &made)?;
    Ok(made)
}
