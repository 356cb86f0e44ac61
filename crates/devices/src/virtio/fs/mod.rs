//! virtio-fs (virtio 1.2, 5.11): a folder of the host as a file system of the guest.
//!
//! The guest's kernel speaks FUSE; what it says is taken apart in [`fuse`] and done by a [`Folder`],
//! in one thread of this process: no other process, no memory shared with one. Content of files
//! goes between them and guest memory in place. The guest caches names and attributes for a second,
//! and writes through: both sides see each other's changes.
//!
//! What can be reached is what lies below the directory the folder was made of, and no more: see
//! [`Folder`]. What a guest may make the host hold is bounded by [`FolderLimits`]. A snapshot does not
//! hold open files: after one the guest finds its files stale, and looks them up anew.

mod config;
mod device;
mod folder;
pub mod fuse;
mod handler;
mod rates;
mod state;
#[cfg(test)]
mod tests;

pub use device::Fs;
pub use folder::{Descriptors, Folder, FolderLimits, keep_capabilities};
pub use rates::FsControl;
pub use state::FsState;
