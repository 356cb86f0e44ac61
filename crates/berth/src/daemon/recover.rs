//! `berth recover`: the database rebuilt from the instances' directories, while no daemon runs.

use std::{io::Write, process::ExitCode};

use anyhow::{Context, Result};
use node::{Paths, directory};

use crate::cli::daemon::RecoverArgs;

/// Rebuilds and says what was done.
#[must_use]
pub fn main(args: &RecoverArgs) -> ExitCode {
    match run(args) {
        Ok(text) => {
            // A reader that has gone needs no text.
            let _ = std::io::stdout().lock().write_all(text.as_bytes());
            ExitCode::SUCCESS
        }
        Err(error) => {
            let _ = writeln!(std::io::stderr().lock(), "error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &RecoverArgs) -> Result<String> {
    let paths = Paths::new(&args.place.root, &args.place.run_dir);
    if args.dry_run {
        let found = directory::scan(&paths)?;
        let mut text = String::new();
        for record in found.records {
            text.push_str(&format!("{}  {}\n", record.id, record.name));
        }
        for (path, reason) in found.unusable {
            text.push_str(&format!("{}: not usable: {reason}\n", path.display()));
        }
        return Ok(text);
    }
    paths.make()?;
    let _lock = super::lock(&paths)?;
    let store = store::sqlite::open(paths.database(), store::sqlite::Options::default())?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("no runtime can be made")?;
    let done = runtime.block_on(control::recover::recover(&paths, &store))?;
    let mut text = String::new();
    for name in &done.instances {
        text.push_str(&format!("recovered {name} (stopped)\n"));
    }
    for name in &done.networks {
        text.push_str(&format!("recovered the network {name}\n"));
    }
    for (path, reason) in &done.unusable {
        text.push_str(&format!("{path}: not usable: {reason}\n"));
    }
    text.push_str(&format!(
        "{} recovered, {} known already\n",
        done.instances.len(),
        done.known
    ));
    Ok(text)
}
