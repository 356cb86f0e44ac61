//! Keeps containers from writing to this program's file (the class of CVE-2019-5736).
//!
//! An image can make its program a link to `/proc/self/exe`: the process that was about to become the
//! container then executes the runtime again, and the container finds a way to the runtime's file
//! that no mount namespace blocks. Whoever is root there with the file owner's rights may write it once
//! nobody executes it.
//!
//! The defence costs what the danger asks for:
//! - The container's ids do not include the file's owner (user namespaces, the daemon's default): the
//!   kernel refuses the write. Nothing to do.
//! - The file was executed from a read-only mount: nothing to do.
//! - Nobody but the container's first process is in its pid namespace before the program runs (a new
//!   namespace, no hooks inside): that process lets go of the file before its last `execve`
//!   ([`crate::tail`]). From then on `/proc/self/exe` is an empty file in memory; until then no path leads
//!   from the container to the process. Costs some microseconds.
//! - Otherwise (`exec`, namespaces that are joined, hooks) the program executes itself once more, early,
//!   through a detached read-only bind mount of its own file, which no path leads to and nothing can make
//!   writable. No copy is made. The second start takes a fifth of the CPU time of a whole `run`.
//! - Where mounts are forbidden (rootless, and the user owns the file): through a sealed copy in memory.
//!
//! What else was thought of, and why it does not do:
//! - To execute the program by a descriptor, opened without magic links: scripts do not run that way, and
//!   programs see `/dev/fd/N` where their name should be (`AT_EXECFN`).
//! - To start as process 1 of a new namespace and notice there what happened: a container in the host's pid
//!   namespace can open the file in the instant between.
//! - Landlock, so that only files below the container's root execute: no mount could then be made inside,
//!   not even in a user namespace of the program's own.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags};
use seccomp::Policy;

use crate::mounts::{fs, options::attr};
use crate::spec::{IdMapping, NamespaceKind, Spec};
use crate::sys::{self, MountAttr};
use crate::tail::Detachment;

const EXE: &str = "/proc/self/exe";

/// Whether a container of this configuration runs with the rights of this program file's owner.
pub fn is_exposed(spec: &Spec) -> bool {
    if !spec.linux.has(NamespaceKind::User) {
        return true;
    }
    // A joined namespace's mapping is not looked up: assume the worst.
    if !spec.linux.is_new(NamespaceKind::User) {
        return true;
    }
    let Ok(stat) = rustix::fs::stat(EXE) else {
        return true;
    };
    let includes = |maps: &[IdMapping], id: u32| {
        maps.iter()
            .any(|map| (map.host_id..map.host_id.saturating_add(map.size)).contains(&id))
    };
    includes(&spec.linux.uid_mappings, stat.st_uid)
        || (includes(&spec.linux.gid_mappings, stat.st_gid) && stat.st_mode & 0o020 != 0)
        || stat.st_mode & 0o002 != 0
}

/// Protects this program's file from a container about to be made, in the cheapest way that is safe. What
/// it returns belongs into [`crate::CreateRequest::detachment`]. Call it before anything is done that a
/// second start would repeat.
///
/// # Errors
/// As [`protect`].
pub fn protect_from(spec: &Spec) -> io::Result<Option<Detachment>> {
    if !is_exposed(spec) {
        return Ok(None);
    }
    let exe = open_own()?;
    if is_protected(&exe)? {
        return Ok(None);
    }
    if is_alone(spec)
        && let Some(detachment) = Detachment::prepare()
    {
        return Ok(Some(detachment));
    }
    execute_again(exe).map(|never| match never {})
}

/// Whether the container's first process is out of everyone's sight until it has let go of this file.
fn is_alone(spec: &Spec) -> bool {
    let hooks = &spec.hooks;
    let listens = spec.linux.seccomp.as_ref().is_some_and(Policy::notifies);
    spec.linux.is_new(NamespaceKind::Pid)
        && spec.linux.is_new(NamespaceKind::Mount)
        && hooks.create_container.is_empty()
        && hooks.start_container.is_empty()
        && !listens
}

/// Executes this program again from where it cannot be written, unless it runs from there already.
/// Call it before anything is done that a second start would repeat, when [`is_exposed`].
///
/// # Errors
/// When the program cannot be protected; creating a container would then be dangerous.
pub fn protect() -> io::Result<()> {
    let exe = open_own()?;
    if is_protected(&exe)? {
        return Ok(());
    }
    execute_again(exe).map(|never| match never {})
}

fn open_own() -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(
        EXE,
        OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )?)
}

fn execute_again(exe: OwnedFd) -> io::Result<std::convert::Infallible> {
    let safe = match readonly_mount(&exe) {
        Err(rustix::io::Errno::PERM) => sealed_copy(exe)?,
        other => other?,
    };
    let arguments: Vec<CString> = std::env::args_os()
        .map(|argument| CString::new(argument.into_vec()).map_err(io::Error::other))
        .collect::<io::Result<_>>()?;
    let mut pointers: Vec<*const libc::c_char> = arguments.iter().map(|a| a.as_ptr()).collect();
    pointers.push(std::ptr::null());
    Err(sys::execveat(safe.as_fd(), &pointers, sys::environ()).into())
}

fn is_protected(exe: &OwnedFd) -> io::Result<bool> {
    const ST_RDONLY: i64 = 1;
    let readonly = rustix::fs::fstatfs(exe)?.f_flags as i64 & ST_RDONLY != 0;
    Ok(readonly
        || rustix::fs::fcntl_get_seals(exe).is_ok_and(|seals| seals.contains(SealFlags::WRITE)))
}

fn readonly_mount(exe: &OwnedFd) -> Result<OwnedFd, rustix::io::Errno> {
    let tree = fs::clone_tree(exe, Path::new(""), false)?;
    let attributes = MountAttr {
        set: attr::RDONLY,
        ..MountAttr::default()
    };
    fs::set_attributes(tree.as_fd(), &attributes, false)?;
    Ok(tree)
}

fn sealed_copy(exe: OwnedFd) -> io::Result<OwnedFd> {
    let memory =
        rustix::fs::memfd_create("berth-oci", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut source = std::fs::File::from(exe);
    let mut copy = std::fs::File::from(memory);
    io::copy(&mut source, &mut copy)?;
    rustix::fs::fcntl_add_seals(
        &copy,
        SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL,
    )?;
    Ok(copy.into())
}
