//! What a client of one of our sockets has not read yet. Nobody waits for a client.

use std::{
    collections::VecDeque,
    io::{self, Write},
    os::fd::BorrowedFd,
    os::unix::net::UnixStream,
};

use vmm_sys_util::eventfd::EventFd;

/// Bytes on their way to a client, at most as many as it was made for.
#[derive(Debug)]
pub(crate) struct Outbox {
    bytes: VecDeque<u8>,
    limit: usize,
    overflown: bool,
}

impl Outbox {
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            bytes: VecDeque::new(),
            limit,
            overflown: false,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Whether something was left out, so that nothing can be sent any more.
    pub(crate) fn is_overflown(&self) -> bool {
        self.overflown
    }

    /// Forgets what waits: nobody will read it.
    pub(crate) fn clear(&mut self) {
        self.bytes.clear();
    }

    /// Adds `data`, whole or, when it is too much, never anything again.
    pub(crate) fn push(&mut self, data: &[u8]) {
        self.overflown |= self.bytes.len() + data.len() > self.limit;
        if !self.overflown {
            self.bytes.extend(data);
        }
    }

    /// Writes what a non-blocking stream takes.
    ///
    /// # Errors
    /// When the client is gone, or has missed something: it is to be dropped.
    pub(crate) fn flush(&mut self, mut stream: &UnixStream) -> io::Result<()> {
        while !self.bytes.is_empty() {
            match stream.write(self.bytes.as_slices().0) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => drop(self.bytes.drain(..count)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        if self.overflown {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }
}

/// The descriptor of an eventfd, for `poll`.
pub(crate) fn borrow(event: &EventFd) -> BorrowedFd<'_> {
    use std::os::fd::AsRawFd;
    // SAFETY: the descriptor is open as long as the eventfd is borrowed.
    unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }
}
