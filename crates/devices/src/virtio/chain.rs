//! Descriptor chains, taken apart once and checked: what a request's buffers are, and reading from
//! and writing to them.
//!
//! Everything here is the guest's word. A chain that breaks the rules of virtio 1.2, 2.7 (a loop, an
//! index past the table, a buffer outside RAM, a readable buffer after a writable one) is an error,
//! never a shorter chain. Memory may change while it is read: whoever needs a value twice reads it
//! once.

use std::{
    io,
    marker::PhantomData,
    os::fd::{AsRawFd, BorrowedFd},
};

use memory::{GuestMemory, PageLog};
use virtio_queue::DescriptorChain;
use vm_memory::{ByteValued, Bytes, GuestAddress, GuestMemory as _, Permissions, VolatileSlice};

/// The most buffers a chain may have: one vectored call's worth, and a header and a
/// status around them.
pub const MAX_BUFFERS: usize = MAX_VECTORS + 2;

/// The most buffers one vectored call of the kernel takes (`IOV_MAX`).
pub const MAX_VECTORS: usize = 1024;

/// How a chain breaks the rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// It loops, leaves its table, lies outside RAM, nests indirect tables, or is longer than 4 GiB.
    #[error("the chain at descriptor {head} does not end properly")]
    Broken {
        /// Its first descriptor.
        head: u16,
    },
    /// Too many buffers.
    #[error("the chain at descriptor {head} has more than {MAX_BUFFERS} buffers")]
    TooLong {
        /// Its first descriptor.
        head: u16,
    },
    /// A device-readable buffer after a device-writable one (virtio 1.2, 2.7.4.2).
    #[error("the chain at descriptor {head} has a readable buffer after a writable one")]
    Order {
        /// Its first descriptor.
        head: u16,
    },
    /// A buffer that is not wholly RAM.
    #[error("the chain at descriptor {head} has a buffer outside memory, at {address:#x}")]
    Outside {
        /// Its first descriptor.
        head: u16,
        /// The guest physical address of the buffer.
        address: u64,
    },
}

/// There is less in the buffers than was to be read or written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the request's buffers are too short")]
pub struct TooShort;

/// A buffer of a request: guest physical address and length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Buffer {
    /// Guest physical address.
    pub address: u64,
    /// Bytes, never zero.
    pub bytes: u32,
}

/// A piece of guest memory as the host has it mapped, laid out as the kernel's `iovec`. The guest
/// may write there at any time: it is never turned into a reference.
#[derive(Debug, Clone, Copy)]
#[repr(transparent)]
pub struct HostBuffer<'m> {
    vector: libc::iovec,
    memory: PhantomData<&'m GuestMemory>,
}

// SAFETY: an address and a length; what is there is only touched by the kernel or by volatile copies.
unsafe impl Send for HostBuffer<'_> {}
// SAFETY: as above.
unsafe impl Sync for HostBuffer<'_> {}

impl<'m> HostBuffer<'m> {
    fn new(slice: &VolatileSlice<'m, PageLog>) -> Self {
        Self {
            vector: libc::iovec {
                iov_base: slice.ptr_guard_mut().as_ptr().cast(),
                iov_len: slice.len(),
            },
            memory: PhantomData,
        }
    }

    /// Its length in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.vector.iov_len
    }

    /// Without its first `bytes`.
    ///
    /// # Panics
    /// When it has fewer.
    #[must_use]
    pub fn after(mut self, bytes: usize) -> Self {
        assert!(
            bytes <= self.vector.iov_len,
            "{bytes} bytes of a smaller buffer"
        );
        // SAFETY: stays within the buffer or at its end.
        self.vector.iov_base = unsafe { self.vector.iov_base.byte_add(bytes) };
        self.vector.iov_len -= bytes;
        self
    }

    /// Copies from the front of `data` into it, as much as fits; says how much.
    pub fn fill_from(&self, data: &[u8]) -> usize {
        self.volatile().copy_from(data);
        data.len().min(self.bytes())
    }

    /// Copies it to the front of `data`, as much as fits; says how much.
    pub fn copy_to(&self, data: &mut [u8]) -> usize {
        self.volatile().copy_to(data)
    }

    fn volatile(&self) -> VolatileSlice<'m> {
        // SAFETY: guest memory stays mapped while it is borrowed, and volatile accesses allow for
        // others who write.
        unsafe { VolatileSlice::new(self.vector.iov_base.cast(), self.vector.iov_len) }
    }

    /// As the kernel takes them.
    #[must_use]
    pub fn vectors(buffers: &[Self]) -> &[libc::iovec] {
        // SAFETY: the type is a transparent wrapper of this one.
        unsafe { std::slice::from_raw_parts(buffers.as_ptr().cast(), buffers.len()) }
    }
}

/// Buffers one after another, all of them RAM. Reading and writing takes from the front.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Buffers {
    list: Vec<Buffer>,
    /// How many at the front of the list are used up.
    next: usize,
    bytes: u64,
}

/// A request as the guest put it into a queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// What to give back with it: see [`super::VirtQueue::complete`].
    pub head: u16,
    /// What the guest says.
    pub readable: Buffers,
    /// Where it wants the answer.
    pub writable: Buffers,
}

impl Chain {
    /// Takes a chain apart.
    ///
    /// # Errors
    /// When it breaks the rules.
    pub fn parse(
        memory: &GuestMemory,
        mut chain: DescriptorChain<&GuestMemory>,
    ) -> Result<Self, ChainError> {
        let head = chain.head_index();
        let mut parsed = Self {
            head,
            readable: Buffers::default(),
            writable: Buffers::default(),
        };
        let mut ended = false;
        // The iterator stops silently at whatever it cannot follow: a chain is whole only when the
        // last descriptor it gave says so.
        for descriptor in chain.by_ref() {
            ended = !descriptor.has_next();
            let buffer = Buffer {
                address: descriptor.addr().0,
                bytes: descriptor.len(),
            };
            if parsed.readable.list.len() + parsed.writable.list.len() >= MAX_BUFFERS {
                return Err(ChainError::TooLong { head });
            }
            if !descriptor.is_write_only() && !parsed.writable.list.is_empty() {
                return Err(ChainError::Order { head });
            }
            if buffer.bytes == 0 {
                continue;
            }
            if !memory.check_range(
                GuestAddress(buffer.address),
                buffer.bytes as usize,
                Permissions::ReadWrite,
            ) {
                let address = buffer.address;
                return Err(ChainError::Outside { head, address });
            }
            if descriptor.is_write_only() {
                parsed.writable.push(buffer);
            } else {
                parsed.readable.push(buffer);
            }
        }
        ended.then_some(parsed).ok_or(ChainError::Broken { head })
    }
}

impl Buffers {
    fn push(&mut self, buffer: Buffer) {
        self.bytes += u64::from(buffer.bytes);
        self.list.push(buffer);
    }

    /// How many bytes are left.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What is left, buffer by buffer.
    #[must_use]
    pub fn list(&self) -> &[Buffer] {
        &self.list[self.next..]
    }

    /// Takes the first `bytes` of them.
    ///
    /// # Errors
    /// When there are fewer; nothing is taken then.
    pub fn take(&mut self, bytes: u64) -> Result<Buffers, TooShort> {
        if bytes > self.bytes {
            return Err(TooShort);
        }
        let mut taken = Buffers::default();
        while taken.bytes < bytes {
            let first = &mut self.list[self.next];
            let part = u64::from(first.bytes).min(bytes - taken.bytes) as u32;
            taken.push(Buffer {
                address: first.address,
                bytes: part,
            });
            first.address += u64::from(part);
            first.bytes -= part;
            self.bytes -= u64::from(part);
            if first.bytes == 0 {
                self.next += 1;
            }
        }
        Ok(taken)
    }

    /// Takes the last `bytes` of them.
    ///
    /// # Errors
    /// When there are fewer; nothing is taken then.
    pub fn take_last(&mut self, bytes: u64) -> Result<Buffers, TooShort> {
        let front = self.bytes.checked_sub(bytes).ok_or(TooShort)?;
        let front = self.take(front)?;
        Ok(std::mem::replace(self, front))
    }

    /// Fills `data` from the front.
    ///
    /// # Errors
    /// When there is less.
    pub fn read(&mut self, memory: &GuestMemory, data: &mut [u8]) -> Result<(), TooShort> {
        let mut data = data;
        for buffer in self.take(data.len() as u64)?.list {
            let (part, rest) = data.split_at_mut(buffer.bytes as usize);
            memory
                .read_slice(part, GuestAddress(buffer.address))
                .map_err(|_| TooShort)?;
            data = rest;
        }
        Ok(())
    }

    /// Reads a little-endian structure from the front.
    ///
    /// # Errors
    /// When there is less.
    pub fn read_object<T: ByteValued + Default>(
        &mut self,
        memory: &GuestMemory,
    ) -> Result<T, TooShort> {
        let mut object = T::default();
        self.read(memory, object.as_mut_slice())?;
        Ok(object)
    }

    /// Writes `data` to the front.
    ///
    /// # Errors
    /// When there is less room.
    pub fn write(&mut self, memory: &GuestMemory, data: &[u8]) -> Result<(), TooShort> {
        let mut data = data;
        for buffer in self.take(data.len() as u64)?.list {
            let (part, rest) = data.split_at(buffer.bytes as usize);
            memory
                .write_slice(part, GuestAddress(buffer.address))
                .map_err(|_| TooShort)?;
            data = rest;
        }
        Ok(())
    }

    /// All that is left as host memory, for system calls that read or write it in place. Whoever
    /// writes there says so with [`Buffers::mark_dirty`] afterwards.
    #[must_use]
    pub fn host<'m>(&self, memory: &'m GuestMemory) -> Vec<HostBuffer<'m>> {
        let slices = self.slices(memory).into_iter();
        slices.map(|it| HostBuffer::new(&it)).collect()
    }

    fn slices<'m>(&self, memory: &'m GuestMemory) -> Vec<VolatileSlice<'m, PageLog>> {
        let mut slices = Vec::with_capacity(self.list().len());
        for buffer in self.list() {
            let pieces = memory.get_slices(
                GuestAddress(buffer.address),
                buffer.bytes as usize,
                Permissions::ReadWrite,
            );
            // Nothing is lost here: all buffers were checked to be RAM when the chain was parsed, and
            // RAM never goes.
            slices.extend(pieces.into_iter().flatten().flatten());
        }
        slices
    }

    /// Reads once from a file into what is left, as much as there is. Says how many bytes came.
    ///
    /// # Errors
    /// Of the file.
    pub fn read_from(&self, memory: &GuestMemory, file: BorrowedFd<'_>) -> io::Result<usize> {
        let host = self.host(memory);
        let vectors = HostBuffer::vectors(&host);
        let count = vectors.len().min(MAX_VECTORS) as libc::c_int;
        // SAFETY: the vectors are guest memory, borrowed for the call.
        let got = unsafe { libc::readv(file.as_raw_fd(), vectors.as_ptr(), count) };
        if got < 0 {
            return Err(io::Error::last_os_error());
        }
        self.mark_dirty(memory, got.unsigned_abs() as u64);
        Ok(got.unsigned_abs())
    }

    /// Writes what is left to a file in one call. Says how many bytes it took.
    ///
    /// # Errors
    /// Of the file.
    pub fn write_to(&self, memory: &GuestMemory, file: BorrowedFd<'_>) -> io::Result<usize> {
        let host = self.host(memory);
        let vectors = HostBuffer::vectors(&host);
        let count = vectors.len().min(MAX_VECTORS) as libc::c_int;
        // SAFETY: the vectors are guest memory, borrowed for the call.
        let got = unsafe { libc::writev(file.as_raw_fd(), vectors.as_ptr(), count) };
        if got < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(got.unsigned_abs())
    }

    /// Says that the first `bytes` of what is left were written by other means than
    /// [`Buffers::write`].
    pub fn mark_dirty(&self, memory: &GuestMemory, bytes: u64) {
        use vm_memory::bitmap::Bitmap;

        let mut left = usize::try_from(bytes).unwrap_or(usize::MAX);
        for slice in self.slices(memory) {
            let part = left.min(slice.len());
            slice.bitmap().mark_dirty(0, part);
            left -= part;
        }
    }
}
