//! How fast content of files goes between a folder and its guest.
//!
//! As a disk's: what the host's page cache absorbs counts too, and a request is an operation. What is copied
//! within the folder counts as written; names and attributes are not counted. Requests of a queue stay in their order, so one that waits keeps those
//! behind it waiting. Served by the folder's worker, changed by [`FsControl`].

use std::sync::Arc;

use super::fuse::Header;
use crate::virtio::{Limits, RateLimiter};

/// The limits of one folder.
#[derive(Debug)]
pub(super) struct Rates {
    read: RateLimiter,
    write: RateLimiter,
}

/// How the host steers a folder while it is in use.
#[derive(Debug, Clone)]
pub struct FsControl(Arc<Rates>);

impl Rates {
    /// None.
    pub(super) fn unlimited() -> Self {
        Self {
            read: RateLimiter::new(Limits::default()),
            write: RateLimiter::new(Limits::default()),
        }
    }

    /// What limits a request, if anything can.
    pub(super) fn limiter(&self, header: &Header) -> Option<&RateLimiter> {
        if header.is_read() {
            Some(&self.read)
        } else if header.is_write() || header.is_copy() {
            Some(&self.write)
        } else {
            None
        }
    }
}

impl FsControl {
    pub(super) fn new(rates: &Arc<Rates>) -> Self {
        Self(Arc::clone(rates))
    }

    /// Changes what the guest may read from its files and write to them.
    pub fn set_limits(&self, read: Limits, write: Limits) {
        self.0.read.set(read);
        self.0.write.set(write);
    }

    /// The rate limits of reads and of writes.
    #[must_use]
    pub fn limits(&self) -> (Limits, Limits) {
        (self.0.read.limits(), self.0.write.limits())
    }
}
