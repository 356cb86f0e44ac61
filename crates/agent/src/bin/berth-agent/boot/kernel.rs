//! What the kernel has to be told before anything else: its own file systems, modules, parameters.

use std::{
    fs::{self, File},
    io,
    path::Path,
};

use rustix::{
    io::Errno,
    mount::{MountFlags, mount},
    system::finit_module,
};

use super::{BootError, at};
use crate::console::say;

/// Type, target, options: mounted in this order.
const FILE_SYSTEMS: &[(&str, &str, &str)] = &[
    ("proc", "/proc", ""),
    ("sysfs", "/sys", ""),
    ("devtmpfs", "/dev", "mode=0755"),
    ("tmpfs", "/run", "mode=0755,size=20%"),
    ("devpts", "/dev/pts", "gid=5,mode=0620,ptmxmode=0666"),
    ("tmpfs", "/dev/shm", "mode=1777"),
];

/// Mounts what every program expects. They move along into the guest's root.
pub fn mount_file_systems() -> Result<(), BootError> {
    for &(kind, target, options) in FILE_SYSTEMS {
        fs::create_dir_all(target).map_err(at("make", target))?;
        let mut flags = MountFlags::NOSUID | MountFlags::NOEXEC;
        if kind != "devpts" && kind != "devtmpfs" {
            flags |= MountFlags::NODEV;
        }
        if matches!(target, "/dev" | "/run") {
            // The agent itself is executed from /run.
            flags.remove(MountFlags::NOEXEC);
        }
        mount_at(kind, kind, Path::new(target), flags, options)?;
    }
    Ok(())
}

/// `mount(2)` with its error explained.
pub fn mount_at(
    source: &str,
    kind: &str,
    target: &Path,
    flags: MountFlags,
    options: &str,
) -> Result<(), BootError> {
    let data = std::ffi::CString::new(options).map_err(|error| BootError::Mount {
        what: source.to_owned(),
        target: target.display().to_string(),
        source: error.into(),
    })?;
    mount(source, target, kind, flags, data.as_c_str()).map_err(|errno| BootError::Mount {
        what: format!("{kind} {source}"),
        target: target.display().to_string(),
        source: errno.into(),
    })
}

/// Loads the modules that every guest needs.
pub fn load_modules() -> Result<(), BootError> {
    load_list(Path::new(agent::MODULE_LIST_PATH))
}

/// Loads the modules for a file system that not every guest has, if it needs any.
pub fn load_modules_for(file_system: &str) -> Result<(), BootError> {
    let path = format!("{}-{file_system}", agent::MODULE_LIST_PATH);
    load_list(Path::new(&path))
}

/// Loads the modules of a list of the initramfs, in its order. One that does not load is said and passed
/// over: what needs it says more.
fn load_list(list: &Path) -> Result<(), BootError> {
    let names = match fs::read_to_string(list) {
        Ok(names) => names,
        // A kernel with everything built in.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(at("read", list)(source)),
    };
    let directory = list.parent().unwrap_or(Path::new("/"));
    for name in names.lines().filter(|name| !name.is_empty()) {
        let path = directory.join(name);
        let file = File::open(&path).map_err(at("open", &path))?;
        match finit_module(&file, c"", 0) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => say(&format!("module {name} does not load: {errno}")),
        }
    }
    Ok(())
}

/// Sets a kernel parameter by its dotted name.
pub fn set_parameter(key: &str, value: &str) -> Result<(), BootError> {
    let path = Path::new("/proc/sys").join(key.replace('.', "/"));
    fs::write(&path, value).map_err(at("set the kernel parameter", &path))
}
