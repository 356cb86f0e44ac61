//! A guest's request, taken apart and checked.

use std::ffi::CStr;

use rustix::io::Errno;

use super::MAX_ARGUMENTS;

/// Longest name of a file (`NAME_MAX`), in bytes.
const MAX_NAME: usize = 255;
/// Longest target of a symbolic link (`PATH_MAX` with its end), in bytes.
const MAX_TARGET: usize = 4095;
/// Longest name of an extended attribute (`XATTR_NAME_MAX`), in bytes.
const MAX_XATTR_NAME: usize = 255;
/// Longest value of an extended attribute (`XATTR_SIZE_MAX`), in bytes.
const MAX_XATTR: usize = 64 << 10;

/// `struct fuse_in_header`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Bytes of the request, this header included.
    pub length: u32,
    /// What to do.
    pub opcode: u32,
    /// Comes back in the answer.
    pub unique: u64,
    /// What to do it to.
    pub node: u64,
    /// User in the guest that asks.
    pub uid: u32,
    /// Group in the guest that asks.
    pub gid: u32,
}

impl Header {
    /// Reads one.
    #[must_use]
    pub fn parse(bytes: &[u8; super::IN_HEADER]) -> Self {
        let word = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|it| bytes[at + it]));
        let long = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
        Self {
            length: word(0),
            opcode: word(4),
            unique: long(8),
            node: long(16),
            uid: word(24),
            gid: word(28),
        }
    }

    /// Whether it is a `FUSE_READ`, of the content of a file.
    #[must_use]
    pub fn is_read(&self) -> bool {
        self.opcode == opcode::READ
    }

    /// Whether it is a `FUSE_COPY_FILE_RANGE`, by which content never meets the guest.
    #[must_use]
    pub fn is_copy(&self) -> bool {
        self.opcode == opcode::COPY_FILE_RANGE
    }

    /// Whether it is a `FUSE_WRITE`, whose content is not part of what is parsed.
    #[must_use]
    pub fn is_write(&self) -> bool {
        self.opcode == opcode::WRITE
    }
}

/// A name in a directory: not empty, not `.` or `..`, no slash, at most 255 bytes. So whatever it is
/// looked up in, it leads nowhere but to an entry there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Name<'a>(&'a CStr);

impl<'a> Name<'a> {
    /// Checks a name.
    ///
    /// # Errors
    /// `ENAMETOOLONG`; `EINVAL` for what is no name.
    pub fn new(name: &'a CStr) -> Result<Self, Errno> {
        match name.to_bytes() {
            b"" | b"." | b".." => Err(Errno::INVAL),
            bytes if bytes.contains(&b'/') => Err(Errno::INVAL),
            bytes if bytes.len() > MAX_NAME => Err(Errno::NAMETOOLONG),
            _ => Ok(Self(name)),
        }
    }

    /// As system calls take it.
    #[must_use]
    pub fn as_c_str(self) -> &'a CStr {
        self.0
    }
}

/// A time to set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetTime {
    /// As it is.
    Keep,
    /// The host's time.
    Now,
    /// Seconds since 1970 and nanoseconds.
    To(i64, u32),
}

/// What `FUSE_SETATTR` changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SetAttributes {
    /// By way of an open file.
    pub handle: Option<u64>,
    /// Permission bits.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Size in bytes.
    pub size: Option<u64>,
    /// Time of the last access.
    pub atime: SetTime,
    /// Time of the last change of content.
    pub mtime: SetTime,
    /// Whether set-user-id and set-group-id bits go.
    pub kill_privileges: bool,
}

/// What a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(
    missing_docs,
    reason = "named as in fuse.h, where their fields are explained"
)]
pub enum Operation<'a> {
    Init {
        major: u32,
        minor: u32,
        max_readahead: u32,
        flags: u32,
    },
    Destroy,
    Lookup {
        name: Name<'a>,
    },
    Forget {
        lookups: u64,
    },
    BatchForget {
        list: &'a [u8],
    },
    GetAttr {
        handle: Option<u64>,
    },
    SetAttr(SetAttributes),
    ReadLink,
    Symlink {
        name: Name<'a>,
        target: &'a CStr,
    },
    MakeNode {
        name: Name<'a>,
        mode: u32,
    },
    MakeDirectory {
        name: Name<'a>,
        mode: u32,
    },
    Unlink {
        name: Name<'a>,
    },
    RemoveDirectory {
        name: Name<'a>,
    },
    Rename {
        name: Name<'a>,
        to: u64,
        new_name: Name<'a>,
        flags: u32,
    },
    Link {
        source: u64,
        name: Name<'a>,
    },
    Open {
        flags: u32,
        kill_privileges: bool,
    },
    Create {
        name: Name<'a>,
        flags: u32,
        mode: u32,
        kill_privileges: bool,
    },
    Read {
        handle: u64,
        offset: u64,
        size: u32,
    },
    Write {
        handle: u64,
        offset: u64,
        size: u32,
        kill_privileges: bool,
    },
    Release {
        handle: u64,
    },
    Fsync {
        handle: u64,
        data_only: bool,
    },
    Fallocate {
        handle: u64,
        offset: u64,
        length: u64,
        mode: u32,
    },
    Seek {
        handle: u64,
        offset: u64,
        whence: u32,
    },
    CopyRange {
        from: u64,
        from_offset: u64,
        to: u64,
        to_offset: u64,
        length: u64,
    },
    OpenDirectory,
    ReadDirectory {
        handle: u64,
        offset: u64,
        size: u32,
        plus: bool,
    },
    SetXattr {
        name: &'a CStr,
        value: &'a [u8],
        flags: u32,
    },
    GetXattr {
        name: &'a CStr,
        size: u32,
    },
    ListXattr {
        size: u32,
    },
    RemoveXattr {
        name: &'a CStr,
    },
    StatFs,
    SyncFs,
    Interrupt,
    /// Not spoken here: the guest does without.
    Unknown,
}

/// A request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request<'a> {
    /// Who asks, and of what.
    pub header: Header,
    /// What.
    pub operation: Operation<'a>,
}

/// Numbers of `enum fuse_opcode`.
mod opcode {
    pub const LOOKUP: u32 = 1;
    pub const FORGET: u32 = 2;
    pub const GETATTR: u32 = 3;
    pub const SETATTR: u32 = 4;
    pub const READLINK: u32 = 5;
    pub const SYMLINK: u32 = 6;
    pub const MKNOD: u32 = 8;
    pub const MKDIR: u32 = 9;
    pub const UNLINK: u32 = 10;
    pub const RMDIR: u32 = 11;
    pub const RENAME: u32 = 12;
    pub const LINK: u32 = 13;
    pub const OPEN: u32 = 14;
    pub const READ: u32 = 15;
    pub const WRITE: u32 = 16;
    pub const STATFS: u32 = 17;
    pub const RELEASE: u32 = 18;
    pub const FSYNC: u32 = 20;
    pub const SETXATTR: u32 = 21;
    pub const GETXATTR: u32 = 22;
    pub const LISTXATTR: u32 = 23;
    pub const REMOVEXATTR: u32 = 24;
    pub const INIT: u32 = 26;
    pub const OPENDIR: u32 = 27;
    pub const READDIR: u32 = 28;
    pub const RELEASEDIR: u32 = 29;
    pub const FSYNCDIR: u32 = 30;
    pub const CREATE: u32 = 35;
    pub const INTERRUPT: u32 = 36;
    pub const DESTROY: u32 = 38;
    pub const BATCH_FORGET: u32 = 42;
    pub const FALLOCATE: u32 = 43;
    pub const READDIRPLUS: u32 = 44;
    pub const RENAME2: u32 = 45;
    pub const LSEEK: u32 = 46;
    pub const COPY_FILE_RANGE: u32 = 47;
    pub const SYNCFS: u32 = 50;
}

/// `FUSE_GETATTR_FH`.
const GETATTR_FH: u32 = 1;
/// `FUSE_OPEN_KILL_SUIDGID`.
const OPEN_KILL_SUIDGID: u32 = 1;
/// `FUSE_WRITE_KILL_SUIDGID`.
const WRITE_KILL_SUIDGID: u32 = 1 << 2;
/// `FUSE_FSYNC_FDATASYNC`.
const FSYNC_FDATASYNC: u32 = 1;

impl<'a> Request<'a> {
    /// Reads what follows `header`. Of a `FUSE_WRITE` that is its structure, not the content.
    ///
    /// # Errors
    /// What to answer: `EINVAL` for what is too short or is no name, `E2BIG` for what is too long.
    pub fn parse(header: Header, arguments: &'a [u8]) -> Result<Self, Errno> {
        if arguments.len() > MAX_ARGUMENTS {
            return Err(Errno::TOOBIG);
        }
        let mut fields = Fields(arguments);
        let operation = match header.opcode {
            opcode::LOOKUP..=opcode::LINK => names(header.opcode, &mut fields)?,
            opcode::SETXATTR..=opcode::REMOVEXATTR => xattrs(header.opcode, &mut fields)?,
            _ => files(header.opcode, &mut fields)?,
        };
        Ok(Self { header, operation })
    }
}

/// Requests on names and attributes.
fn names<'a>(opcode: u32, fields: &mut Fields<'a>) -> Result<Operation<'a>, Errno> {
    Ok(match opcode {
        opcode::LOOKUP => Operation::Lookup {
            name: fields.name()?,
        },
        opcode::FORGET => Operation::Forget {
            lookups: fields.long()?,
        },
        opcode::GETATTR => {
            let (flags, _, handle) = (fields.word()?, fields.word()?, fields.long()?);
            Operation::GetAttr {
                handle: (flags & GETATTR_FH != 0).then_some(handle),
            }
        }
        opcode::SETATTR => Operation::SetAttr(fields.attributes()?),
        opcode::READLINK => Operation::ReadLink,
        opcode::SYMLINK => Operation::Symlink {
            name: fields.name()?,
            target: fields.text(MAX_TARGET)?,
        },
        opcode::MKNOD => {
            let mode = fields.word()?;
            fields.skip(12)?;
            Operation::MakeNode {
                name: fields.name()?,
                mode,
            }
        }
        opcode::MKDIR => {
            let (mode, _umask) = (fields.word()?, fields.word()?);
            Operation::MakeDirectory {
                name: fields.name()?,
                mode,
            }
        }
        opcode::UNLINK => Operation::Unlink {
            name: fields.name()?,
        },
        opcode::RMDIR => Operation::RemoveDirectory {
            name: fields.name()?,
        },
        opcode::RENAME => rename(fields, false)?,
        opcode::LINK => Operation::Link {
            source: fields.long()?,
            name: fields.name()?,
        },
        _ => Operation::Unknown,
    })
}

fn rename<'a>(fields: &mut Fields<'a>, with_flags: bool) -> Result<Operation<'a>, Errno> {
    let to = fields.long()?;
    let mut flags = 0;
    if with_flags {
        flags = fields.word()?;
        fields.skip(4)?;
    }
    Ok(Operation::Rename {
        name: fields.name()?,
        to,
        new_name: fields.name()?,
        flags,
    })
}

fn xattrs<'a>(opcode: u32, fields: &mut Fields<'a>) -> Result<Operation<'a>, Errno> {
    Ok(match opcode {
        opcode::SETXATTR => {
            let (size, flags) = (fields.word()? as usize, fields.word()?);
            let name = fields.text(MAX_XATTR_NAME)?;
            if size > MAX_XATTR {
                return Err(Errno::TOOBIG);
            }
            Operation::SetXattr {
                name,
                value: fields.bytes(size)?,
                flags,
            }
        }
        opcode::GETXATTR => {
            let (size, _) = (fields.word()?, fields.word()?);
            Operation::GetXattr {
                name: fields.text(MAX_XATTR_NAME)?,
                size,
            }
        }
        opcode::LISTXATTR => Operation::ListXattr {
            size: fields.word()?,
        },
        _ => Operation::RemoveXattr {
            name: fields.text(MAX_XATTR_NAME)?,
        },
    })
}

/// Requests on open files and on the whole.
fn files<'a>(opcode: u32, fields: &mut Fields<'a>) -> Result<Operation<'a>, Errno> {
    Ok(match opcode {
        opcode::INIT => Operation::Init {
            major: fields.word()?,
            minor: fields.word()?,
            max_readahead: fields.word()?,
            flags: fields.word()?,
        },
        opcode::DESTROY => Operation::Destroy,
        opcode::INTERRUPT => Operation::Interrupt,
        opcode::STATFS => Operation::StatFs,
        opcode::SYNCFS => Operation::SyncFs,
        opcode::OPENDIR => Operation::OpenDirectory,
        opcode::OPEN => {
            let (flags, how) = (fields.word()?, fields.word()?);
            Operation::Open {
                flags,
                kill_privileges: how & OPEN_KILL_SUIDGID != 0,
            }
        }
        opcode::CREATE => {
            let (flags, mode) = (fields.word()?, fields.word()?);
            let (_umask, how) = (fields.word()?, fields.word()?);
            let kill_privileges = how & OPEN_KILL_SUIDGID != 0;
            Operation::Create {
                name: fields.name()?,
                flags,
                mode,
                kill_privileges,
            }
        }
        opcode::READ | opcode::READDIR | opcode::READDIRPLUS => {
            let (handle, offset, size) = (fields.long()?, fields.long()?, fields.word()?);
            match opcode {
                opcode::READ => Operation::Read {
                    handle,
                    offset,
                    size,
                },
                _ => {
                    let plus = opcode == opcode::READDIRPLUS;
                    Operation::ReadDirectory {
                        handle,
                        offset,
                        size,
                        plus,
                    }
                }
            }
        }
        opcode::WRITE => {
            let (handle, offset, size) = (fields.long()?, fields.long()?, fields.word()?);
            let kill_privileges = fields.word()? & WRITE_KILL_SUIDGID != 0;
            Operation::Write {
                handle,
                offset,
                size,
                kill_privileges,
            }
        }
        opcode::RELEASE | opcode::RELEASEDIR => Operation::Release {
            handle: fields.long()?,
        },
        opcode::FSYNC | opcode::FSYNCDIR => Operation::Fsync {
            handle: fields.long()?,
            data_only: fields.word()? & FSYNC_FDATASYNC != 0,
        },
        opcode::FALLOCATE => Operation::Fallocate {
            handle: fields.long()?,
            offset: fields.long()?,
            length: fields.long()?,
            mode: fields.word()?,
        },
        opcode::LSEEK => Operation::Seek {
            handle: fields.long()?,
            offset: fields.long()?,
            whence: fields.word()?,
        },
        opcode::COPY_FILE_RANGE => {
            let (from, from_offset, _node) = (fields.long()?, fields.long()?, fields.long()?);
            let (to, to_offset, length) = (fields.long()?, fields.long()?, fields.long()?);
            // No flags are known.
            if fields.long()? != 0 {
                return Err(Errno::INVAL);
            }
            Operation::CopyRange {
                from,
                from_offset,
                to,
                to_offset,
                length,
            }
        }
        opcode::RENAME2 => rename(fields, true)?,
        opcode::BATCH_FORGET => {
            let (count, _) = (fields.word()? as usize, fields.word()?);
            let bytes = count.checked_mul(16).ok_or(Errno::INVAL)?;
            Operation::BatchForget {
                list: fields.bytes(bytes)?,
            }
        }
        _ => Operation::Unknown,
    })
}

/// What is left of the arguments, taken from the front.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn bytes(&mut self, count: usize) -> Result<&'a [u8], Errno> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(Errno::INVAL)?;
        self.0 = rest;
        Ok(taken)
    }

    fn skip(&mut self, count: usize) -> Result<(), Errno> {
        self.bytes(count).map(drop)
    }

    fn word(&mut self) -> Result<u32, Errno> {
        let bytes = self.bytes(4)?.try_into().map_err(|_| Errno::INVAL)?;
        Ok(u32::from_le_bytes(bytes))
    }

    fn long(&mut self) -> Result<u64, Errno> {
        let bytes = self.bytes(8)?.try_into().map_err(|_| Errno::INVAL)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// Text of at most `most` bytes, up to its NUL.
    fn text(&mut self, most: usize) -> Result<&'a CStr, Errno> {
        let text = CStr::from_bytes_until_nul(self.0).map_err(|_| Errno::INVAL)?;
        if text.count_bytes() > most {
            return Err(Errno::NAMETOOLONG);
        }
        self.0 = &self.0[text.count_bytes() + 1..];
        Ok(text)
    }

    fn name(&mut self) -> Result<Name<'a>, Errno> {
        Name::new(self.text(MAX_TARGET)?)
    }

    /// `struct fuse_setattr_in`.
    fn attributes(&mut self) -> Result<SetAttributes, Errno> {
        let (valid, _) = (self.word()?, self.word()?);
        let (handle, size, _owner) = (self.long()?, self.long()?, self.long()?);
        let seconds = [self.long()?, self.long()?, self.long()?];
        let nanoseconds = [self.word()?, self.word()?, self.word()?];
        let (mode, _) = (self.word()?, self.word()?);
        let (uid, gid) = (self.word()?, self.word()?);
        let has = |bit: u32| valid & 1 << bit != 0;
        let time = |index: usize, to: u32, now: u32| match (has(to), has(now)) {
            (_, true) => SetTime::Now,
            (true, false) => SetTime::To(seconds[index].cast_signed(), nanoseconds[index]),
            (false, false) => SetTime::Keep,
        };
        Ok(SetAttributes {
            handle: has(6).then_some(handle),
            mode: has(0).then_some(mode),
            uid: has(1).then_some(uid),
            gid: has(2).then_some(gid),
            size: has(3).then_some(size),
            atime: time(0, 4, 7),
            mtime: time(1, 5, 8),
            kill_privileges: has(11),
        })
    }
}
