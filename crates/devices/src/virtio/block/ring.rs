//! Reads and flushes of one queue under way in an io_uring, so that they overlap.
//!
//! Writes are none of them: they end in the host's page cache, and the kernel would wake a thread of its
//! own for each, which costs more than it does.
//!
//! Made with the device, before the filters on system calls are there, which what a ring does passes by.
//! So the kernel itself holds it to what it is for (`IORING_REGISTER_RESTRICTIONS`): reads and flushes of the
//! one file it was made for, whoever writes into its memory. What a request reads into stays with it until
//! its completion was seen; [`Ring::wait`] lets a worker wait for all, so that
//! nothing is under way when the queue is given back.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
};

use io_uring::{IoUring, Probe, opcode, register::Restriction, squeue, types};
use memory::GuestMemory;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{config::QUEUE_SIZE, request::Command};
use crate::virtio::{Buffers, HostBuffer, MAX_VECTORS};

/// All that a ring is good for.
const OPERATIONS: [u8; 2] = [opcode::Readv::CODE, opcode::Fsync::CODE];
/// The one file of a ring, by its place in the ring's own table.
const FILE: types::Fixed = types::Fixed(0);

/// What the kernel is asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transfer {
    Read { offset: u64 },
    Flush,
}

impl Transfer {
    /// As the request it came from.
    pub(super) fn command(self, data: Buffers) -> Command {
        match self {
            Self::Read { offset } => Command::Read { offset, data },
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

/// Whether the kernel has, and lets this process make, what [`super::BlockOptions::ring`] asks for.
///
/// # Errors
/// Why not.
pub fn probe_ring() -> io::Result<()> {
    Ring::new(File::open("/dev/null")?.as_fd()).map(drop)
}

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
    /// A ring for one file, where the kernel has one that does what is needed and nothing else.
    ///
    /// # Errors
    /// When it has not, or forbids it.
    pub(super) fn new(file: BorrowedFd<'_>) -> io::Result<Self> {
        // What restricts it is heard of only before it is enabled.
        let ring = IoUring::builder()
            .setup_r_disabled()
            .build(QUEUE_SIZE.into())?;
        let submitter = ring.submitter();
        let mut probe = Probe::new();
        submitter.register_probe(&mut probe)?;
        if !OPERATIONS.iter().all(|it| probe.is_supported(*it)) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let done = EventFd::new(EFD_NONBLOCK)?;
        submitter.register_eventfd(done.as_raw_fd())?;
        submitter.register_files(&[file.as_raw_fd()])?;
        let fixed = squeue::Flags::FIXED_FILE.bits();
        let mut restrictions: Vec<_> = OPERATIONS.map(Restriction::sqe_op).into();
        restrictions.push(Restriction::sqe_flags_required(fixed));
        submitter.register_restrictions(&mut restrictions)?;
        submitter.register_enable_rings()?;
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

    /// Puts a request on its way, if it fits into one operation. Else it comes back, to be done in another
    /// way.
    pub(super) fn begin(
        &mut self,
        memory: &GuestMemory,
        head: u16,
        transfer: Transfer,
        data: Buffers,
        status: Buffers,
    ) -> Result<(), (Buffers, Buffers)> {
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
        let (first, count) = (flight.vectors.as_ptr(), flight.vectors.len() as u32);
        let entry = match transfer {
            Transfer::Read { offset } => opcode::Readv::new(FILE, first, count)
                .offset(offset)
                .build(),
            Transfer::Flush => opcode::Fsync::new(FILE)
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::io::Write;

    use super::*;

    /// What the kernel answers to an entry that is put there past all checks of ours.
    fn answer(ring: &mut Ring, entry: &squeue::Entry) -> i32 {
        // SAFETY: what the entries of this test point to is static.
        unsafe { ring.ring.submission().push(entry) }.unwrap();
        ring.ring.submit_and_wait(1).unwrap();
        ring.ring.completion().next().unwrap().result()
    }

    #[test]
    fn a_ring_is_held_to_reads_of_its_file_by_the_kernel_itself() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(4096).unwrap();
        let mut ring = match Ring::new(file.as_fd()) {
            Ok(ring) => ring,
            Err(error) => {
                writeln!(
                    io::stderr(),
                    "SKIP a_ring_is_held_to_reads_of_its_file: {error}"
                )
                .unwrap();
                return;
            }
        };
        let nothing = std::ptr::null();
        let allowed = opcode::Readv::new(FILE, nothing, 0).build();
        assert_eq!(answer(&mut ring, &allowed), 0);
        let plain = types::Fd(file.as_raw_fd());
        let path = c"/".as_ptr();
        for forbidden in [
            opcode::Readv::new(plain, nothing, 0).build(),
            opcode::OpenAt::new(types::Fd(libc::AT_FDCWD), path).build(),
            opcode::Nop::new().build(),
            opcode::Writev::new(FILE, nothing, 0).build(),
            opcode::Fallocate::new(FILE, 0).build(),
            allowed.clone().flags(squeue::Flags::ASYNC),
        ] {
            assert_eq!(
                answer(&mut ring, &forbidden),
                -libc::EACCES,
                "{forbidden:?}"
            );
        }
        let files = [file.as_raw_fd()];
        let registered = ring.ring.submitter().register_files_update(0, &files);
        assert_eq!(registered.unwrap_err().raw_os_error(), Some(libc::EACCES));
    }
}
