//! The guest's root file system: found, mounted, entered.
//!
//! A disk is found by the serial its host gave it, a share by its tag. With `changes`, an overlay puts a
//! writable file system over a root that many guests share.

use std::{
    fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use agent::config::{Config, Mount, Source};
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount_bind, mount_move, unmount,
};

use super::{
    BootError, at,
    kernel::{load_modules_for, mount_at},
};

/// How long a disk may take to appear. Drivers have been loaded by then, so it is there or is late.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where the file system with the guest's changes stays reachable, for growing and freezing it.
const CHANGES: &str = "/run/berth/changes";

/// Mounts the root file system at `sysroot`.
pub fn mount(config: &Config, sysroot: &Path) -> Result<(), BootError> {
    fs::create_dir_all(sysroot).map_err(at("make", sysroot))?;
    let root = &config.root;
    load_modules_of(&root.source)?;
    root.changes.as_ref().map_or(Ok(()), load_modules_of)?;
    match &root.changes {
        None => mount_source(&root.source, sysroot, flags(root.read_only))?,
        Some(changes) => mount_overlay(&root.source, changes, sysroot, root.read_only)?,
    }
    // The first mount may have been made read-only; these have to exist in the image then.
    for name in ["proc", "sys", "dev", "run"] {
        let path = sysroot.join(name);
        match fs::create_dir(&path) {
            Err(source) if !path.is_dir() => return Err(at("make", &path)(source)),
            _ => {}
        }
    }
    for further in &config.mounts {
        // Their modules are out of reach once the root is entered.
        load_modules_of(&further.source)?;
    }
    for list in &config.modules {
        load_modules_for(list)?;
    }
    Ok(())
}

/// Mounts the further file systems of the configuration, in the root that was entered.
pub fn mount_further(mounts: &[Mount]) -> Result<(), BootError> {
    for further in mounts {
        let target = Path::new("/").join(&further.target);
        let mut flags = flags(further.read_only);
        if matches!(further.source, Source::Share { .. }) {
            // As for a folder in a container.
            flags |= MountFlags::NOSUID | MountFlags::NODEV;
        }
        match &further.file {
            Some(file) => mount_file(&further.source, file, &target, flags)?,
            None => {
                fs::create_dir_all(&target).map_err(at("make", &target))?;
                mount_source(&further.source, &target, flags)?;
            }
        }
    }
    Ok(())
}

/// Mounts one file of a file system, of which nothing else is to be seen.
fn mount_file(
    source: &Source,
    file: &str,
    target: &Path,
    flags: MountFlags,
) -> Result<(), BootError> {
    let whole = Path::new(crate::RUN_DIRECTORY).join("whole");
    fs::create_dir_all(&whole).map_err(at("make", &whole))?;
    mount_source(source, &whole, flags)?;
    if let Some(directory) = target.parent() {
        fs::create_dir_all(directory).map_err(at("make", directory))?;
    }
    if !target.exists() {
        fs::write(target, "").map_err(at("make", target))?;
    }
    mount_bind(whole.join(file), target).map_err(at("mount a file on", target))?;
    unmount(&whole, UnmountFlags::DETACH).map_err(at("let go of", &whole))
}

/// Loads what a file system needs that not every guest has.
fn load_modules_of(source: &Source) -> Result<(), BootError> {
    match source {
        Source::Disk { file_system, .. } => load_modules_for(file_system),
        Source::Share { .. } => load_modules_for("virtiofs"),
        Source::Memory { .. } | Source::Own => Ok(()),
    }
}

fn flags(read_only: bool) -> MountFlags {
    match read_only {
        true => MountFlags::RDONLY,
        false => MountFlags::empty(),
    }
}

fn mount_source(source: &Source, target: &Path, flags: MountFlags) -> Result<(), BootError> {
    match source {
        Source::Disk {
            serial,
            file_system,
        } => {
            let device = find_disk(serial)?;
            let device = device.to_string_lossy();
            mount_at(&device, file_system, target, flags, "")
        }
        // Mounted by whoever it is for.
        Source::Own => Ok(()),
        Source::Share { tag } => mount_at(tag, "virtiofs", target, flags, ""),
        Source::Memory { size_bytes } => {
            let options = size_bytes.map_or_else(String::new, |size| format!("size={size}"));
            mount_at(
                "tmpfs",
                "tmpfs",
                target,
                flags,
                &format!("mode=0755,{options}"),
            )
        }
    }
}

fn mount_overlay(
    lower: &Source,
    changes: &Source,
    sysroot: &Path,
    read_only: bool,
) -> Result<(), BootError> {
    let base = Path::new("/berth/base");
    let changes_at = Path::new(CHANGES);
    for path in [base, changes_at] {
        fs::create_dir_all(path).map_err(at("make", path))?;
    }
    load_modules_for("overlay")?;
    mount_source(lower, base, MountFlags::RDONLY)?;
    mount_source(changes, changes_at, MountFlags::empty())?;
    let (upper, work) = (changes_at.join("upper"), changes_at.join("work"));
    for path in [&upper, &work] {
        fs::create_dir_all(path).map_err(at("make", path))?;
    }
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        base.display(),
        upper.display(),
        work.display()
    );
    mount_at("overlay", "overlay", sysroot, flags(read_only), &options)?;
    // The overlay holds it; nobody else shall see it.
    unmount(base, UnmountFlags::DETACH).map_err(at("let go of", base))
}

/// The device of the disk with this serial.
fn find_disk(serial: &str) -> Result<PathBuf, BootError> {
    let start = Instant::now();
    let blocks = Path::new("/sys/block");
    loop {
        let entries = fs::read_dir(blocks).map_err(at("list", blocks))?;
        for entry in entries.flatten() {
            let found = fs::read_to_string(entry.path().join("serial")).unwrap_or_default();
            if found.trim_end_matches(['\n', '\0', ' ']) == serial {
                return Ok(Path::new("/dev").join(entry.file_name()));
            }
        }
        if start.elapsed() > PATIENCE {
            return Err(BootError::Absent {
                what: "disk with serial",
                name: serial.to_owned(),
                seconds: PATIENCE.as_secs(),
            });
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// Makes `sysroot` the root directory of this process and of all that follow, and gives back the
/// memory of the initramfs.
pub fn enter(sysroot: &Path) -> Result<(), BootError> {
    for name in ["proc", "sys", "dev", "run"] {
        let (from, to) = (Path::new("/").join(name), sysroot.join(name));
        mount_move(&from, &to).map_err(at("move", &from))?;
    }
    // Files of the initramfs take memory until they are removed; failing costs only that.
    let _ = fs::remove_dir_all("/berth");
    let _ = fs::remove_file("/init");
    std::env::set_current_dir(sysroot).map_err(at("enter", sysroot))?;
    // A fresh name space shares nothing with its peers, as systemd expects to find and then change.
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private).map_err(at("make private", "/"))?;
    mount_move(".", "/").map_err(at("move", sysroot))?;
    rustix::process::chroot(".").map_err(at("enter", sysroot))?;
    std::env::set_current_dir("/").map_err(at("enter", "/"))
}
