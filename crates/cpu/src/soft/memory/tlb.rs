//! The translation lookaside buffer: from linear pages to host addresses.
//!
//! Each entry holds a tag for each kind of access, equal to the linear page where that access needs
//! no further thought, and the host's address of that page. An address xor its tag is then the
//! offset in the page, and one compare decides present, permitted and within one page; translated
//! code does the same inline, which is why each kind of number has an array of its own. Pages of
//! devices are never entered; a page that holds code somebody keeps blocks of is never entered for
//! stores.
//!
//! It is filled and emptied by its parents in this folder only.

use std::ptr::NonNull;

use super::super::core::Access;

const ENTRIES: usize = 1024;
/// Slots of code are fewer.
const CODE_ENTRIES: usize = 256;
/// So many entries that are not global are remembered, to be forgotten one by one.
const MOST_LOCAL: usize = 512;
const CONTEXTS: usize = 3;
/// Words of [`Tlb::code_pages`].
const CODE_PAGE_WORDS: usize = 256;
/// Bit of [`Entry::page`]: the translation stays when `cr3` is loaded.
const GLOBAL: u64 = 1 << 63;

/// On whose behalf memory is accessed; each has entries of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Context {
    /// CPL 3.
    User = 0,
    /// CPL 0 to 2, and what the processor does by itself. User pages are barred when SMAP is on.
    Supervisor = 1,
    /// CPL 0 to 2 with `rflags.AC`: user pages are open in spite of SMAP.
    SupervisorOpen = 2,
}

#[derive(Clone, Copy)]
struct CodeEntry {
    tag: u64,
    host: u64,
    page: u64,
}

/// A translation to be entered.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fill {
    pub(super) linear: u64,
    pub(super) host: NonNull<u8>,
    /// Number in [`memory::Pages`].
    pub(super) page: usize,
    pub(super) global: bool,
    pub(super) writable: bool,
}

/// The translations of one vCPU. Translated code reads the first three arrays.
#[repr(C)]
pub struct Tlb {
    read: [u64; ENTRIES * CONTEXTS],
    write: [u64; ENTRIES * CONTEXTS],
    host: [u64; ENTRIES * CONTEXTS],
    page: Box<[u64; ENTRIES * CONTEXTS]>,
    code: Box<[CodeEntry; CODE_ENTRIES * 2]>,
    context: Context,
    /// Entries that are not global, up to [`MOST_LOCAL`] of them.
    local: Vec<u32>,
    /// A bit for the linear pages that code was found on, by a hash of their numbers.
    code_pages: [u64; CODE_PAGE_WORDS],
    /// Code of the supervisor was found on pages that are not global.
    local_code: bool,
    changes: [u32; 2],
}

fn slot(linear: u64) -> usize {
    (linear >> 12) as usize % ENTRIES
}

/// The slot of code at a linear address.
fn code_slot(context: Context, linear: u64) -> usize {
    usize::from(context != Context::User) * CODE_ENTRIES + (linear >> 12) as usize % CODE_ENTRIES
}

/// Where [`Tlb::code_pages`] knows of a page. The text of a kernel is as large as the lowest bits
/// of numbers would tell apart, so all bits take part.
fn code_page(linear: u64) -> (usize, u64) {
    const BITS: u32 = (CODE_PAGE_WORDS * 64).ilog2();
    let hash = (linear >> 12).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - BITS);
    ((hash / 64) as usize, 1 << (hash % 64))
}

/// A tag that no code looked up in this slot can equal.
fn never_code(slot: usize) -> u64 {
    ((slot % CODE_ENTRIES) as u64 ^ 1) << 12
}

/// A tag that nothing looked up in this slot can equal.
fn never(slot: usize) -> u64 {
    ((slot % ENTRIES) as u64 ^ 1) << 12
}

impl Default for Tlb {
    fn default() -> Self {
        let code = std::array::from_fn(|slot| CodeEntry {
            tag: never_code(slot),
            host: 0,
            page: 0,
        });
        Self {
            read: std::array::from_fn(never),
            write: std::array::from_fn(never),
            host: [0; ENTRIES * CONTEXTS],
            page: Box::new([0; ENTRIES * CONTEXTS]),
            code: Box::new(code),
            context: Context::Supervisor,
            local: Vec::new(),
            code_pages: [0; CODE_PAGE_WORDS],
            local_code: false,
            changes: [0; 2],
        }
    }
}

impl Tlb {
    /// Offset of the tags for loads, for translated code.
    pub(in crate::soft) const READ: usize = std::mem::offset_of!(Self, read);
    /// Offset of the tags for stores.
    pub(in crate::soft) const WRITE: usize = std::mem::offset_of!(Self, write);
    /// Offset of the host's addresses.
    pub(in crate::soft) const HOST: usize = std::mem::offset_of!(Self, host);
    /// How many slots each context has: a power of two.
    pub(in crate::soft) const SLOTS: u32 = ENTRIES as u32;
    /// Bytes of what one context has in each of these arrays.
    pub(in crate::soft) const STRIDE: usize = ENTRIES * size_of::<u64>();

    /// How often what code is found at addresses of users, and of the supervisor, may have changed.
    #[inline(always)]
    pub(in crate::soft) fn changes(&self) -> [u32; 2] {
        self.changes
    }

    /// On whose behalf the current code accesses memory.
    #[inline(always)]
    pub(in crate::soft) fn context(&self) -> Context {
        self.context
    }

    pub(in crate::soft) fn set_context(&mut self, context: Context) {
        self.context = context;
    }

    /// Where `bytes` at a linear address lie, if that is known and the access is permitted.
    #[inline(always)]
    pub(in crate::soft) fn data(
        &self,
        linear: u64,
        bytes: usize,
        access: Access,
    ) -> Option<NonNull<u8>> {
        let index = self.context as usize * ENTRIES + slot(linear);
        // SAFETY: a context is under CONTEXTS and a slot under ENTRIES.
        let (tag, host) = unsafe {
            let tag = match access {
                Access::Write => self.write.get_unchecked(index),
                _ => self.read.get_unchecked(index),
            };
            (*tag, *self.host.get_unchecked(index))
        };
        let offset = linear ^ tag;
        if offset <= 0x1000 - bytes as u64 {
            return NonNull::new((host + offset) as *mut u8);
        }
        None
    }

    /// The host address of code at a linear address, if known, and the number of its page.
    #[inline(always)]
    pub(in crate::soft) fn code(&self, linear: u64) -> Option<(u64, usize)> {
        let index = code_slot(self.context, linear);
        // SAFETY: as above; there are two contexts here.
        let entry = unsafe { self.code.get_unchecked(index) };
        let offset = linear ^ entry.tag;
        (offset < 0x1000).then(|| (entry.host + offset, (entry.page & !GLOBAL) as usize))
    }

    pub(super) fn fill_data(&mut self, context: Context, fill: &Fill) {
        let slot = slot(fill.linear);
        let tag = fill.linear & !0xfff;
        let index = context as usize * ENTRIES + slot;
        let keep = self.read[index] == tag && self.write[index] == tag && !fill.writable;
        self.read[index] = tag;
        self.write[index] = if fill.writable || keep {
            tag
        } else {
            never(slot)
        };
        self.host[index] = fill.host.as_ptr() as u64 & !0xfff;
        self.page[index] = fill.page as u64 | if fill.global { GLOBAL } else { 0 };
        if !fill.global && self.local.len() < MOST_LOCAL {
            self.local.push(index as u32);
        }
    }

    pub(super) fn fill_code(&mut self, context: Context, fill: &Fill) {
        let index = code_slot(context, fill.linear);
        let (word, bit) = code_page(fill.linear);
        self.code_pages[word] |= bit;
        self.local_code |= context != Context::User && !fill.global;
        self.code[index] = CodeEntry {
            tag: fill.linear & !0xfff,
            host: fill.host.as_ptr() as u64 & !0xfff,
            page: fill.page as u64 | if fill.global { GLOBAL } else { 0 },
        };
    }

    /// Forgets everything, or everything but global pages.
    pub(in crate::soft) fn flush(&mut self, global: bool) {
        if !global && self.local.len() < MOST_LOCAL {
            for &index in &self.local {
                let index = index as usize;
                if self.page[index] & GLOBAL == 0 {
                    self.read[index] = never(index);
                    self.write[index] = never(index);
                }
            }
        } else {
            for index in 0..ENTRIES * CONTEXTS {
                if global || self.page[index] & GLOBAL == 0 {
                    self.read[index] = never(index);
                    self.write[index] = never(index);
                }
            }
        }
        self.local.clear();
        for (index, entry) in self.code.iter_mut().enumerate() {
            if global || entry.page & GLOBAL == 0 {
                entry.tag = never_code(index);
            }
        }
        self.changes[0] = self.changes[0].wrapping_add(1);
        if global || self.local_code {
            self.changes[1] = self.changes[1].wrapping_add(1);
            self.local_code = false;
        }
        if global {
            self.code_pages = [0; CODE_PAGE_WORDS];
        }
    }

    /// Forgets one linear page.
    pub(in crate::soft) fn flush_page(&mut self, linear: u64) {
        let slot = slot(linear);
        for context in 0..CONTEXTS {
            self.read[context * ENTRIES + slot] = never(slot);
            self.write[context * ENTRIES + slot] = never(slot);
        }
        for context in [Context::User, Context::Supervisor] {
            let slot = code_slot(context, linear);
            self.code[slot].tag = never_code(slot);
        }
        let (word, bit) = code_page(linear);
        if self.code_pages[word] & bit != 0 {
            for changes in &mut self.changes {
                *changes = changes.wrapping_add(1);
            }
        }
    }

    /// Lets the next store to one page of RAM, or to any, be seen by the slow path.
    pub(in crate::soft) fn flush_writes(&mut self, page: Option<usize>) {
        for index in 0..ENTRIES * CONTEXTS {
            if page.is_none_or(|page| self.page[index] & !GLOBAL == page as u64) {
                self.write[index] = never(index);
            }
        }
    }
}
