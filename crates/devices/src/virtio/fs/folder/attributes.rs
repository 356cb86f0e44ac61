//! What files are: looked at and changed.

use std::{ffi::CStr, os::fd::OwnedFd, sync::Arc};

use rustix::{
    fs::{AtFlags, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags},
    io::Errno,
};

use super::{Folder, content::drop_privileges, system::stat};
use crate::virtio::fs::fuse::{Operation, Reply, SetAttributes, SetTime};

/// The one kind of extended attributes that is passed on. Others mean something to the host's kernel,
/// or to the guest's that the host does not vouch for.
const USER: &[u8] = b"user.";
/// Most bytes of a value, and of a list of names (`XATTR_SIZE_MAX`, `XATTR_LIST_MAX`).
const MAX_XATTR: usize = 64 << 10;
/// `UTIME_OMIT` and `UTIME_NOW` of `utimensat(2)`.
const OMIT: i64 = libc::UTIME_OMIT;
const NOW: i64 = libc::UTIME_NOW;

impl Folder {
    /// Requests on what a node is.
    pub(super) fn attribute(
        &mut self,
        node: u64,
        operation: &Operation<'_>,
        reply: &mut Reply,
    ) -> Result<(), Errno> {
        match *operation {
            Operation::GetAttr { handle } => {
                let file = self.file_of(node, handle)?;
                reply.attributes(&stat(&file)?.into());
                Ok(())
            }
            Operation::SetAttr(changes) => self.change(node, &changes, reply),
            Operation::ReadLink => {
                let target = rustix::fs::readlinkat(&*self.nodes.file(node)?, c"", Vec::new())?;
                reply.raw(target.to_bytes());
                Ok(())
            }
            Operation::StatFs => {
                reply.statfs(&rustix::fs::fstatvfs(&*self.nodes.file(node)?)?);
                Ok(())
            }
            Operation::ListXattr { size } => self.list_xattrs(node, size, reply),
            Operation::GetXattr { name, size } => {
                let file = self.for_xattr(node, name)?;
                if size == 0 {
                    reply.count(narrow(rustix::fs::fgetxattr_query(&file, name)?));
                    return Ok(());
                }
                let mut value = vec![0; (size as usize).min(MAX_XATTR)];
                let bytes = rustix::fs::fgetxattr(&file, name, value.as_mut_slice())?;
                reply.raw(&value[..bytes]);
                Ok(())
            }
            Operation::SetXattr { name, value, flags } => {
                let file = self.for_xattr(node, name)?;
                rustix::fs::fsetxattr(&file, name, value, XattrFlags::from_bits_retain(flags))
            }
            Operation::RemoveXattr { name } => {
                let file = self.for_xattr(node, name)?;
                rustix::fs::fremovexattr(&file, name)
            }
            _ => Err(Errno::NOSYS),
        }
    }

    /// The file of a handle where there is one, else of a node.
    fn file_of(&mut self, node: u64, handle: Option<u64>) -> Result<Arc<OwnedFd>, Errno> {
        match handle {
            Some(handle) => self.handles.any(handle),
            None => self.nodes.file(node),
        }
    }

    fn change(&mut self, node: u64, asked: &SetAttributes, reply: &mut Reply) -> Result<(), Errno> {
        let file = self.file_of(node, asked.handle)?;
        let whole = AtFlags::EMPTY_PATH;
        if let Some(mode) = asked.mode {
            let mode = Mode::from_raw_mode(mode & 0o7777);
            self.own.with(&file, |own, number| {
                rustix::fs::chmodat(own, number, mode, AtFlags::empty())
            })?;
        }
        if asked.uid.is_some() || asked.gid.is_some() {
            // The number that stands for no one is no user.
            if asked.uid == Some(u32::MAX) || asked.gid == Some(u32::MAX) {
                return Err(Errno::INVAL);
            }
            let (uid, gid) = (asked.uid.map(Uid::from_raw), asked.gid.map(Gid::from_raw));
            rustix::fs::chownat(&*file, c"", uid, gid, whole)?;
        }
        if let Some(size) = asked.size {
            self.truncate(&file, asked, size)?;
        }
        let times = Timestamps {
            last_access: timestamp(asked.atime),
            last_modification: timestamp(asked.mtime),
        };
        if asked.atime != SetTime::Keep || asked.mtime != SetTime::Keep {
            rustix::fs::utimensat(&*file, c"", &times, whole)?;
        }
        reply.attributes(&stat(&file)?.into());
        Ok(())
    }

    fn truncate(&self, file: &Arc<OwnedFd>, asked: &SetAttributes, size: u64) -> Result<(), Errno> {
        let file = match asked.handle {
            Some(_) => Arc::clone(file),
            None => Arc::new(self.own.reopen(file, OFlags::WRONLY)?),
        };
        rustix::fs::ftruncate(&*file, size)?;
        if asked.kill_privileges {
            drop_privileges(&file)?;
        }
        Ok(())
    }

    /// A file opened for one of its extended attributes.
    fn for_xattr(&mut self, node: u64, name: &CStr) -> Result<OwnedFd, Errno> {
        if !name.to_bytes().starts_with(USER) {
            return Err(Errno::OPNOTSUPP);
        }
        let file = self.nodes.file(node)?;
        self.own.reopen(&file, OFlags::RDONLY)
    }

    fn list_xattrs(&mut self, node: u64, size: u32, reply: &mut Reply) -> Result<(), Errno> {
        let place = self.nodes.file(node)?;
        let mut list = vec![0; MAX_XATTR];
        let bytes = match self.own.reopen(&place, OFlags::RDONLY) {
            Ok(file) => rustix::fs::flistxattr(&file, list.as_mut_slice())?,
            // What cannot be opened can have none of ours.
            Err(Errno::LOOP | Errno::OPNOTSUPP) => 0,
            Err(error) => return Err(error),
        };
        let names = list[..bytes].split_inclusive(|&byte| byte == 0);
        let ours: Vec<u8> = names
            .filter(|it| it.starts_with(USER))
            .flatten()
            .copied()
            .collect();
        match size as usize {
            0 => reply.count(narrow(ours.len())),
            room if room < ours.len() => return Err(Errno::RANGE),
            _ => reply.raw(&ours),
        }
        Ok(())
    }
}

fn narrow(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

fn timestamp(time: SetTime) -> Timespec {
    match time {
        SetTime::Keep => Timespec {
            tv_sec: 0,
            tv_nsec: OMIT,
        },
        SetTime::Now => Timespec {
            tv_sec: 0,
            tv_nsec: NOW,
        },
        // More than a second of them is refused by the kernel, and no number of 32 bits is special.
        SetTime::To(tv_sec, nanoseconds) => Timespec {
            tv_sec,
            tv_nsec: nanoseconds.into(),
        },
    }
}
