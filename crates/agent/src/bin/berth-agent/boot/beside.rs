//! The agent in a guest that boots by itself: from its own kernel and its own initial file system.
//!
//! ```text
//!   PID 1 is the agent ── starts itself once more, becomes the /init of the guest's own ──▶ the guest's init
//!                                  │
//!                                  └─ waits until PID 1 has another root, enters it, serves there
//! ```
//! Nothing of the guest's disk is changed for it, and nothing of the way it boots. What the guest's own
//! cloud-init does is left to it; where there is none, the agent does the least of it: name, network, keys.

use std::{
    ffi::OsString,
    io,
    os::{fd::OwnedFd, unix::process::CommandExt},
    path::Path,
    process::{Command, ExitCode, Stdio},
    thread,
    time::{Duration, Instant},
};

use agent::config::Config;
use rustix::{
    fs::{Mode, OFlags, openat},
    mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen},
};

use super::{BootError, at, files, network, read_config, root, ssh};
use crate::{console::chain, console::say, serve, vsock};

/// Where the agent lies in the initial file system, and what the kernel starts.
const PROGRAM: &str = "/berth/agent";
/// What the initial file system of the guest's own is started by.
const INIT: &str = "/init";
/// A first letter that systemd spares when it clears the initial file system
/// (<https://systemd.io/ROOT_STORAGE_DAEMONS>).
const NAME: &str = "@berth-agent";
/// Pause between two looks at what others do.
const PAUSE: Duration = Duration::from_millis(50);
/// How long a guest may take until it writes to its root, has its interface, and knows vsock.
const PATIENCE: Duration = Duration::from_secs(300);

/// Whether this process was started as PID 1 of a guest that boots by itself.
pub fn is_asked_for(name: &str) -> bool {
    std::process::id() == 1 && name == PROGRAM
}

/// The life of PID 1: it starts the one that stays, and becomes what would have been here without us.
pub fn begin(arguments: impl Iterator<Item = String>) -> ExitCode {
    let beside = Command::new(PROGRAM)
        .arg0(NAME)
        .arg("beside")
        .env_clear()
        .stdin(Stdio::inherit())
        .spawn();
    // A guest without an agent is better than none.
    if let Err(error) = beside {
        say(&format!("there is no agent: {error}"));
    }
    let error = Command::new(INIT)
        .args(arguments.map(OsString::from))
        .exec();
    say(&format!(
        "the guest's own {INIT} cannot be started: {error}"
    ));
    ExitCode::FAILURE
}

/// The life of the one that stays.
pub fn run() -> ExitCode {
    match enter_root() {
        Ok(config) => {
            thread::spawn(move || customize(&config));
            wait_for_vsock();
            serve::run()
        }
        Err(error) => {
            say(&format!("there is no agent: {}", chain(&error)));
            ExitCode::FAILURE
        }
    }
}

/// Waits until the guest has a root file system of its own, and enters it.
fn enter_root() -> Result<Config, BootError> {
    let config = read_config()?;
    // In a place of its own: the guest mounts another one, and moves it.
    let proc = processes().map_err(at("mount", "proc"))?;
    let initial = rustix::fs::stat("/").map_err(at("look at", "/"))?;
    loop {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root =
            openat(&proc, "1/root", flags, Mode::empty()).map_err(at("open", "/proc/1/root"))?;
        let now = rustix::fs::fstat(&root).map_err(at("look at", "/proc/1/root"))?;
        if (now.st_dev, now.st_ino) != (initial.st_dev, initial.st_ino) {
            rustix::process::fchdir(&root).map_err(at("enter", "/proc/1/root"))?;
            rustix::process::chroot(".").map_err(at("enter", "/proc/1/root"))?;
            return Ok(config);
        }
        thread::sleep(PAUSE);
    }
}

/// A file system of processes that is mounted nowhere.
fn processes() -> io::Result<OwnedFd> {
    let context = fsopen("proc", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&context)?;
    Ok(fsmount(
        &context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::empty(),
    )?)
}

/// Waits for the guest's drivers: without udev nobody else loads them.
fn wait_for_vsock() {
    let mut modprobe = Command::new("modprobe");
    modprobe.args(["-q", "vmw_vsock_virtio_transport"]);
    let started = Instant::now();
    let mut asked = false;
    while vsock::Listener::bind(agent::AGENT_PORT).is_err() && started.elapsed() < PATIENCE {
        if !asked {
            // A guest without the tool, or with the driver in its kernel, needs none.
            asked = true;
            let _ = modprobe.stdin(Stdio::null()).status();
        }
        thread::sleep(PAUSE);
    }
}

/// Does for a guest without cloud-init what cloud-init would, and grows the root once it may be
/// written to.
fn customize(config: &Config) {
    let slash = Path::new("/");
    let has_cloud_init = ssh::has_cloud_init(slash);
    if !has_cloud_init {
        insist("its network", || network::bring_up(&config.interfaces));
    }
    let started = Instant::now();
    while !is_writable() {
        if started.elapsed() > PATIENCE {
            return say("the root file system stays read-only");
        }
        thread::sleep(PAUSE);
    }
    serve::use_whole_disk();
    if !has_cloud_init && let Err(error) = files::write(config) {
        say(&format!(
            "the guest is not told who it is: {}",
            chain(&error)
        ));
    }
    if let Some(ssh) = &config.ssh {
        ssh::authorize(ssh, slash);
    }
    insist("its further file systems", || {
        root::mount_further(&config.mounts)
    });
}

/// Tries until the guest is as far, which may be long after its root was mounted.
fn insist(what: &str, mut attempt: impl FnMut() -> Result<(), BootError>) {
    let started = Instant::now();
    loop {
        match attempt() {
            Ok(()) => return,
            Err(error) if started.elapsed() > PATIENCE => {
                return say(&format!("the guest does not get {what}: {}", chain(&error)));
            }
            Err(_) => thread::sleep(PAUSE),
        }
    }
}

fn is_writable() -> bool {
    let flags = rustix::fs::statvfs("/").map(|it| it.f_flag);
    flags.is_ok_and(|it| !it.contains(rustix::fs::StatVfsMountFlags::RDONLY))
}
