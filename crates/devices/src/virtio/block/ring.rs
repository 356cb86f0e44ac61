//! Requests of one queue under way in an io_uring, so that they overlap.
//!
//! Made with the device, before any jail. What a request reads and writes stays with it until its
//! completion was seen; [`Ring::wait`] lets a worker wait for all, so that nothing is under way when the queue is
//! given back.

use std::{io, os::fd::AsRawFd};

use io_uring::{IoUring, Probe, opcode, types};
use memory::GuestMemory;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{Disk, config::QUEUE_SIZE, request::Command};
use crate::virtio::{Buffers, HostBuffer, MAX_VECTORS};

/// What the kernel is asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transfer {
    Read { offset: u64 },
    Write { offset: u64 },
    Flush,
}

impl Transfer {
    /// As the request it came from.
    pub(super) fn command(self, data: Buffers) -> Command {
        match self {
            Self::Read { offset } => Command::Read { offset, data },
            Self::Write { offset } => Command::Write { offset, data },
            Self::Flush => Command::Flush,
        }
    }
}

/// A request under way.
#[derive(Debug)]
pub(super) struct Flight {
    /// First descriptor of its chain.
    pub(super) head: u16,
    pub(super) transfer: Transfer,
    pub(super) data: Buffers,
    pub(super) status: Buffers,
    /// What the kernel reads while the request is under way.
    vectors: Vec<libc::iovec>,
}

// SAFETY: the vectors are addresses of guest memory, which is mapped for all threads alike.
unsafe impl Send for Flight {}

/// The requests of one queue.
pub(super) struct Ring {
    ring: IoUring,
    /// Rung for completions.
    done: EventFd,
    flights: Vec<Option<Flight>>,
    free: Vec<usize>,
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring")
            .field("under_way", &self.under_way())
            .finish_non_exhaustive()
    }
}

impl Ring {
    /// A ring, where the kernel has one that does what is needed.
    ///
    /// # Errors
    /// When it has not, or forbids it.
    pub(super) fn new() -> io::Result<Self> {
        let ring = IoUring::new(QUEUE_SIZE.into())?;
        let mut probe = Probe::new();
        ring.submitter().register_probe(&mut probe)?;
        let needed = [
            opcode::Readv::CODE,
            opcode::Writev::CODE,
            opcode::Fsync::CODE,
        ];
        if !needed.iter().all(|it| probe.is_supported(*it)) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let done = EventFd::new(EFD_NONBLOCK)?;
        ring.submitter().register_eventfd(done.as_raw_fd())?;
        let slots = usize::from(QUEUE_SIZE);
        Ok(Self {
            ring,
            done,
            flights: std::iter::repeat_with(|| None).take(slots).collect(),
            free: (0..slots).collect(),
        })
    }

    /// Rung when requests are done.
    pub(super) fn done(&self) -> &EventFd {
        &self.done
    }

    /// Whether there is room for another request.
    pub(super) fn has_room(&self) -> bool {
        !self.free.is_empty()
    }

    fn under_way(&self) -> usize {
        self.flights.len() - self.free.len()
    }

    /// Puts a request on its way, if the disk is a file the kernel can do it on and it fits into
    /// one operation. Else it comes back, to be done in another way.
    pub(super) fn begin(
        &mut self,
        disk: &dyn Disk,
        memory: &GuestMemory,
        head: u16,
        transfer: Transfer,
        data: Buffers,
        status: Buffers,
    ) -> Result<(), (Buffers, Buffers)> {
        let Some(file) = disk.ring_file() else {
            return Err((data, status));
        };
        let vectors = HostBuffer::vectors(&data.host(memory)).to_vec();
        if vectors.len() > MAX_VECTORS {
            return Err((data, status));
        }
        let Some(slot) = self.free.pop() else {
            return Err((data, status));
        };
        let flight = self.flights[slot].insert(Flight {
            head,
            transfer,
            data,
            status,
            vectors,
        });
        let file = types::Fd(file.as_raw_fd());
        let (first, count) = (flight.vectors.as_ptr(), flight.vectors.len() as u32);
        let entry = match transfer {
            Transfer::Read { offset } => opcode::Readv::new(file, first, count)
                .offset(offset)
                .build(),
            Transfer::Write { offset } => opcode::Writev::new(file, first, count)
                .offset(offset)
                .build(),
            Transfer::Flush => opcode::Fsync::new(file)
                .flags(types::FsyncFlags::DATASYNC)
                .build(),
        };
        // SAFETY: the vectors live in the slot until its completion is seen, what they point to as
        // long as guest memory, which the queue keeps.
        let pushed = unsafe { self.ring.submission().push(&entry.user_data(slot as u64)) };
        if pushed.is_err() {
            self.free.push(slot);
            let flight = self.flights[slot].take();
            return Err(flight.map(|it| (it.data, it.status)).unwrap_or_default());
        }
        Ok(())
    }

    /// Tells the kernel of the requests begun.
    pub(super) fn submit(&self) -> io::Result<()> {
        loop {
            match self.ring.submit() {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// A request that is done, and how many bytes that were or which error.
    pub(super) fn finished(&mut self) -> Option<(Flight, io::Result<u64>)> {
        let entry = self.ring.completion().next()?;
        let slot = entry.user_data() as usize;
        let flight = self.flights.get_mut(slot)?.take()?;
        self.free.push(slot);
        let result = match entry.result() {
            failed if failed < 0 => Err(io::Error::from_raw_os_error(-failed)),
            bytes => Ok(bytes.unsigned_abs().into()),
        };
        Some((flight, result))
    }

    /// Waits for a completion of those under way. `false`: there are none.
    pub(super) fn wait(&self) -> bool {
        if self.under_way() == 0 {
            return false;
        }
        // Interrupted or not: the caller looks and comes back.
        let _ = self.ring.submit_and_wait(1);
        true
    }
}
