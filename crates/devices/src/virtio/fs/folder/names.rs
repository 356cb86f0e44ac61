//! Names in directories: found, made, moved, removed.

use std::{ffi::CStr, os::fd::OwnedFd, sync::Arc};

use rustix::{
    fs::{AtFlags, FileType, Mode, RenameFlags},
    io::Errno,
};

use super::{
    Folder,
    handles::Handle,
    system::{create, kind, stat, stat_at},
};
use crate::virtio::fs::fuse::{Entry, Name, Operation, Reply, Request};

impl Folder {
    /// Requests whose node is a directory and that have a name in it.
    pub(super) fn name(&mut self, request: &Request<'_>, reply: &mut Reply) -> Result<(), Errno> {
        let parent = request.header.node;
        let directory = self.nodes.file(parent)?;
        match request.operation {
            Operation::Lookup { name } => self.tell(parent, &directory, name.as_c_str(), reply),
            Operation::Unlink { name } => self.remove(&directory, name, AtFlags::empty()),
            Operation::RemoveDirectory { name } => {
                self.remove(&directory, name, AtFlags::REMOVEDIR)
            }
            Operation::Rename {
                name,
                to,
                new_name,
                flags,
            } => self.rename((parent, &directory, name), (to, new_name), flags),
            Operation::Create { .. } => self.create(request, &directory, reply),
            _ => self.make(request, &directory, reply),
        }
    }

    /// Tells the guest of an entry of a directory.
    fn tell(
        &mut self,
        parent: u64,
        directory: &OwnedFd,
        name: &CStr,
        reply: &mut Reply,
    ) -> Result<(), Errno> {
        let stat = stat_at(directory, name)?;
        let node = self.nodes.found(parent, name, &stat)?;
        reply.entry(&Entry {
            node,
            attributes: stat.into(),
        });
        Ok(())
    }

    /// Makes what is not opened at once.
    fn make(
        &mut self,
        request: &Request<'_>,
        directory: &OwnedFd,
        reply: &mut Reply,
    ) -> Result<(), Errno> {
        let header = request.header;
        let name = match request.operation {
            Operation::Link { source, name } => {
                let file = self.nodes.file(source)?;
                let (name, follow) = (name.as_c_str(), AtFlags::SYMLINK_FOLLOW);
                self.own.with(&file, |own, number| {
                    rustix::fs::linkat(own, number, directory, name, follow)
                })?;
                name
            }
            Operation::Symlink { name, target } => {
                let _user = self.user.act_as(header.uid, header.gid)?;
                rustix::fs::symlinkat(target, directory, name.as_c_str())?;
                name.as_c_str()
            }
            Operation::MakeDirectory { name, mode } => {
                let _user = self.user.act_as(header.uid, header.gid)?;
                rustix::fs::mkdirat(directory, name.as_c_str(), permissions(mode))?;
                name.as_c_str()
            }
            Operation::MakeNode { name, mode } => {
                let kind = FileType::from_raw_mode(mode);
                let harmless = [FileType::RegularFile, FileType::Fifo, FileType::Socket];
                if !harmless.contains(&kind) {
                    return Err(Errno::PERM);
                }
                let _user = self.user.act_as(header.uid, header.gid)?;
                rustix::fs::mknodat(directory, name.as_c_str(), kind, permissions(mode), 0)?;
                name.as_c_str()
            }
            _ => return Err(Errno::NOSYS),
        };
        self.tell(header.node, directory, name, reply)
    }

    /// Makes a file, or finds it, and opens it.
    fn create(
        &mut self,
        request: &Request<'_>,
        directory: &OwnedFd,
        reply: &mut Reply,
    ) -> Result<(), Errno> {
        let header = request.header;
        let Operation::Create {
            name,
            flags,
            mode,
            kill_privileges,
        } = request.operation
        else {
            return Err(Errno::NOSYS);
        };
        self.handles.has_room()?;
        let exclusive = rustix::fs::OFlags::from_bits_retain(flags) & rustix::fs::OFlags::EXCL;
        let flags = self.open_flags(flags)?;
        let file = {
            let _user = self.user.act_as(header.uid, header.gid)?;
            create(
                directory,
                name.as_c_str(),
                flags | exclusive,
                permissions(mode),
            )?
        };
        let stat = stat(&file)?;
        if kind(&stat) != FileType::RegularFile {
            return Err(Errno::OPNOTSUPP);
        }
        let node = self.nodes.found(header.node, name.as_c_str(), &stat)?;
        if kill_privileges && flags.contains(rustix::fs::OFlags::TRUNC) {
            super::content::drop_privileges(&file)?;
        }
        let handle = self.handles.add(Handle::File(Arc::new(file)));
        reply.entry(&Entry {
            node,
            attributes: stat.into(),
        });
        reply.open(handle);
        Ok(())
    }

    fn remove(&mut self, directory: &OwnedFd, name: Name<'_>, how: AtFlags) -> Result<(), Errno> {
        let name = name.as_c_str();
        let node = self.nodes.at(directory, name);
        self.nodes.losing_name(node);
        rustix::fs::unlinkat(directory, name, how)?;
        self.nodes.lost_name(node);
        Ok(())
    }

    fn rename(
        &mut self,
        (parent, from, name): (u64, &OwnedFd, Name<'_>),
        (to, new_name): (u64, Name<'_>),
        flags: u32,
    ) -> Result<(), Errno> {
        let flags = RenameFlags::from_bits_retain(flags);
        if !(RenameFlags::NOREPLACE | RenameFlags::EXCHANGE).contains(flags) {
            return Err(Errno::INVAL);
        }
        let (name, new_name) = (name.as_c_str(), new_name.as_c_str());
        let target = self.nodes.file(to)?;
        let moved = self.nodes.at(from, name);
        let replaced = self
            .nodes
            .at(&target, new_name)
            .filter(|it| Some(*it) != moved);
        let exchanged = flags.contains(RenameFlags::EXCHANGE);
        if !exchanged {
            self.nodes.losing_name(replaced);
        }
        rustix::fs::renameat_with(from, name, &*target, new_name, flags)?;
        if exchanged {
            self.nodes.renamed(replaced, parent, name);
        } else {
            self.nodes.lost_name(replaced);
        }
        self.nodes.renamed(moved, to, new_name);
        Ok(())
    }
}

/// The permission bits of a mode.
fn permissions(mode: u32) -> Mode {
    Mode::from_raw_mode(mode & 0o7777)
}
