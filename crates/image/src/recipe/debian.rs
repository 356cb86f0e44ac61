//! The Debian recipe: mmdebstrap as a child, its tar streamed into a layer.
//!
//! The mirror is the host's own unless one is given. Reproducible as far as mmdebstrap is: sorted tar,
//! times clamped to `SOURCE_DATE_EPOCH`, no machine id, no logs; the package versions are those of the
//! day. With `systemd` the image is for system containers: an init that comes up without hardware.

use std::{
    collections::VecDeque,
    io::{BufRead, BufReader, Read},
    os::unix::process::CommandExt,
    process::{Child, Command, Stdio},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process_group};
use serde::{Deserialize, Serialize};

use super::RecipeError;
use crate::{
    digest::{Digest, Hasher},
    job::Job,
    layer::{Ingested, ingest_tar},
    manifest::RunConfig,
    store::{Lease, Store},
};

const PROGRAM: &str = "mmdebstrap";
/// Raise when the packages or hooks below change, so that cached results are not found again.
const REVISION: u32 = 2;
/// Lines of the tool's output kept for the error message.
const KEPT_LINES: usize = 20;
const MAX_LINE: u64 = 4096;

/// Parameters of the Debian recipe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DebianRecipe {
    /// Suite, e.g. `bookworm` or `stable`.
    pub suite: String,
    /// Packages besides the minimal system.
    pub packages: Vec<String>,
    /// With systemd as init: a system-container image.
    pub systemd: bool,
    /// With what a machine of its own needs besides an init: devices appear by udev, and nothing that
    /// only a container lacks is left out. Includes `systemd`.
    #[serde(default)]
    pub machine: bool,
    /// Mirror URL; the host's own apt sources, or mmdebstrap's default, when `None`.
    pub mirror: Option<String>,
}

/// Packages of a system container besides the minimal system.
const SYSTEM_PACKAGES: [&str; 7] = [
    "systemd-sysv",
    "dbus",
    "libpam-systemd",
    "iproute2",
    "iputils-ping",
    "procps",
    "ca-certificates",
];

/// Packages of a virtual machine besides those of a system container.
const MACHINE_PACKAGES: [&str; 2] = ["udev", "kmod"];

/// Units that would wait for what a virtual machine here has otherwise: its network is set up before they
/// start, its first boot asks nobody, and its console is a serial one.
const MACHINE_MASKED: [&str; 3] = [
    "systemd-networkd-wait-online.service",
    "systemd-firstboot.service",
    "getty@tty1.service",
];

/// Units that need hardware, a kernel of their own or a console that a container does not have.
const MASKED: [&str; 14] = [
    "systemd-udevd.service",
    "systemd-udevd-control.socket",
    "systemd-udevd-kernel.socket",
    "systemd-udev-trigger.service",
    "systemd-modules-load.service",
    "systemd-remount-fs.service",
    "systemd-networkd-wait-online.service",
    "systemd-firstboot.service",
    "systemd-timesyncd.service",
    "sys-kernel-config.mount",
    "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount",
    "dev-hugepages.mount",
    "getty@tty1.service",
];

pub(super) struct Inputs {
    recipe: DebianRecipe,
    version: String,
    /// Digest of the host's apt sources.
    sources: Digest,
    epoch: i64,
}

/// Checks the parameters and finds the tool.
pub(super) fn prepare(recipe: &DebianRecipe) -> Result<Inputs, RecipeError> {
    check("suite", &recipe.suite, "._-")?;
    for package in &recipe.packages {
        check("package", package, "+.-:")?;
    }
    if let Some(mirror) = &recipe.mirror
        && !["http://", "https://", "file:/", "copy:/", "deb "]
            .iter()
            .any(|scheme| mirror.starts_with(scheme))
    {
        let reason = "give a URL such as https://host/debian";
        return Err(RecipeError::Parameter {
            what: "mirror",
            value: mirror.clone(),
            reason,
        });
    }
    let output = Command::new(PROGRAM)
        .arg("--version")
        .stdin(Stdio::null())
        .output();
    let output = output.map_err(|source| match source.kind() {
        std::io::ErrorKind::NotFound => RecipeError::MissingTool {
            program: PROGRAM,
            package: PROGRAM,
        },
        _ => RecipeError::Run {
            program: PROGRAM,
            source,
        },
    })?;
    let version = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let epoch = std::env::var("SOURCE_DATE_EPOCH")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(0);
    Ok(Inputs {
        recipe: recipe.clone(),
        version,
        sources: apt_sources(),
        epoch,
    })
}

/// Words that become arguments of other programs: nothing that could be an option or a shell's syntax.
fn check(what: &'static str, value: &str, punctuation: &str) -> Result<(), RecipeError> {
    let ok = value.len() <= 128
        && value.starts_with(|c: char| c.is_ascii_alphanumeric())
        && value
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || punctuation.contains(c));
    let reason = "it must be letters, digits and simple punctuation";
    if ok {
        Ok(())
    } else {
        Err(RecipeError::Parameter {
            what,
            value: value.to_owned(),
            reason,
        })
    }
}

/// A digest of where the host gets its packages from. What cannot be read counts as absent.
fn apt_sources() -> Digest {
    let mut files = vec![std::path::PathBuf::from("/etc/apt/sources.list")];
    if let Ok(dir) = std::fs::read_dir("/etc/apt/sources.list.d") {
        files.extend(dir.flatten().map(|entry| entry.path()));
    }
    files.sort();
    let mut hasher = Hasher::default();
    for file in files {
        hasher.update(&std::fs::read(&file).unwrap_or_default());
        hasher.update(b"\0");
    }
    hasher.finish()
}

impl DebianRecipe {
    /// Whether the image has an init.
    fn has_init(&self) -> bool {
        self.systemd || self.machine
    }
}

impl Inputs {
    pub(super) fn key(&self) -> Digest {
        let Self {
            recipe,
            version,
            sources,
            epoch,
        } = self;
        Digest::of(format!("debian {REVISION} {recipe:?} {version} {sources} {epoch}").as_bytes())
    }

    pub(super) fn epoch(&self) -> i64 {
        self.epoch
    }

    pub(super) fn created_by(&self) -> String {
        let kind = match (self.recipe.machine, self.recipe.systemd) {
            (true, _) => " --vm",
            (false, true) => " --system",
            (false, false) => "",
        };
        format!(
            "berth image build --recipe debian --suite {}{kind}",
            self.recipe.suite
        )
    }

    pub(super) fn run_config(&self) -> RunConfig {
        if !self.recipe.has_init() {
            return super::base_config(&["bash"]);
        }
        let mut env = vec![super::PATH.to_owned()];
        if !self.recipe.machine {
            env.push("container=berth".into());
        }
        RunConfig {
            // systemd shuts down in order on this signal (systemd(1), "Signals").
            stop_signal: "SIGRTMIN+3".into(),
            env,
            ..super::base_config(&["/sbin/init"])
        }
    }

    fn command(&self) -> Command {
        let mut command = Command::new(PROGRAM);
        command.args(["--variant=minbase", "--format=tar", "--skip=check/empty"]);
        command.arg("--aptopt=Acquire::Retries \"3\"");
        command.arg("--aptopt=APT::Install-Recommends \"false\"");
        for path in ["/usr/share/doc/*", "/usr/share/man/*", "/usr/share/info/*"] {
            command.arg(format!("--dpkgopt=path-exclude={path}"));
        }
        command.arg("--dpkgopt=path-include=/usr/share/doc/*/copyright");
        let mut packages: Vec<&str> = self.recipe.packages.iter().map(String::as_str).collect();
        if self.recipe.has_init() {
            packages.extend(SYSTEM_PACKAGES);
        }
        if self.recipe.machine {
            packages.extend(MACHINE_PACKAGES);
        }
        if !packages.is_empty() {
            command.arg(format!("--include={}", packages.join(",")));
        }
        for hook in self.hooks() {
            command.arg(format!("--customize-hook={hook}"));
        }
        command.args([self.recipe.suite.as_str(), "-"]);
        command.args(self.recipe.mirror.as_deref());
        // A clean environment: locale and proxies of apt's configuration stay, the caller's secrets do not.
        command.env_clear();
        for name in [
            "PATH",
            "HOME",
            "TMPDIR",
            "http_proxy",
            "https_proxy",
            "no_proxy",
        ] {
            command.envs(std::env::var_os(name).map(|value| (name, value)));
        }
        command
            .env("SOURCE_DATE_EPOCH", self.epoch.to_string())
            .env("LC_ALL", "C.UTF-8");
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        command
    }

    /// Shell run by mmdebstrap with the new root as `$1`.
    fn hooks(&self) -> Vec<String> {
        let mut hooks = vec![
            // Each machine makes its own identity; an empty file is systemd's sign to do so.
            "rm -f \"$1/var/lib/dbus/machine-id\"; : > \"$1/etc/machine-id\"".to_owned(),
            "rm -rf \"$1\"/var/log/*.log \"$1\"/var/log/apt/* \"$1\"/var/cache/ldconfig/aux-cache".to_owned(),
            // Written by the runtime for each container.
            ": > \"$1/etc/resolv.conf\"; echo localhost > \"$1/etc/hostname\"".to_owned(),
            "printf '127.0.0.1\\tlocalhost\\n::1\\tlocalhost ip6-localhost ip6-loopback\\n' > \"$1/etc/hosts\"".to_owned(),
        ];
        let units = "\"$1/etc/systemd/system\"";
        let mask = |masked: &[&str]| {
            let masked = masked.join(" ");
            format!("for unit in {masked}; do ln -sf /dev/null {units}/$unit; done")
        };
        if self.recipe.machine {
            hooks.push(mask(&MACHINE_MASKED));
            // A login on the serial console comes by itself: the kernel is told of it.
            hooks.push(format!("ln -sf multi-user.target {units}/default.target"));
        } else if self.recipe.systemd {
            hooks.push(mask(&MASKED));
            // A login on /dev/console, which is the container's terminal.
            hooks.push(format!(
                "mkdir -p {units}/multi-user.target.wants && ln -sf multi-user.target {units}/default.target && \
                 ln -sf /lib/systemd/system/console-getty.service {units}/multi-user.target.wants/console-getty.service"
            ));
        }
        hooks
    }

    pub(super) fn build(
        &self,
        store: &Store,
        lease: &Lease,
        job: &Job,
    ) -> Result<Ingested, RecipeError> {
        let run = |source| RecipeError::Run {
            program: PROGRAM,
            source,
        };
        let mut child = Running(self.command().spawn().map_err(run)?);
        let stdout = child.0.stdout.take().expect("stdout is piped");
        let stderr = child.0.stderr.take().expect("stderr is piped");
        let group = Pid::from_child(&child.0);
        let lines = Mutex::new(VecDeque::new());
        let done = AtomicBool::new(false);
        let (layer, status) = thread::scope(|scope| {
            scope.spawn(|| listen(stderr, &lines, job));
            // The layer's stages only notice a cancellation when bytes come, which may be minutes from now.
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    if job.check().is_err() {
                        let _ = kill_process_group(group, Signal::TERM);
                        return;
                    }
                    thread::park_timeout(Duration::from_millis(50));
                }
            });
            let layer = ingest_tar(store, lease, stdout, job);
            if layer.is_err() {
                let _ = kill_process_group(group, Signal::TERM);
            }
            let status = child.0.wait();
            done.store(true, Ordering::Relaxed);
            (layer, status)
        });
        job.check()?;
        let status = status.map_err(run)?;
        if !status.success() {
            // Its failure is why the layer, if anything, was cut short.
            let lines = lines.into_inner().unwrap_or_else(PoisonError::into_inner);
            let output = Vec::from(lines).join("\n");
            return Err(RecipeError::Tool {
                program: PROGRAM,
                status: status.to_string(),
                output,
            });
        }
        Ok(layer?)
    }
}

/// Passes on what the tool says and keeps the end of it.
fn listen(stderr: impl Read, lines: &Mutex<VecDeque<String>>, job: &Job) {
    let mut input = BufReader::new(stderr);
    let mut line = Vec::new();
    loop {
        line.clear();
        match (&mut input).take(MAX_LINE).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        let text = String::from_utf8_lossy(&line).trim_end().to_owned();
        if text.is_empty() {
            continue;
        }
        let mut kept = lines.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() == KEPT_LINES {
            kept.pop_front();
        }
        kept.push_back(text.clone());
        drop(kept);
        job.note(text);
    }
}

/// A child that does not outlive us, whatever happens.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        if let Ok(None) = self.0.try_wait() {
            let _ = kill_process_group(Pid::from_child(&self.0), Signal::TERM);
            let _ = self.0.wait();
        }
    }
}
