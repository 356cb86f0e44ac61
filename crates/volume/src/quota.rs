//! Project quotas: a limit on all that lies below a directory.
//!
//! ext4 (feature `project`, mounted with `prjquota`) and xfs (`prjquota`) count and limit by a
//! project id that files inherit from their directory. Source: `quotactl_fd(2)`,
//! `ioctl_xfs_fssetxattr(2)`, `include/uapi/linux/{fs,quota}.h`.
//!
//! The only module of this crate that calls the kernel without a safe wrapper.

use std::os::fd::{AsFd, AsRawFd};

use rustix::io::Errno;
use rustix::ioctl;

use crate::Usage;

const PRJQUOTA: u32 = 2;
const Q_GETQUOTA: u32 = 0x80_0007;
const Q_SETQUOTA: u32 = 0x80_0008;
/// `Q_XGETQSTAT`: which quotas are on; both ext4 and xfs answer it.
const Q_XGETQSTAT: u32 = 0x5805;

/// `FS_QUOTA_PDQ_ENFD`: limits of projects are enforced.
const PROJECTS_ENFORCED: u16 = 1 << 5;

/// `QIF_BLIMITS`: the block limits of a `struct if_dqblk` are meant.
const QIF_BLIMITS: u32 = 1;
/// `FS_XFLAG_PROJINHERIT`: what is made below inherits the project.
const FS_XFLAG_PROJINHERIT: u32 = 0x200;
/// Unit of the block limits in `struct if_dqblk`.
const QUOTA_BLOCK: u64 = 1024;

/// `struct if_dqblk`.
#[repr(C)]
#[derive(Default)]
struct Dqblk {
    block_hard: u64,
    block_soft: u64,
    space: u64,
    inode_hard: u64,
    inode_soft: u64,
    inodes: u64,
    block_time: u64,
    inode_time: u64,
    valid: u32,
}

/// `struct fs_quota_stat`; only the flags matter here.
#[repr(C)]
#[derive(Default)]
struct QuotaStat {
    version: i8,
    flags: u16,
    pad: i8,
    rest: [u64; 9],
}

/// `struct fsxattr`.
#[repr(C)]
#[derive(Default)]
struct Fsxattr {
    xflags: u32,
    extsize: u32,
    nextents: u32,
    projid: u32,
    cowextsize: u32,
    pad: [u8; 8],
}

const FS_IOC_FSGETXATTR: ioctl::Opcode = ioctl::opcode::read::<Fsxattr>(b'X', 31);
const FS_IOC_FSSETXATTR: ioctl::Opcode = ioctl::opcode::write::<Fsxattr>(b'X', 32);

/// Whether the file system of `directory` enforces project quotas; if not, why.
pub(crate) fn probe(directory: impl AsFd) -> Result<(), String> {
    let mut stat = QuotaStat::default();
    match quotactl(&directory, Q_XGETQSTAT, 0, (&raw mut stat).cast()) {
        Ok(()) if stat.flags & PROJECTS_ENFORCED != 0 => Ok(()),
        Err(Errno::PERM | Errno::ACCESS) => {
            Err("quotas need the capability CAP_SYS_ADMIN".to_owned())
        }
        Ok(()) | Err(_) => Err(
            "the pool's file system has no project quotas switched on; use xfs or ext4 with \
             the feature `project`, mounted with the option prjquota (Linux 5.14 or later)"
                .to_owned(),
        ),
    }
}

/// Puts an empty directory into project `project`; what is made below inherits it.
pub(crate) fn set_project(directory: impl AsFd, project: u32) -> Result<(), Errno> {
    let fd = directory.as_fd();
    // SAFETY: FS_IOC_FSGETXATTR writes a whole `struct fsxattr`, which `Fsxattr` mirrors.
    let mut attributes: Fsxattr =
        unsafe { ioctl::ioctl(fd, ioctl::Getter::<FS_IOC_FSGETXATTR, Fsxattr>::new())? };
    attributes.projid = project;
    attributes.xflags |= FS_XFLAG_PROJINHERIT;
    // SAFETY: FS_IOC_FSSETXATTR reads a whole `struct fsxattr`, which `Fsxattr` mirrors.
    unsafe {
        ioctl::ioctl(
            fd,
            ioctl::Setter::<FS_IOC_FSSETXATTR, Fsxattr>::new(attributes),
        )
    }
}

/// The project a directory is in; 0 for none.
pub(crate) fn project(directory: impl AsFd) -> Result<u32, Errno> {
    // SAFETY: FS_IOC_FSGETXATTR writes a whole `struct fsxattr`, which `Fsxattr` mirrors.
    let attributes: Fsxattr = unsafe {
        ioctl::ioctl(
            directory.as_fd(),
            ioctl::Getter::<FS_IOC_FSGETXATTR, Fsxattr>::new(),
        )?
    };
    Ok(attributes.projid)
}

/// Limits the project to `bytes`, rounded up to whole KiB; 0 takes the limit away.
pub(crate) fn set_limit(directory: impl AsFd, project: u32, bytes: u64) -> Result<(), Errno> {
    let blocks = bytes.div_ceil(QUOTA_BLOCK);
    let mut limit = Dqblk {
        block_hard: blocks,
        block_soft: blocks,
        valid: QIF_BLIMITS,
        ..Dqblk::default()
    };
    quotactl(&directory, Q_SETQUOTA, project, (&raw mut limit).cast())
}

/// What the project uses.
pub(crate) fn usage(directory: impl AsFd, project: u32) -> Result<Usage, Errno> {
    let mut block = Dqblk::default();
    quotactl(&directory, Q_GETQUOTA, project, (&raw mut block).cast())?;
    Ok(Usage {
        bytes: block.space,
        inodes: block.inodes,
    })
}

/// `quotactl_fd(2)` for project quotas. `data` must be what `command` wants; the callers above,
/// all in this module, see to that.
fn quotactl(
    directory: &impl AsFd,
    command: u32,
    project: u32,
    data: *mut libc::c_void,
) -> Result<(), Errno> {
    let fd = directory.as_fd().as_raw_fd();
    // QCMD(command, type) of <linux/quota.h>.
    let command = command << 8 | PRJQUOTA;
    // SAFETY: the descriptor is open for the call, and `data` points to a live local of the type
    // the command reads or writes (`struct fs_quota_stat` for Q_XGETQSTAT,
    // `struct if_dqblk` for the others).
    let outcome = unsafe { libc::syscall(libc::SYS_quotactl_fd, fd, command, project, data) };
    if outcome == 0 {
        return Ok(());
    }
    let code = std::io::Error::last_os_error().raw_os_error();
    Err(code.map_or(Errno::IO, Errno::from_raw_os_error))
}

/// The kernel's sizes of the structures (`include/uapi/linux/{quota,dqblk_xfs,fs}.h`).
const _: () = {
    assert!(size_of::<Dqblk>() == 72);
    assert!(size_of::<QuotaStat>() == 80);
    assert!(size_of::<Fsxattr>() == 28);
};
