//! The translation lookaside buffer: from linear pages to host addresses.
//!
//! Each entry holds a tag for each kind of access, equal to the linear page where that access needs
//! no further thought, and what to add to a linear address to get the host's. So one compare
//! decides present, permitted and within one page; a translator can do the same inline. Pages of
//! devices are never entered; a page that holds code somebody keeps blocks of is never entered for
//! stores.
//!
//! It is filled and emptied by its parents in this folder only.

use std::ptr::NonNull;

use super::super::core::Access;

const ENTRIES: usize = 256;
const CONTEXTS: usize = 3;
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
#[repr(C, align(32))]
struct Entry {
    read: u64,
    write: u64,
    addend: u64,
    page: u64,
}

#[derive(Clone, Copy)]
struct CodeEntry {
    tag: u64,
    addend: u64,
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

/// The translations of one vCPU.
pub struct Tlb {
    data: Box<[Entry; ENTRIES * CONTEXTS]>,
    code: Box<[CodeEntry; ENTRIES * 2]>,
    context: Context,
}

fn slot(linear: u64) -> usize {
    (linear >> 12) as usize % ENTRIES
}

/// A tag that nothing looked up in this slot can equal.
fn never(slot: usize) -> u64 {
    ((slot % ENTRIES) as u64 ^ 1) << 12
}

impl Default for Tlb {
    fn default() -> Self {
        let data = std::array::from_fn(|slot| Entry {
            read: never(slot),
            write: never(slot),
            addend: 0,
            page: 0,
        });
        let code = std::array::from_fn(|slot| CodeEntry {
            tag: never(slot),
            addend: 0,
            page: 0,
        });
        Self {
            data: Box::new(data),
            code: Box::new(code),
            context: Context::Supervisor,
        }
    }
}

impl Tlb {
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
        let entry = unsafe { self.data.get_unchecked(index) };
        let tag = match access {
            Access::Write => entry.write,
            _ => entry.read,
        };
        if linear ^ tag <= 0x1000 - bytes as u64 {
            return NonNull::new(linear.wrapping_add(entry.addend) as *mut u8);
        }
        None
    }

    /// The host address of code at a linear address, if known, and the number of its page.
    #[inline(always)]
    pub(in crate::soft) fn code(&self, linear: u64) -> Option<(u64, usize)> {
        let index = usize::from(self.context != Context::User) * ENTRIES + slot(linear);
        // SAFETY: as above; there are two contexts here.
        let entry = unsafe { self.code.get_unchecked(index) };
        (linear ^ entry.tag < 0x1000).then(|| {
            (
                linear.wrapping_add(entry.addend),
                (entry.page & !GLOBAL) as usize,
            )
        })
    }

    pub(super) fn fill_data(&mut self, context: Context, fill: &Fill) {
        let slot = slot(fill.linear);
        let tag = fill.linear & !0xfff;
        let entry = &mut self.data[context as usize * ENTRIES + slot];
        let keep = entry.read == tag && entry.write == tag && !fill.writable;
        *entry = Entry {
            read: tag,
            write: if fill.writable || keep {
                tag
            } else {
                never(slot)
            },
            addend: (fill.host.as_ptr() as u64).wrapping_sub(fill.linear),
            page: fill.page as u64 | if fill.global { GLOBAL } else { 0 },
        };
    }

    pub(super) fn fill_code(&mut self, context: Context, fill: &Fill) {
        let index = usize::from(context != Context::User) * ENTRIES + slot(fill.linear);
        self.code[index] = CodeEntry {
            tag: fill.linear & !0xfff,
            addend: (fill.host.as_ptr() as u64).wrapping_sub(fill.linear),
            page: fill.page as u64 | if fill.global { GLOBAL } else { 0 },
        };
    }

    /// Forgets everything, or everything but global pages.
    pub(in crate::soft) fn flush(&mut self, global: bool) {
        for (index, entry) in self.data.iter_mut().enumerate() {
            if global || entry.page & GLOBAL == 0 {
                entry.read = never(index);
                entry.write = never(index);
            }
        }
        for (index, entry) in self.code.iter_mut().enumerate() {
            if global || entry.page & GLOBAL == 0 {
                entry.tag = never(index);
            }
        }
    }

    /// Forgets one linear page.
    pub(in crate::soft) fn flush_page(&mut self, linear: u64) {
        let slot = slot(linear);
        for context in 0..CONTEXTS {
            let entry = &mut self.data[context * ENTRIES + slot];
            entry.read = never(slot);
            entry.write = never(slot);
        }
        for context in 0..2 {
            self.code[context * ENTRIES + slot].tag = never(slot);
        }
    }

    /// Lets the next store to one page of RAM, or to any, be seen by the slow path.
    pub(in crate::soft) fn flush_writes(&mut self, page: Option<usize>) {
        for (index, entry) in self.data.iter_mut().enumerate() {
            if page.is_none_or(|page| entry.page & !GLOBAL == page as u64) {
                entry.write = never(index);
            }
        }
    }
}
