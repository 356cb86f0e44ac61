//! The files a guest has open.

use std::{collections::HashMap, os::fd::OwnedFd, sync::Arc};

use rustix::io::Errno;

/// Something open.
#[derive(Debug, Clone)]
pub(super) enum Handle {
    /// A regular file.
    File(Arc<OwnedFd>),
    /// A directory, and its node.
    Directory(Arc<OwnedFd>, u64),
}

/// All that is open. Numbers are never used twice.
#[derive(Debug)]
pub(super) struct Handles {
    open: HashMap<u64, Handle>,
    next: u64,
    most: usize,
}

impl Handles {
    pub(super) fn new(most: usize) -> Self {
        Self {
            open: HashMap::new(),
            next: 1,
            most,
        }
    }

    /// The next number.
    pub(super) fn next(&self) -> u64 {
        self.next
    }

    /// Uses no number below.
    pub(super) fn begin_at(&mut self, next: u64) {
        self.next = next.max(1);
    }

    /// Whether there is room for another.
    ///
    /// # Errors
    /// `ENFILE` when there is not.
    pub(super) fn has_room(&self) -> Result<(), Errno> {
        (self.open.len() < self.most)
            .then_some(())
            .ok_or(Errno::NFILE)
    }

    /// Adds one, after [`Handles::has_room`].
    pub(super) fn add(&mut self, handle: Handle) -> u64 {
        let number = self.next;
        self.next += 1;
        self.open.insert(number, handle);
        number
    }

    pub(super) fn close(&mut self, number: u64) {
        self.open.remove(&number);
    }

    pub(super) fn clear(&mut self) {
        self.open.clear();
    }

    /// A regular file.
    ///
    /// # Errors
    /// `EBADF` when it is none.
    pub(super) fn file(&self, number: u64) -> Result<Arc<OwnedFd>, Errno> {
        match self.open.get(&number) {
            Some(Handle::File(file)) => Ok(Arc::clone(file)),
            _ => Err(Errno::BADF),
        }
    }

    /// A directory and its node.
    ///
    /// # Errors
    /// `EBADF` when it is none.
    pub(super) fn directory(&self, number: u64) -> Result<(Arc<OwnedFd>, u64), Errno> {
        match self.open.get(&number) {
            Some(Handle::Directory(file, node)) => Ok((Arc::clone(file), *node)),
            _ => Err(Errno::BADF),
        }
    }

    /// Either.
    ///
    /// # Errors
    /// `EBADF` when it is none.
    pub(super) fn any(&self, number: u64) -> Result<Arc<OwnedFd>, Errno> {
        match self.open.get(&number) {
            Some(Handle::File(file) | Handle::Directory(file, _)) => Ok(Arc::clone(file)),
            None => Err(Errno::BADF),
        }
    }

    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.open.len()
    }
}
