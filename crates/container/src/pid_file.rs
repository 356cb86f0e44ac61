//! Pid files: a process id as text, replaced in one step so that no reader sees half of it.

use std::io::Write as _;
use std::path::Path;

use crate::error::{Context, Step};

/// Writes `pid` to `path`.
pub(crate) fn write(path: &Path, pid: i32) -> Step<()> {
    let what = || format!("cannot write the pid file {}", path.display());
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let temporary = path.with_file_name(name);
    let mut file = std::fs::File::create(&temporary).with(what)?;
    write!(file, "{pid}").with(what)?;
    std::fs::rename(&temporary, path).with(what)
}
