//! Loud skips: a test that cannot run here says so, in a form that `scripts/test` counts.

use std::{
    io::{self, Write as _},
    path::Path,
};

/// Says that a test was not run, and why; the test then returns.
pub fn skip(test: &str, reason: &str) {
    say(&format!("SKIP {test}: {reason}"));
}

pub(crate) fn say(line: &str) {
    // Nobody is left to be told that stderr is gone.
    let _ = writeln!(io::stderr().lock(), "{line}");
}

/// Whether this host lacks root or one of some programs; if so, says so.
///
/// ```
/// if testkit::lacks("this doctest", &["sh"]) {
///     return;
/// }
/// ```
#[must_use]
pub fn lacks(test: &str, programs: &[&str]) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let is_root = status
        .lines()
        .any(|line| line.starts_with("Uid:") && line.split_whitespace().nth(2) == Some("0"));
    if !is_root {
        skip(test, "needs root");
        return true;
    }
    let missing = programs.iter().find(|program| !installed(program));
    if let Some(program) = missing {
        skip(test, &format!("{program} is not installed"));
    }
    missing.is_some()
}

fn installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places: Vec<_> = std::env::split_paths(&path).collect();
    places.extend([Path::new("/usr/sbin").into(), Path::new("/sbin").into()]);
    places.iter().any(|place| place.join(program).is_file())
}
