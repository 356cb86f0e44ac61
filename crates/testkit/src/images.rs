//! Images that many tests need: made once, kept between runs, lent to each daemon.

use std::{
    fs,
    hash::{DefaultHasher, Hasher as _},
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
    images_of(berth, cache, name, &[], make)
}

/// As [`images`], for images that programs of this tree go into: made anew when one of those is
/// another than when they were made.
///
/// # Errors
/// As [`images`], and when a program cannot be read.
pub fn images_of(
    berth: &Path,
    cache: &Path,
    name: &str,
    programs: &[&Path],
    make: impl FnOnce(&Daemon) -> anyhow::Result<()>,
) -> anyhow::Result<PathBuf> {
    fs::create_dir_all(cache)?;
    let turn = fs::File::create(cache.join(format!("{name}.lock")))?;
    // Given back when dropped.
    turn.lock()?;
    let made = cache.join(name);
    let mark = mark(programs)?;
    if fs::read_to_string(made.join(MARK)).unwrap_or_default() == mark && made.exists() {
        return Ok(made);
    }
    let _ = fs::remove_dir_all(&made);
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
    fs::write(fresh.join(MARK), mark)?;
    fs::rename(&fresh, &made)?;
    Ok(made)
}

/// Says of which programs the images beside it were made.
const MARK: &str = "made-of";

fn mark(programs: &[&Path]) -> anyhow::Result<String> {
    let mut hasher = DefaultHasher::new();
    for program in programs {
        hasher.write(&fs::read(program)?);
    }
    Ok(format!("{:016x}", hasher.finish()))
}
