//! User namespaces: writing id maps, and namespaces made only to describe an id-mapped mount.
//!
//! As root the maps are written directly. Without privilege one's own id can be mapped directly; longer
//! ranges need the setuid helpers `newuidmap` and `newgidmap`, which consult /etc/subuid and
//! /etc/subgid. That exec is the only one of the create path, and only of rootless containers.

use std::fmt::Write as _;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{Command, Stdio};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::channel::{Channel, Word};
use crate::error::{Context, Failure, Step};
use crate::spec::IdMapping;
use crate::sys;

/// Maps the ids of the new user namespace of process `pid`.
pub(crate) fn write_maps(pid: i32, uids: &[IdMapping], gids: &[IdMapping]) -> Step<()> {
    // Groups first: without privilege setgroups must be denied before gid_map can be written.
    write_map(pid, "gid_map", "newgidmap", gids)?;
    write_map(pid, "uid_map", "newuidmap", uids)
}

fn write_map(pid: i32, file: &str, helper: &str, mappings: &[IdMapping]) -> Step<()> {
    let mut text = String::with_capacity(mappings.len() * 24);
    for map in mappings {
        let _ = writeln!(text, "{} {} {}", map.container_id, map.host_id, map.size);
    }
    match write_proc(pid, file, text.as_bytes()) {
        Err(Errno::PERM)
            if file == "gid_map" && single_own(mappings, rustix::process::getegid().as_raw()) =>
        {
            write_proc(pid, "setgroups", b"deny")
                .ctx("cannot deny setgroups in the user namespace")?;
            write_proc(pid, file, text.as_bytes())
                .ctx("cannot map the group ids of the user namespace")
        }
        Err(Errno::PERM) => run_helper(pid, helper, mappings),
        other => other.with(|| format!("cannot write {file} of the user namespace")),
    }
}

fn single_own(mappings: &[IdMapping], id: u32) -> bool {
    matches!(mappings, [map] if map.size == 1 && map.host_id == id)
}

fn write_proc(pid: i32, file: &str, bytes: &[u8]) -> Result<(), Errno> {
    let path = format!("/proc/{pid}/{file}");
    let fd = rustix::fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(fd, bytes).map(drop)
}

fn run_helper(pid: i32, helper: &str, mappings: &[IdMapping]) -> Step<()> {
    let mut command = Command::new(helper);
    command
        .arg(pid.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    for map in mappings {
        for number in [map.container_id, map.host_id, map.size] {
            command.arg(number.to_string());
        }
    }
    let output = command.output().with(|| {
        format!(
            "cannot run {helper}, which maps ranges of ids without root; install package uidmap"
        )
    })?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(Failure::new(
        format!("{helper} refused the id mappings; check /etc/subuid and /etc/subgid"),
        said.trim(),
    ))
}

/// The id outside that is `inside` in the mapping.
pub(crate) fn outside(mappings: &[IdMapping], inside: u32) -> Option<u32> {
    mappings.iter().find_map(|map| {
        let offset = inside
            .checked_sub(map.container_id)
            .filter(|offset| *offset < map.size)?;
        map.host_id.checked_add(offset)
    })
}

/// The user namespace of process `pid`.
pub(crate) fn namespace_of(pid: i32) -> Step<OwnedFd> {
    rustix::fs::open(
        format!("/proc/{pid}/ns/user"),
        OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .ctx("cannot open the user namespace of the container")
}

/// User namespaces that describe id-mapped mounts, one for each mapping asked for.
#[derive(Default)]
pub(crate) struct Namespaces<'a>(Vec<(&'a [IdMapping], &'a [IdMapping], OwnedFd)>);

impl<'a> Namespaces<'a> {
    /// That with these mappings.
    pub(crate) fn get(
        &mut self,
        uids: &'a [IdMapping],
        gids: &'a [IdMapping],
    ) -> Step<BorrowedFd<'_>> {
        let known = self.0.iter().position(|it| (it.0, it.1) == (uids, gids));
        let index = match known {
            Some(index) => index,
            None => {
                self.0.push((uids, gids, namespace_for(uids, gids)?));
                self.0.len() - 1
            }
        };
        Ok(self.0[index].2.as_fd())
    }
}

/// A user namespace with these mappings and no process in it: what an id-mapped mount is described by.
fn namespace_for(uids: &[IdMapping], gids: &[IdMapping]) -> Step<OwnedFd> {
    let (ours, theirs) = Channel::pair()?;
    // SAFETY: the callers of this crate's `create` are single-threaded; the child only waits and leaves.
    let child = unsafe { sys::clone3(libc::CLONE_NEWUSER as u64, None) }
        .ctx("cannot make a user namespace for an id-mapped mount")?;
    let Some(child) = child else {
        drop(ours);
        let _ = theirs.expect(Word::Go);
        sys::exit_now(0);
    };
    drop(theirs);
    let namespace = write_maps(child.pid, uids, gids).and_then(|()| namespace_of(child.pid));
    drop(ours);
    let _ = rustix::process::waitid(
        rustix::process::WaitId::PidFd(child.pidfd.as_fd()),
        rustix::process::WaitIdOptions::EXITED,
    );
    namespace
}
