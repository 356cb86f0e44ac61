//! RAM: one memory file, mapped once, in one or two regions.

use std::{fs::File, io, ptr::NonNull, sync::Arc};

use vm_memory::{
    FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap, MmapRegion,
    mmap::MmapRegionBuilder,
};

use crate::{GuestMemory, PAGE_BYTES, PageLog, Pages, layout};

/// Why there is no RAM.
#[derive(Debug, thiserror::Error)]
pub enum RamError {
    /// The size makes no sense.
    #[error("{bytes} bytes of memory: must be a multiple of 4096 and at least 1 MiB")]
    Size {
        /// What was asked for.
        bytes: u64,
    },
    /// The kernel gave no memory file.
    #[error("make a memory file of {bytes} bytes")]
    File {
        /// Its size.
        bytes: u64,
        /// Why.
        source: io::Error,
    },
    /// It could not be mapped.
    #[error("map {bytes} bytes of guest memory: {reason}")]
    Map {
        /// How much.
        bytes: u64,
        /// Why.
        reason: String,
    },
}

/// A piece of RAM: contiguous for the guest and for the host.
#[derive(Debug, Clone, Copy)]
pub struct Region {
    /// Guest physical address.
    pub start: u64,
    /// Its size.
    pub bytes: u64,
    /// Where it is mapped.
    pub host: NonNull<u8>,
    /// Number of its first page in [`Pages`].
    pub first_page: usize,
}

// SAFETY: a region is an address; whoever uses it answers for how.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

/// All RAM of a guest.
#[derive(Debug, Clone)]
pub struct Ram {
    memory: GuestMemory,
    regions: Vec<Region>,
    pages: Arc<Pages>,
    file: Arc<File>,
    bytes: u64,
}

impl Ram {
    /// `bytes` of zeroed memory, laid out as [`layout::ram`] says. Pages take no memory of the host
    /// before they are written.
    ///
    /// # Errors
    /// When the size is no multiple of a page or under 1 MiB, or the kernel refuses.
    pub fn new(bytes: u64) -> Result<Self, RamError> {
        if !bytes.is_multiple_of(PAGE_BYTES) || bytes < 1 << 20 {
            return Err(RamError::Size { bytes });
        }
        let file = rustix::fs::memfd_create("guest-memory", rustix::fs::MemfdFlags::CLOEXEC)
            .and_then(|fd| rustix::fs::ftruncate(&fd, bytes).map(|()| File::from(fd)))
            .map_err(|error| RamError::File {
                bytes,
                source: error.into(),
            })?;
        Self::from_file(Arc::new(file), bytes)
    }

    /// Maps a memory file of `bytes`, as another process made it.
    ///
    /// # Errors
    /// When it cannot be mapped.
    pub fn from_file(file: Arc<File>, bytes: u64) -> Result<Self, RamError> {
        let pages = Arc::new(Pages::new(bytes));
        let failed = |bytes, reason: &dyn ToString| RamError::Map {
            bytes,
            reason: reason.to_string(),
        };
        let mut mapped = Vec::new();
        let mut regions = Vec::new();
        let mut offset = 0;
        for (start, size) in layout::ram(bytes) {
            let length = usize::try_from(size).map_err(|error| failed(size, &error))?;
            let log = PageLog::new(
                Arc::clone(&pages),
                usize::try_from(offset).map_err(|error| failed(size, &error))?,
            );
            let region: MmapRegion<PageLog> = MmapRegionBuilder::new_with_bitmap(length, log)
                .with_file_offset(FileOffset::from_arc(Arc::clone(&file), offset))
                .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
                .with_mmap_flags(libc::MAP_SHARED | libc::MAP_NORESERVE)
                .build()
                .map_err(|error| failed(size, &error))?;
            regions.push(Region {
                start,
                bytes: size,
                host: NonNull::new(region.as_ptr()).expect("mmap returns no null on success"),
                first_page: usize::try_from(offset / PAGE_BYTES).unwrap_or(usize::MAX),
            });
            let region = GuestRegionMmap::new(region, GuestAddress(start))
                .ok_or_else(|| failed(size, &"its end is past the address space"))?;
            mapped.push(region);
            offset += size;
        }
        let memory = GuestMemory::from_regions(mapped).map_err(|error| failed(bytes, &error))?;
        Ok(Self {
            memory,
            regions,
            pages,
            file,
            bytes,
        })
    }

    /// As devices use it.
    #[must_use]
    pub fn guest_memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// Its pieces, lowest first; they stay mapped as long as any clone of this lives.
    #[must_use]
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// What is known of its pages.
    #[must_use]
    pub fn pages(&self) -> &Arc<Pages> {
        &self.pages
    }

    /// The memory file behind it.
    #[must_use]
    pub fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// Its size, the hole left out.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The host address of a guest physical one and the number of its page; `None` where there is
    /// no RAM.
    #[inline]
    #[must_use]
    pub fn host(&self, address: u64) -> Option<(NonNull<u8>, usize)> {
        let region = self
            .regions
            .iter()
            .find(|it| address.wrapping_sub(it.start) < it.bytes)?;
        let offset = usize::try_from(address - region.start).ok()?;
        // SAFETY: the offset lies within the region, which is mapped as a whole.
        let host = unsafe { region.host.add(offset) };
        Some((host, region.first_page + offset / PAGE_BYTES as usize))
    }

    /// Size of what is mapped, as vm-memory sees it; a check for tests.
    #[must_use]
    pub fn mapped_bytes(&self) -> u64 {
        self.memory.iter().map(GuestMemoryRegion::len).sum()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use vm_memory::Bytes;

    use super::*;

    #[test]
    fn memory_past_the_hole_is_one_file_in_two_regions() {
        let bytes = layout::LOW_END + (64 << 20);
        let ram = Ram::new(bytes).unwrap();
        assert_eq!(ram.mapped_bytes(), bytes);
        let high = GuestAddress(layout::HIGH_START + 5);
        ram.guest_memory().write_obj(7u8, high).unwrap();
        let (host, page) = ram.host(high.0).unwrap();
        // SAFETY: mapped, and nobody else writes to it.
        assert_eq!(unsafe { host.read() }, 7);
        assert_eq!(page as u64, layout::LOW_END / PAGE_BYTES);
        assert!(ram.host(layout::LOW_END).is_none());
        assert!(ram.host(layout::HIGH_START + (64 << 20)).is_none());
    }

    #[test]
    fn a_write_of_a_device_is_logged_and_changes_the_generation_of_code() {
        let ram = Ram::new(1 << 20).unwrap();
        let pages = ram.pages();
        pages.mark_code(2);
        let before = (pages.generation(1), pages.generation(2));
        pages.set_logging(true);
        ram.guest_memory()
            .write_slice(&[1; 4097], GuestAddress(4096))
            .unwrap();
        assert_eq!(pages.generation(1), before.0);
        assert_ne!(pages.generation(2), before.1);
        assert_eq!(pages.take_dirty(0), 0b110);
        assert_eq!(pages.take_dirty(0), 0);
    }

    #[test]
    fn sizes_that_make_no_sense_are_refused() {
        assert!(matches!(Ram::new(4095), Err(RamError::Size { .. })));
        assert!(matches!(Ram::new(0), Err(RamError::Size { .. })));
    }
}
