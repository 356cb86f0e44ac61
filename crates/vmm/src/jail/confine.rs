//! Namespaces, root, user, capabilities, limits, Landlock.

use std::{ffi::CStr, io, path::PathBuf};

use landlock::{ABI, Access, AccessFs, AccessNet, Ruleset, RulesetAttr, Scope};
use rustix::{
    fd::OwnedFd,
    fs::{CWD, mkdir},
    mount::{
        MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, move_mount,
    },
    process::{Resource, Rlimit, chdir, getrlimit, pivot_root, setrlimit},
    thread::{CapabilitySet, CapabilitySets, UnshareFlags},
};

use super::{JailError, Step};
use crate::config::JailConfig;

/// Files a machine may have open: its own, and the connections of its vsock.
const MAX_FILES: u64 = 4096;
/// A directory that every system has and that the new root is mounted on, in our namespace only.
const MOUNT_POINT: &CStr = c"/tmp";

/// What the process is locked up in.
#[derive(Debug, Clone, Default)]
pub struct Jail {
    /// As whom.
    pub user: JailConfig,
    /// The one directory of the host that stays visible, as [`Jail::SOCKETS`]: for sockets to connect to.
    pub sockets: Option<PathBuf>,
}

impl Jail {
    /// Where the directory of sockets is inside.
    pub const SOCKETS: &str = "/sockets";

    /// Locks the calling process up. It has one thread, and all files it needs are open.
    ///
    /// # Errors
    /// With the step that failed; the process is then to end.
    pub fn enter(&self) -> Result<(), JailError> {
        let namespaces = UnshareFlags::NEWNS
            | UnshareFlags::NEWNET
            | UnshareFlags::NEWIPC
            | UnshareFlags::NEWUTS;
        // SAFETY: none of these flags unshares the table of open files, which is what could be
        // unsound.
        unsafe { rustix::thread::unshare_unsafe(namespaces) }.step("make namespaces")?;
        self.change_root()?;
        self.limit()?;
        self.drop_privileges()?;
        landlock_all()
    }

    /// Makes an empty file system the root, and lets go of the old one.
    fn change_root(&self) -> Result<(), JailError> {
        use rustix::mount::{mount, mount_change, mount_remount, unmount};
        let sockets = self.sockets.as_ref().map(open_tree).transpose()?;
        let propagation = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
        mount_change("/", propagation).step("keep mounts to itself")?;
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        mount(c"none", MOUNT_POINT, c"tmpfs", flags, c"size=64k,mode=755")
            .step("mount an empty root")?;
        chdir(MOUNT_POINT).step("go to the new root")?;
        if let Some(sockets) = sockets {
            let inside = Self::SOCKETS.trim_start_matches('/');
            mkdir(inside, 0o755.into()).step("make a directory for sockets")?;
            let whole = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
            move_mount(&sockets, "", CWD, inside, whole).step("mount the directory of sockets")?;
        }
        mount_remount(".", flags | MountFlags::RDONLY, c"").step("make the new root read-only")?;
        pivot_root(".", ".").step("change the root")?;
        unmount(".", UnmountFlags::DETACH).step("let go of the old root")?;
        chdir("/").step("go to the root")
    }

    fn limit(&self) -> Result<(), JailError> {
        let hard = getrlimit(Resource::Nofile).maximum;
        let files = hard.map_or(MAX_FILES, |hard| hard.min(MAX_FILES));
        for (resource, value) in [(Resource::Nofile, files), (Resource::Core, 0)] {
            let limit = Rlimit {
                current: Some(value),
                maximum: Some(value),
            };
            setrlimit(resource, limit).step("set limits")?;
        }
        Ok(())
    }

    fn drop_privileges(&self) -> Result<(), JailError> {
        use rustix::thread::{
            clear_ambient_capability_set, remove_capability_from_bounding_set, set_capabilities,
            set_no_new_privs, set_thread_groups, set_thread_res_gid, set_thread_res_uid,
        };
        set_no_new_privs(true).step("set no_new_privs")?;
        clear_ambient_capability_set().step("drop ambient capabilities")?;
        for bit in 0..u64::BITS {
            let Some(capability) = CapabilitySet::from_bits(1 << bit) else {
                continue;
            };
            match remove_capability_from_bounding_set(capability) {
                // A capability this kernel does not have.
                Ok(()) | Err(rustix::io::Errno::INVAL) => {}
                Err(error) => return Err(error).step("drop bounding capabilities"),
            }
        }
        if self.user.uid != 0 {
            let uid = rustix::process::Uid::from_raw(self.user.uid);
            let gid = rustix::process::Gid::from_raw(self.user.gid);
            set_thread_groups(&[]).step("leave all groups")?;
            set_thread_res_gid(gid, gid, gid).step("change the group")?;
            set_thread_res_uid(uid, uid, uid).step("change the user")?;
        }
        let none = CapabilitySets {
            effective: CapabilitySet::empty(),
            permitted: CapabilitySet::empty(),
            inheritable: CapabilitySet::empty(),
        };
        set_capabilities(None, none).step("drop capabilities")
    }
}

/// A copy of a mounted directory, to be mounted elsewhere.
fn open_tree(path: &PathBuf) -> Result<OwnedFd, JailError> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    rustix::mount::open_tree(CWD, path, flags).step("open the directory of sockets")
}

/// Denies everything Landlock knows of. A kernel without it, or with an older one, denies less.
fn landlock_all() -> Result<(), JailError> {
    let abi = ABI::V6;
    Ruleset::default()
        .handle_access(AccessFs::from_all(abi))
        .and_then(|rules| rules.handle_access(AccessNet::from_all(abi)))
        .and_then(|rules| rules.scope(Scope::from_all(abi)))
        .and_then(Ruleset::create)
        .and_then(|rules| rules.restrict_self())
        .map(drop)
        .map_err(io::Error::other)
        .step("restrict itself by Landlock")
}
