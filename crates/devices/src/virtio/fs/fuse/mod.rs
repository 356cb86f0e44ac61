//! The protocol between a guest's FUSE driver and a file system outside it, as far as it is spoken
//! here: Linux's `include/uapi/linux/fuse.h`, version 7.31 and later, little-endian.
//!
//! Nothing here touches a file: [`Request::parse`] turns a guest's bytes into a [`Request`] with all
//! lengths and names checked, and [`Reply`] writes the structures of answers.

mod reply;
mod request;

pub use reply::{Attributes, Entry, Reply, Room};
pub use request::{Header, Name, Operation, Request, SetAttributes, SetTime};

/// Major version spoken. Another one shares nothing with it.
pub const MAJOR: u32 = 7;
/// Newest minor version spoken.
pub const MINOR: u32 = 38;
/// Oldest minor version spoken: the first of virtio-fs (Linux 5.4).
pub const OLDEST_MINOR: u32 = 31;

/// Bytes of `struct fuse_in_header`.
pub const IN_HEADER: usize = 40;
/// Bytes of `struct fuse_out_header`.
pub const OUT_HEADER: usize = 16;
/// Bytes of `struct fuse_write_in`.
pub const WRITE_IN: usize = 40;
/// Most bytes of file content in one request.
pub const MAX_IO: u32 = 1 << 20;
/// Most bytes of a request after its header, without the content of files.
pub const MAX_ARGUMENTS: usize = 72 << 10;

/// The node that is the root (`FUSE_ROOT_ID`).
pub const ROOT: u64 = 1;

/// Bits of `FUSE_INIT`.
pub mod init {
    /// `FUSE_ASYNC_READ`: several reads of a file at once.
    pub const ASYNC_READ: u32 = 1 << 0;
    /// `FUSE_ATOMIC_O_TRUNC`: opening truncates.
    pub const ATOMIC_O_TRUNC: u32 = 1 << 3;
    /// `FUSE_BIG_WRITES`: of more than a page.
    pub const BIG_WRITES: u32 = 1 << 5;
    /// `FUSE_AUTO_INVAL_DATA`: the guest forgets pages of a file whose size or time changed.
    pub const AUTO_INVAL_DATA: u32 = 1 << 12;
    /// `FUSE_DO_READDIRPLUS`: listings with attributes.
    pub const DO_READDIRPLUS: u32 = 1 << 13;
    /// `FUSE_READDIRPLUS_AUTO`: where they are worth it.
    pub const READDIRPLUS_AUTO: u32 = 1 << 14;
    /// `FUSE_PARALLEL_DIROPS`: several at once in a directory.
    pub const PARALLEL_DIROPS: u32 = 1 << 18;
    /// `FUSE_MAX_PAGES`: requests of more than 32 pages.
    pub const MAX_PAGES: u32 = 1 << 22;
    /// `FUSE_CACHE_SYMLINKS`: targets of symbolic links are kept.
    pub const CACHE_SYMLINKS: u32 = 1 << 23;
    /// `FUSE_HANDLE_KILLPRIV_V2`: set-user-id bits go by our side when a file is written.
    pub const HANDLE_KILLPRIV_V2: u32 = 1 << 28;

    /// All that is taken of what a guest offers.
    pub const WANTED: u32 = ASYNC_READ
        | ATOMIC_O_TRUNC
        | BIG_WRITES
        | AUTO_INVAL_DATA
        | DO_READDIRPLUS
        | READDIRPLUS_AUTO
        | PARALLEL_DIROPS
        | MAX_PAGES
        | CACHE_SYMLINKS
        | HANDLE_KILLPRIV_V2;
}
