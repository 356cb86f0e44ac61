//! A daemon of a test's own, driven through its command line as a user would.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use serde_json::Value;

use crate::{Background, Netns, leftovers, leftovers::groups};

/// Most time anything here is waited for.
const PATIENCE: Duration = Duration::from_secs(30);

/// `berth daemon` with a root, a run directory, a prefix and a network namespace of its own.
///
/// Dropped, it deletes its instances and networks and ends; then the test fails if anything is left
/// of it on the host, which is taken away.
#[derive(Debug)]
pub struct Daemon {
    process: Option<Background>,
    berth: PathBuf,
    runtime: PathBuf,
    prefix: String,
    netns: Netns,
    directory: tempfile::TempDir,
    options: Vec<String>,
    in_host_network: bool,
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
    /// Starts one. `berth` is the binary; the runtime is the one `BERTH_OCI` names, or `berth-oci`
    /// beside it. `options` go to the daemon.
    ///
    /// # Errors
    /// When it does not start, with the end of its log.
    pub fn start(berth: &Path, options: &[&str]) -> anyhow::Result<Self> {
        let mut made = Self::new(berth, options)?;
        made.restart()?;
        Ok(made)
    }

    /// As [`Daemon::start`], but not started yet.
    ///
    /// # Errors
    /// When there is no runtime, or no network namespace can be made.
    pub fn new(berth: &Path, options: &[&str]) -> anyhow::Result<Self> {
        // Not in a tmpfs, whose overlays behave differently.
        let directory = tempfile::Builder::new()
            .prefix("berth-test-")
            .tempdir_in("/var/tmp")?;
        Ok(Self {
            process: None,
            berth: berth.to_owned(),
            runtime: runtime(berth)?,
            prefix: prefix(),
            netns: Netns::new()?,
            directory,
            options: options.iter().map(|&option| option.to_owned()).collect(),
            in_host_network: false,
        })
    }

    /// Lets it, from its next start, reach what the host reaches: to fetch packages. It must then
    /// have no networks.
    #[must_use]
    pub fn in_host_network(mut self) -> Self {
        self.in_host_network = true;
        self
    }

    /// Has it run guests by another program, before its first start: one that stands before the usual
    /// runtime, which the answer is.
    pub fn stand_before_runtime(&mut self, program: &Path) -> PathBuf {
        std::mem::replace(&mut self.runtime, program.to_owned())
    }

    /// Gives it, before its first start, the images of another root: hard links where the file
    /// system allows, for content never changes in place.
    ///
    /// # Errors
    /// What `cp` says.
    pub fn lend_images(&self, from: &Path) -> anyhow::Result<()> {
        let to = self.root().join("images");
        std::fs::create_dir_all(self.root())?;
        for how in ["-al", "-a"] {
            let mut copy = Command::new("cp");
            copy.arg(how).arg(from.join("images")).arg(&to);
            if copy.output()?.status.success() {
                return Ok(());
            }
            let _ = std::fs::remove_dir_all(&to);
        }
        anyhow::bail!("{} cannot be copied", from.display())
    }

    /// Puts its root, before its first start, on a disk of so many MiB.
    ///
    /// # Errors
    /// What `mount` says.
    pub fn on_small_disk(&self, mib: u32) -> anyhow::Result<()> {
        std::fs::create_dir_all(self.root())?;
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={mib}m"), "tmpfs"]);
        let output = mount.arg(self.root()).output()?;
        ensure!(output.status.success(), "{mount:?}: {output:?}");
        Ok(())
    }

    /// Starts it again after [`Daemon::kill`] or [`Daemon::stop`].
    ///
    /// # Errors
    /// When it does not start, with the end of its log.
    pub fn restart(&mut self) -> anyhow::Result<()> {
        self.launch(None)
    }

    /// Starts it so that it dies at a crash point, written `name:pass`; that may be at once.
    ///
    /// # Errors
    /// When it neither starts nor dies.
    pub fn restart_to_die_at(&mut self, point: &str) -> anyhow::Result<()> {
        let started = self.launch(Some(point));
        if started.is_err() && self.log().contains("berth daemon cannot run") {
            return started;
        }
        Ok(())
    }

    fn launch(&mut self, crash: Option<&str>) -> anyhow::Result<()> {
        ensure!(self.process.is_none(), "the daemon runs already");
        let mut command = Command::new(&self.berth);
        command
            .arg("daemon")
            .arg("--root")
            .arg(self.root())
            .arg("--run-dir")
            .arg(self.run_dir())
            .args(["--prefix", &self.prefix])
            .arg("--runtime")
            .arg(&self.runtime)
            .args(&self.options)
            .env("NO_COLOR", "1");
        if !self.in_host_network {
            command.arg("--netns").arg(self.netns.path());
        }
        if let Some(point) = crash {
            command.env("BERTH_CRASH_AT", point);
        }
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

    /// Kills everything at once, as a host that goes down: the daemon, its shims and their guests.
    pub fn kill_all(&mut self) {
        for _ in 0..3 {
            self.kill_processes();
        }
        self.kill();
    }

    /// Whether the daemon died by itself within the given time; it can then be started again.
    #[must_use]
    pub fn has_died(&mut self, within: Duration) -> bool {
        let deadline = Instant::now() + within;
        loop {
            let Some(process) = &mut self.process else {
                return true;
            };
            if process.has_ended() {
                self.process = None;
                return true;
            }
            if Instant::now() >= deadline {
                return false;
            }
            std::thread::sleep(Duration::from_millis(10));
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

    /// The mark of everything it makes.
    #[must_use]
    pub fn prefix(&self) -> &str {
        &self.prefix
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

    /// The process id of an instance's shim.
    #[must_use]
    pub fn shim(&self, id: &str) -> Option<u32> {
        let words = format!("guests/{id}");
        let lines = self.leftovers().into_iter();
        let shims = lines.filter(|line| line.contains(" shim ") && line.contains(&words));
        shims.filter_map(|line| process_of(&line)).next()
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
            .env("NO_COLOR", "1")
            .stdin(std::process::Stdio::null());
        command
    }

    /// Runs a `berth` command, whatever comes of it.
    ///
    /// # Errors
    /// When the command cannot be started.
    pub fn run(&self, words: &[&str]) -> anyhow::Result<Said> {
        Ok(Said::of(&self.try_berth(words)?))
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

    /// An instance as the API gives it.
    ///
    /// # Errors
    /// When there is no such instance.
    pub fn inspect(&self, name: &str) -> anyhow::Result<Value> {
        let text = self.berth(&["inspect", name])?;
        let mut all: Vec<Value> = serde_json::from_str(&text)?;
        all.pop().context("inspect printed nothing")
    }

    /// Names and statuses of all instances, as the list has them.
    ///
    /// # Errors
    /// When they cannot be listed.
    pub fn list(&self) -> anyhow::Result<Vec<(String, String)>> {
        let text = self.berth(&["list", "-o", "json"])?;
        let all: Vec<Value> = serde_json::from_str(&text)?;
        let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Ok(all
            .iter()
            .map(|it| (word(&it["name"]), word(&it["status"])))
            .collect())
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

    /// Deletes all instances, running or not.
    ///
    /// # Errors
    /// When one cannot be deleted.
    pub fn remove_instances(&self) -> anyhow::Result<()> {
        for name in self.berth(&["list", "-o", "name"])?.lines() {
            let said = self.run(&["rm", "-f", name])?;
            // What goes away with its program may have gone just now.
            ensure!(said.code == 0 || said.code == 3, "rm {name}: {said:?}");
        }
        Ok(())
    }

    /// Deletes all instances and networks and ends the daemon; what is left on the host then is
    /// leaked.
    ///
    /// # Errors
    /// When a command fails.
    pub fn clean_up(&mut self) -> anyhow::Result<BTreeSet<String>> {
        if self.process.is_none() {
            self.restart()?;
        }
        self.remove_instances()?;
        let deadline = Instant::now() + PATIENCE;
        // What goes away with its program is not listed any more, and takes a moment to be gone.
        while self.has_instances() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(50));
        }
        for name in self.berth(&["network", "list", "-o", "name"])?.lines() {
            while let Err(error) = self.berth(&["network", "rm", name]) {
                ensure!(Instant::now() < deadline, error);
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        self.stop();
        // The kernel takes namespaces down, and with them links, in its own time.
        loop {
            let left = self.leftovers();
            if left.is_empty() || Instant::now() > deadline {
                return Ok(left);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn has_instances(&self) -> bool {
        std::fs::read_dir(self.root().join("instances"))
            .is_ok_and(|mut entries| entries.next().is_some())
    }

    fn kill_processes(&self) {
        for pid in self.leftovers().iter().filter_map(|line| process_of(line)) {
            // One that has just ended needs no signal.
            let _ = Command::new("kill").args(["-9", &pid.to_string()]).output();
        }
    }
}

impl Said {
    /// What a command that has ended said.
    #[must_use]
    pub fn of(output: &Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let leaked = self.clean_up();
        self.kill();
        // Whatever is still there belongs to this test alone.
        self.kill_processes();
        for line in self.leftovers().iter().rev() {
            if let Some(point) = line.strip_prefix("mount ") {
                let _ = Command::new("umount").args(["-l", point]).status();
            }
        }
        // Only a test that asked for a small disk has one there.
        let _ = Command::new("umount").arg("-lq").arg(self.root()).output();
        for group in groups(&self.prefix) {
            remove_groups(&group);
        }
        let complaint = match leaked {
            Ok(left) if left.is_empty() && std::thread::panicking() => "nothing leaked".to_owned(),
            Ok(left) if left.is_empty() => return,
            Ok(left) => format!("the daemon leaked {left:#?}"),
            Err(error) => format!("the daemon could not be cleaned up: {error:#}"),
        };
        let log = self.log();
        let from = log.floor_char_boundary(log.len().saturating_sub(8000));
        let text = format!("{complaint}\nend of its log:\n{}", &log[from..]);
        if std::thread::panicking() {
            crate::skip::say(&text);
        } else {
            panic!("{text}");
        }
    }
}

/// The process that a line of the leftovers is about.
fn process_of(line: &str) -> Option<u32> {
    let rest = line.strip_prefix("process ")?;
    rest.split(':').next()?.parse().ok()
}

/// Unique among what runs on this host, and short: names of interfaces have 15 bytes.
fn prefix() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let letter = b'g' + u8::try_from(NEXT.fetch_add(1, Ordering::Relaxed) % 20).unwrap_or(0);
    format!(
        "{}{:04x}",
        char::from(letter),
        std::process::id() % 0x1_0000
    )
}

/// The runtime to give the daemon.
fn runtime(berth: &Path) -> anyhow::Result<PathBuf> {
    let beside = berth.with_file_name("berth-oci");
    let named = std::env::var_os("BERTH_OCI").map(PathBuf::from);
    let runtime = named.unwrap_or(beside);
    if !runtime.exists() {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut build = Command::new(cargo);
        build.args(["build", "--quiet", "-p", "berth-oci"]);
        ensure!(build.status()?.success(), "{build:?} failed");
    }
    let name = runtime.display();
    ensure!(
        runtime.exists(),
        "{name} is missing: run scripts/build-runtime, and put what it prints into BERTH_OCI"
    );
    Ok(runtime)
}

/// Removes a control group and those below it; the kernel refuses those that hold a process.
fn remove_groups(group: &Path) {
    for below in leftovers::directories(group) {
        remove_groups(&below);
    }
    let _ = std::fs::remove_dir(group);
}
