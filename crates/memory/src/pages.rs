//! What is known of each page of RAM: the dirty log, and the generation of pages that hold code.
//!
//! A software CPU keeps translations of guest code and must notice when that code is written,
//! whoever writes: itself, another vCPU, a device. It marks the page ([`Pages::mark_code`]),
//! remembers [`Pages::generation`] with the translation, and compares the two before it uses it. A
//! write to a page so marked raises the generation and takes the mark away; a write to any other
//! page costs one relaxed load.
//!
//! Who runs translations without comparing each time asks to be woken instead ([`Pages::watch`]).

use std::sync::{
    Arc, PoisonError, RwLock,
    atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence},
};

use vm_memory::bitmap::{Bitmap, BitmapSlice, WithBitmapSlice};

use crate::PAGE_BYTES;

/// What is known of the pages of RAM. Pages are numbered in order of guest address, the hole for
/// devices left out.
#[derive(Debug)]
pub struct Pages {
    logging: AtomicBool,
    dirty: Box<[AtomicU64]>,
    code: Box<[AtomicU64]>,
    generation: Box<[AtomicU32]>,
    /// How often any generation changed.
    changes: AtomicU64,
    /// Set to 1 whenever one does.
    watchers: RwLock<Vec<&'static AtomicU32>>,
}

/// A type of which all bits zero are a value.
///
/// # Safety
/// They must be.
unsafe trait Zero {}

// SAFETY: as the number in it.
unsafe impl Zero for AtomicU32 {}
// SAFETY: as the number in it.
unsafe impl Zero for AtomicU64 {}

/// Zeros as the kernel maps them: what is never written takes no memory.
fn zeroed<T: Zero>(count: usize) -> Box<[T]> {
    // SAFETY: zero is a value of it.
    unsafe { Box::new_zeroed_slice(count).assume_init() }
}

impl Pages {
    /// Of `bytes` of RAM: nothing dirty, no code.
    #[must_use]
    pub fn new(bytes: u64) -> Self {
        let pages = usize::try_from(bytes.div_ceil(PAGE_BYTES)).unwrap_or(usize::MAX);
        Self {
            logging: AtomicBool::new(false),
            dirty: zeroed(pages.div_ceil(64)),
            code: zeroed(pages.div_ceil(64)),
            generation: zeroed(pages),
            changes: AtomicU64::new(0),
            watchers: RwLock::default(),
        }
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.generation.len()
    }

    /// Marks a page as holding code somebody keeps a translation of. Whoever may write to it
    /// without calling [`Pages::written`] must be stopped from doing so first.
    pub fn mark_code(&self, page: usize) {
        self.code[page / 64].fetch_or(1 << (page % 64), Ordering::SeqCst);
    }

    /// Whether a page holds code somebody keeps a translation of.
    #[inline]
    #[must_use]
    pub fn is_code(&self, page: usize) -> bool {
        self.code[page / 64].load(Ordering::Relaxed) & (1 << (page % 64)) != 0
    }

    /// Changes when the page is written while it is marked as code.
    #[inline]
    #[must_use]
    pub fn generation(&self, page: usize) -> u32 {
        self.generation[page].load(Ordering::Acquire)
    }

    /// Where the generation of a page is kept, for those who look at it very often; it stays there
    /// as long as this lives.
    #[must_use]
    pub fn generation_cell(&self, page: usize) -> &AtomicU32 {
        &self.generation[page]
    }

    /// Says that a page is, or is about to be, written. If it held code, what was kept of it is
    /// void: the generation changes, and the page counts as plain data until it is marked again.
    /// Returns whether it did.
    ///
    /// A device calls it after the write, with a barrier in between. A vCPU calls it before, and
    /// whoever marks pages as code or takes the log makes sure that the vCPU has come to the end
    /// of its instruction.
    #[inline]
    pub fn written(&self, page: usize) -> bool {
        let (word, bit) = (page / 64, 1 << (page % 64));
        if self.logging.load(Ordering::Relaxed)
            && self.dirty[word].load(Ordering::Relaxed) & bit == 0
        {
            self.dirty[word].fetch_or(bit, Ordering::AcqRel);
        }
        if self.code[word].load(Ordering::Relaxed) & bit == 0 {
            return false;
        }
        self.code[word].fetch_and(!bit, Ordering::SeqCst);
        self.generation[page].fetch_add(1, Ordering::AcqRel);
        self.changes.fetch_add(1, Ordering::SeqCst);
        let watchers = self.watchers.read();
        for word in watchers.unwrap_or_else(PoisonError::into_inner).iter() {
            word.store(1, Ordering::SeqCst);
        }
        true
    }

    /// How often the generation of any page changed.
    #[inline]
    #[must_use]
    pub fn changes(&self) -> u64 {
        self.changes.load(Ordering::SeqCst)
    }

    /// Has `word` set to 1 whenever the generation of a page changes, before that page's content
    /// does.
    pub fn watch(&self, word: &'static AtomicU32) {
        let mut watchers = self
            .watchers
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        watchers.push(word);
    }

    /// Takes back what [`Pages::watch`] was told.
    pub fn unwatch(&self, word: &'static AtomicU32) {
        let mut watchers = self
            .watchers
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        watchers.retain(|it| !std::ptr::eq(*it, word));
    }

    /// Whether writes are logged. A vCPU may skip [`Pages::written`] for a page only while this is
    /// `false` or the page is dirty already.
    #[inline]
    #[must_use]
    pub fn is_logging(&self) -> bool {
        self.logging.load(Ordering::Relaxed)
    }

    /// Starts or stops the dirty log.
    pub fn set_logging(&self, on: bool) {
        self.logging.store(on, Ordering::SeqCst);
    }

    /// Whether a page was written while the log was on and not taken since.
    #[inline]
    #[must_use]
    pub fn is_dirty(&self, page: usize) -> bool {
        self.dirty[page / 64].load(Ordering::Acquire) & (1 << (page % 64)) != 0
    }

    /// Takes 64 pages of the log: a bit for each that was written, the lowest for page
    /// `64 * word`. They are clean from now on.
    #[must_use]
    pub fn take_dirty(&self, word: usize) -> u64 {
        self.dirty[word].swap(0, Ordering::AcqRel)
    }
}

/// The window on [`Pages`] that belongs to one region of RAM, from some offset in it on.
#[derive(Debug, Clone)]
pub struct PageLog {
    pages: Arc<Pages>,
    /// Bytes of RAM, the hole left out, before where this window begins.
    base: usize,
}

impl PageLog {
    /// The window that begins `base` bytes into RAM.
    #[must_use]
    pub fn new(pages: Arc<Pages>, base: usize) -> Self {
        Self { pages, base }
    }
}

impl WithBitmapSlice<'_> for PageLog {
    type S = Self;
}

impl BitmapSlice for PageLog {}

impl Bitmap for PageLog {
    fn mark_dirty(&self, offset: usize, len: usize) {
        let page = PAGE_BYTES as usize;
        if len == 0 {
            return;
        }
        // The write must be seen before the mark is looked at: a vCPU marks, then reads.
        fence(Ordering::SeqCst);
        let start = self.base + offset;
        for page in start / page..=(start + len - 1) / page {
            self.pages.written(page);
        }
    }

    fn dirty_at(&self, offset: usize) -> bool {
        self.pages
            .is_dirty((self.base + offset) / PAGE_BYTES as usize)
    }

    fn slice_at(&self, offset: usize) -> Self {
        Self {
            pages: Arc::clone(&self.pages),
            base: self.base + offset,
        }
    }
}
