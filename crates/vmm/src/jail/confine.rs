//! Namespaces, root, user, capabilities, limits, Landlock.

use std::{ffi::CStr, io, os::fd::AsFd, path::PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, PathBeneath, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetError, Scope,
};
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
/// The same with folders of the host, whose files a guest knows and opens.
const MAX_FILES_SHARING: u64 = 16384;
/// A directory that every system has and that the new root is mounted on, in our namespace only.
const MOUNT_POINT: &CStr = c"/tmp";

/// What the process is locked up in.
#[derive(Debug, Default)]
pub struct Jail {
    /// As whom.
    pub user: JailConfig,
    /// The one directory of the host that stays visible, as [`Jail::SOCKETS`]: for sockets to connect to.
    pub sockets: Option<PathBuf>,
    /// Folders whose files can be opened, and whether they are only read. With any, the threads started
    /// afterwards have capabilities until [`drop_capabilities`].
    pub shares: Vec<(OwnedFd, bool)>,
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
        let restricted = landlock(&self.shares).map_err(io::Error::other);
        restricted.step("restrict itself by Landlock")
    }

    /// What serving the folders takes: to read what any user of the guest may, and unless all of them
    /// are only read, to make it theirs and to act as them.
    fn kept(&self) -> CapabilitySet {
        let writable = self.shares.iter().any(|(_, read_only)| !read_only);
        match (self.shares.is_empty(), writable) {
            (true, _) => CapabilitySet::empty(),
            (false, false) => CapabilitySet::DAC_READ_SEARCH,
            (false, true) => {
                CapabilitySet::CHOWN
                    | CapabilitySet::DAC_OVERRIDE
                    | CapabilitySet::FOWNER
                    | CapabilitySet::FSETID
                    | CapabilitySet::SETUID
                    | CapabilitySet::SETGID
            }
        }
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
        let most = match self.shares.is_empty() {
            true => MAX_FILES,
            false => MAX_FILES_SHARING,
        };
        let files = hard.map_or(most, |hard| hard.min(most));
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
        let kept = self.kept();
        if !kept.is_empty() {
            devices::virtio::fs::keep_capabilities().step("keep capabilities for folders")?;
        }
        if self.user.uid != 0 {
            let uid = rustix::process::Uid::from_raw(self.user.uid);
            let gid = rustix::process::Gid::from_raw(self.user.gid);
            set_thread_groups(&[]).step("leave all groups")?;
            set_thread_res_gid(gid, gid, gid).step("change the group")?;
            set_thread_res_uid(uid, uid, uid).step("change the user")?;
        }
        let sets = CapabilitySets {
            effective: kept,
            permitted: kept,
            inheritable: CapabilitySet::empty(),
        };
        set_capabilities(None, sets).step("drop capabilities")
    }
}

/// Gives up what the calling thread kept for folders.
///
/// # Errors
/// When the kernel refuses: the thread must not go on.
pub fn drop_capabilities() -> io::Result<()> {
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    Ok(rustix::thread::set_capabilities(None, none)?)
}

/// A copy of a mounted directory, to be mounted elsewhere.
fn open_tree(path: &PathBuf) -> Result<OwnedFd, JailError> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    rustix::mount::open_tree(CWD, path, flags).step("open the directory of sockets")
}

/// Denies everything Landlock knows of, but for files below `shares`. A kernel without it, or with an
/// older one, denies less.
fn landlock(shares: &[(OwnedFd, bool)]) -> Result<(), RulesetError> {
    let abi = ABI::V6;
    let mut rules = Ruleset::default()
        .handle_access(AccessFs::from_all(abi))?
        .handle_access(AccessNet::from_all(abi))?
        .scope(Scope::from_all(abi))?
        .create()?;
    for (folder, read_only) in shares {
        rules = rules.add_rule(PathBeneath::new(folder.as_fd(), below(*read_only)))?;
    }
    rules.restrict_self().map(drop)
}

/// What can be done with files of a folder. Devices are none of them, and nothing is executed.
fn below(read_only: bool) -> BitFlags<AccessFs> {
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    if read_only {
        return read;
    }
    read | AccessFs::WriteFile
        | AccessFs::Truncate
        | AccessFs::Refer
        | AccessFs::RemoveDir
        | AccessFs::RemoveFile
        | AccessFs::MakeDir
        | AccessFs::MakeReg
        | AccessFs::MakeSock
        | AccessFs::MakeFifo
        | AccessFs::MakeSym
}
