//! A disk that is a file or a block device of the host.

use std::{
    fs::File,
    io::{self, Seek, SeekFrom},
    ops::Range,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd},
        unix::fs::{FileExt, FileTypeExt},
    },
    sync::atomic::{AtomicU64, Ordering},
};

use super::Disk;
use crate::virtio::{HostBuffer, MAX_VECTORS};

/// How much is zeroed at once where the file system cannot do it itself.
static ZEROES: [u8; 64 << 10] = [0; 64 << 10];
/// Sector size of virtio.
const SECTOR: u64 = 512;

/// A raw image: byte `n` of the disk is byte `n` of the file.
#[derive(Debug)]
pub struct FileDisk {
    file: File,
    bytes: AtomicU64,
    device: bool,
}

impl FileDisk {
    /// Takes an open file, writable unless the disk is to be read-only. A last sector that is not
    /// whole is left out.
    ///
    /// # Errors
    /// When it has no size.
    pub fn new(file: File) -> io::Result<Self> {
        let device = file.metadata()?.file_type().is_block_device();
        let disk = Self {
            file,
            bytes: AtomicU64::new(0),
            device,
        };
        disk.refresh()?;
        Ok(disk)
    }

    /// Looks at the size of the file again, after it was made larger. Tell the device with
    /// [`super::BlockControl::size_changed`].
    ///
    /// # Errors
    /// When it has no size.
    pub fn refresh(&self) -> io::Result<()> {
        // The end of a block device is where seeking finds it; its metadata says zero.
        let bytes = (&self.file).seek(SeekFrom::End(0))?;
        self.bytes.store(bytes / SECTOR * SECTOR, Ordering::Release);
        Ok(())
    }

    fn fallocate(&self, mode: libc::c_int, range: &Range<u64>) -> io::Result<()> {
        let out_of_range = |_| io::Error::from(io::ErrorKind::InvalidInput);
        let offset = libc::off_t::try_from(range.start).map_err(out_of_range)?;
        let length = libc::off_t::try_from(range.end - range.start).map_err(out_of_range)?;
        loop {
            // SAFETY: touches no memory of ours.
            let done = unsafe {
                libc::fallocate(
                    self.file.as_raw_fd(),
                    mode | libc::FALLOC_FL_KEEP_SIZE,
                    offset,
                    length,
                )
            };
            if done == 0 {
                return Ok(());
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
    }

    /// Runs `call` on what is left of the buffers until nothing is.
    fn all(
        buffers: &[HostBuffer<'_>],
        offset: u64,
        call: impl Fn(&[libc::iovec], libc::off_t) -> isize,
    ) -> io::Result<()> {
        let mut left: Vec<_> = buffers.to_vec();
        let (mut first, mut offset) = (0, offset);
        while first < left.len() {
            let batch = &left[first..left.len().min(first + MAX_VECTORS)];
            let at = libc::off_t::try_from(offset)
                .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
            let done = match call(HostBuffer::vectors(batch), at) {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                done if done > 0 => done.unsigned_abs(),
                _ => {
                    let error = io::Error::last_os_error();
                    if error.kind() == io::ErrorKind::Interrupted {
                        continue;
                    }
                    return Err(error);
                }
            };
            offset += done as u64;
            let mut rest = done;
            while first < left.len() && rest >= left[first].bytes() {
                rest -= left[first].bytes();
                first += 1;
            }
            if rest > 0 {
                left[first] = left[first].after(rest);
            }
        }
        Ok(())
    }
}

/// Whether a file system or device says that it knows no such operation.
fn unsupported(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::ENODEV)
    )
}

impl Disk for FileDisk {
    fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Acquire)
    }

    fn read(&self, buffers: &[HostBuffer<'_>], offset: u64) -> io::Result<()> {
        let fd = self.file.as_raw_fd();
        Self::all(buffers, offset, |vectors, at| {
            // SAFETY: the vectors are guest memory, borrowed for the call.
            unsafe { libc::preadv(fd, vectors.as_ptr(), vectors.len() as libc::c_int, at) }
        })
    }

    fn write(&self, buffers: &[HostBuffer<'_>], offset: u64) -> io::Result<()> {
        let fd = self.file.as_raw_fd();
        Self::all(buffers, offset, |vectors, at| {
            // SAFETY: the vectors are guest memory, borrowed for the call.
            unsafe { libc::pwritev(fd, vectors.as_ptr(), vectors.len() as libc::c_int, at) }
        })
    }

    fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn discard(&self, range: Range<u64>) -> io::Result<()> {
        match self.fallocate(libc::FALLOC_FL_PUNCH_HOLE, &range) {
            Err(error) if unsupported(&error) => Ok(()),
            result => result,
        }
    }

    fn ring_file(&self) -> Option<BorrowedFd<'_>> {
        Some(self.file.as_fd())
    }

    fn write_zeroes(&self, range: Range<u64>, unmap: bool) -> io::Result<()> {
        // On a block device punching a hole may leave what was there: zero it properly.
        let mode = if unmap && !self.device {
            libc::FALLOC_FL_PUNCH_HOLE
        } else {
            libc::FALLOC_FL_ZERO_RANGE
        };
        match self.fallocate(mode, &range) {
            Err(error) if unsupported(&error) => {}
            result => return result,
        }
        let mut at = range.start;
        while at < range.end {
            let part = (range.end - at).min(ZEROES.len() as u64);
            self.file.write_all_at(&ZEROES[..part as usize], at)?;
            at += part;
        }
        Ok(())
    }
}
