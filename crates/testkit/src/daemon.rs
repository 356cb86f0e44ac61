//! A daemon of a test's own, driven through its command line as a user would.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context as _, ensure};

use crate::{Background, Netns, leftovers};

/// `berth daemon` with a root, a run directory, a prefix and a network namespace of its own.
///
/// Dropped, it deletes its instances, ends, and takes everything with it.
#[derive(Debug)]
pub struct Daemon {
    process: Option<Background>,
    berth: PathBuf,
    prefix: String,
    netns: Netns,
    directory: tempfile::TempDir,
    options: Vec<String>,
}

/// What a command said.
#[derive(Debug)]
pub struct Said {
    /// Exit code; -1 when a signal ended it.
    pub code: i32,
    /// Its output.
    pub out: String,
    /// Its error output.
    pub err: String,
}

impl Daemon {
    /// Starts one. `berth` is the binary, beside which `berth-oci` is; `options` go to the daemon.
    ///
    /// # Errors
    /// When it does not start, with the end of its log.
    pub fn start(berth: &Path, options: &[&str]) -> anyhow::Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        // Short: interface names have 15 bytes.
        let n = std::process::id() % 10_000 + NEXT.fetch_add(1, Ordering::Relaxed) * 10_000;
        // Not in a tmpfs, whose overlays behave differently.
        let directory = tempfile::Builder::new()
            .prefix("berth-test-")
            .tempdir_in("/var/tmp")?;
        let mut made = Self {
            process: None,
            berth: berth.to_owned(),
            prefix: format!("bt{n}"),
            netns: Netns::new()?,
            directory,
            options: options.iter().map(|&option| option.to_owned()).collect(),
        };
        made.restart()?;
        Ok(made)
    }

    /// Starts it again after [`Daemon::kill`] or [`Daemon::stop`].
    ///
    /// # Errors
    /// When it does not start, with the end of its log.
    pub fn restart(&mut self) -> anyhow::Result<()> {
        ensure!(self.process.is_none(), "the daemon runs already");
        let mut command = Command::new(&self.berth);
        command
            .arg("daemon")
            .arg("--root")
            .arg(self.root())
            .arg("--run-dir")
            .arg(self.run_dir())
            .args(["--prefix", &self.prefix])
            .arg("--netns")
            .arg(self.netns.path())
            .args(&self.options);
        let log = self.directory.path().join("daemon.log");
        let ready = || {
            self.try_berth(&["info"])
                .is_ok_and(|it| it.status.success())
        };
        self.process = Some(Background::start(command, &log, ready)?);
        Ok(())
    }

    /// Kills it; what it started goes on.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill();
        }
    }

    /// Asks it to end, and waits; what it started goes on.
    pub fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.stop();
        }
    }

    /// Everything durable.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        self.directory.path().join("root")
    }

    /// Everything that ends with the host's run.
    #[must_use]
    pub fn run_dir(&self) -> PathBuf {
        self.directory.path().join("run")
    }

    /// Where its networks are.
    #[must_use]
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Its process id, while it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Background::pid)
    }

    /// All it logged.
    #[must_use]
    pub fn log(&self) -> String {
        let bytes = std::fs::read(self.directory.path().join("daemon.log")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// A `berth` command against it, not yet started.
    #[must_use]
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.berth);
        let socket = self.run_dir().join("berth.sock");
        command
            .args(words)
            .env("BERTH_HOST", format!("unix://{}", socket.display()))
            .env("BERTH_ROOT", self.root())
            .env("BERTH_RUN_DIR", self.run_dir())
            .env("NO_COLOR", "1");
        command
    }

    /// Runs a `berth` command, whatever comes of it.
    ///
    /// # Errors
    /// When the command cannot be started.
    pub fn run(&self, words: &[&str]) -> anyhow::Result<Said> {
        let output = self.try_berth(words)?;
        Ok(Said {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// The output of a `berth` command that must succeed, trimmed.
    ///
    /// # Errors
    /// When it does not, with all it said.
    pub fn berth(&self, words: &[&str]) -> anyhow::Result<String> {
        let said = self.run(words)?;
        ensure!(said.code == 0, "berth {words:?}: {said:?}");
        Ok(said.out.trim().to_owned())
    }

    /// What it and its guests have on the host just now.
    #[must_use]
    pub fn leftovers(&self) -> BTreeSet<String> {
        leftovers(self.directory.path(), &self.prefix, &self.netns)
    }

    fn try_berth(&self, words: &[&str]) -> anyhow::Result<Output> {
        let mut command = self.command(words);
        command.output().with_context(|| format!("{command:?}"))
    }

    fn clean_up(&mut self) -> anyhow::Result<()> {
        if self.process.is_none() {
            self.restart()?;
        }
        let names = self.berth(&["list", "-o", "name"])?;
        for name in names.lines() {
            self.berth(&["rm", "-f", name])?;
        }
        self.stop();
        Ok(())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Err(error) = self.clean_up() {
            crate::skip::say(&format!("a test's daemon was not cleaned up: {error:#}"));
        }
        // Whatever is still there belongs to this test alone.
        for line in self.leftovers() {
            if let Some(pid) = line
                .strip_prefix("process ")
                .and_then(|it| it.split(':').next())
            {
                let _ = Command::new("kill").args(["-9", pid]).status();
            }
        }
        for line in self.leftovers().iter().rev() {
            if let Some(point) = line.strip_prefix("mount ") {
                let _ = Command::new("umount").args(["-l", point]).status();
            }
            if let Some(group) = line.strip_prefix("cgroup ") {
                remove_groups(Path::new(group));
            }
        }
    }
}

/// Removes a control group and those below it; the kernel refuses those that hold a process.
fn remove_groups(group: &Path) {
    for entry in std::fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_groups(&entry.path());
        }
    }
    let _ = std::fs::remove_dir(group);
}
