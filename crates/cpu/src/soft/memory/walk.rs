//! The page walk: from linear to physical addresses through the guest's page tables (Intel SDM 3A,
//! chapter 4): 32-bit, PAE and 4-level paging, large pages, all permission bits.
//!
//! It reads and, for accessed and dirty bits, changes page tables in RAM, atomically as other
//! vCPUs and their walks do. It knows of no host addresses but those of the tables.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::{
    super::{
        Fault,
        core::{Access, Core},
        system::control::{CR0_WP, CR4_PAE, CR4_PSE, CR4_SMAP, CR4_SMEP, EFER_LMA, EFER_NXE},
    },
    tlb::Context,
};

/// Bits of physical addresses, as CPUID shows them.
pub const PHYSICAL_BITS: u32 = 48;

const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;
const GLOBAL: u64 = 1 << 8;
const NO_EXECUTE: u64 = 1 << 63;
/// The physical address in an 8-byte entry.
const ADDRESS: u64 = (1 << PHYSICAL_BITS) - 0x1000;
/// Physical addresses have no more bits on any processor.
const ARCHITECTURAL: u64 = (1 << 52) - 1;
/// Address bits this processor does not have.
const BEYOND: u64 = ARCHITECTURAL & !((1 << PHYSICAL_BITS) - 1);

const CODE_PRESENT: u16 = 1 << 0;
const CODE_WRITE: u16 = 1 << 1;
const CODE_USER: u16 = 1 << 2;
const CODE_RESERVED: u16 = 1 << 3;
const CODE_FETCH: u16 = 1 << 4;

/// What a linear address translates to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Translation {
    /// Physical address.
    pub physical: u64,
    /// A store in the same context needs no further walk: permitted, and the dirty bit is set.
    pub writable: bool,
    /// Stays when `cr3` is loaded.
    pub global: bool,
}

/// The form of the tables at the current mode.
#[derive(Clone, Copy)]
struct Form {
    /// Levels, counted down to 1 for the one whose entries map 4 KiB.
    levels: u32,
    /// Each level translates so many bits.
    index_bits: u32,
    entry_bytes: u64,
    root: u64,
}

/// An entry met on the way.
#[derive(Clone, Copy, Default)]
struct Step {
    address: u64,
    value: u64,
}

/// Why a walk did not come to an end.
enum Stop {
    Fault(u16),
    /// An entry changed while it was used.
    Again,
}

impl Core {
    /// Walks the page tables for one access, and sets accessed and dirty bits.
    ///
    /// # Errors
    /// `#PF`, with `cr2` set.
    pub(in crate::soft) fn translate(
        &mut self,
        linear: u64,
        access: Access,
        context: Context,
    ) -> Result<Translation, Fault> {
        let Some(form) = self.form() else {
            return Ok(Translation {
                physical: linear & ARCHITECTURAL,
                writable: true,
                global: false,
            });
        };
        loop {
            match self.walk(form, linear, access, context) {
                Ok(translation) => return Ok(translation),
                Err(Stop::Again) => {}
                Err(Stop::Fault(reason)) => {
                    self.control.cr2 = linear;
                    return Err(Fault::pf(reason | self.access_code(access, context)));
                }
            }
        }
    }

    fn form(&self) -> Option<Form> {
        let control = &self.control;
        if !control.paging() {
            return None;
        }
        Some(if control.efer & EFER_LMA != 0 {
            Form {
                levels: 4,
                index_bits: 9,
                entry_bytes: 8,
                root: control.cr3 & ADDRESS,
            }
        } else if control.cr4 & CR4_PAE != 0 {
            Form {
                levels: 3,
                index_bits: 9,
                entry_bytes: 8,
                root: control.cr3 & 0xffff_ffe0,
            }
        } else {
            Form {
                levels: 2,
                index_bits: 10,
                entry_bytes: 4,
                root: control.cr3 & 0xffff_f000,
            }
        })
    }

    fn access_code(&self, access: Access, context: Context) -> u16 {
        let control = &self.control;
        let tells_fetch = control.efer & EFER_NXE != 0 && control.cr4 & CR4_PAE != 0
            || control.cr4 & CR4_SMEP != 0;
        let mut code = 0;
        if access == Access::Write {
            code |= CODE_WRITE;
        }
        if context == Context::User {
            code |= CODE_USER;
        }
        if access == Access::Execute && tells_fetch {
            code |= CODE_FETCH;
        }
        code
    }

    fn walk(
        &mut self,
        form: Form,
        linear: u64,
        access: Access,
        context: Context,
    ) -> Result<Translation, Stop> {
        let mut steps = [Step::default(); 4];
        let mut rights = WRITABLE | USER;
        let mut no_execute = 0;
        let mut table = form.root;
        let mut level = form.levels;
        let (count, shift) = loop {
            let shift = 12 + (level - 1) * form.index_bits;
            let index = linear >> shift & ((1 << form.index_bits) - 1);
            let address = table + index * form.entry_bytes;
            let value = self.table_entry(address, form.entry_bytes);
            let number = (form.levels - level) as usize;
            steps[number] = Step { address, value };
            if value & PRESENT == 0 {
                return Err(Stop::Fault(0));
            }
            let large = self.check_entry(form, level, value)?;
            // The four top entries of PAE paging have no rights of their own.
            if !(form.levels == 3 && level == 3) {
                rights &= value;
                no_execute |= value & NO_EXECUTE;
            }
            if level == 1 || large {
                break (number + 1, shift);
            }
            table = value
                & if form.entry_bytes == 4 {
                    0xffff_f000
                } else {
                    ADDRESS
                };
            level -= 1;
        };
        let may_write = self.check_rights(rights, no_execute != 0, access, context)?;
        self.set_accessed(form, &mut steps[..count], access == Access::Write)?;
        let leaf = steps[count - 1].value;
        let offset = linear & ((1 << shift) - 1);
        let base = if form.entry_bytes == 8 {
            leaf & ADDRESS & !((1 << shift) - 1)
        } else if shift == 22 {
            leaf & 0xffc0_0000 | (leaf >> 13 & 0xff) << 32
        } else {
            leaf & 0xffff_f000
        };
        Ok(Translation {
            physical: base | offset,
            writable: may_write && leaf & DIRTY != 0,
            global: leaf & GLOBAL != 0 && self.control.global_pages(),
        })
    }

    /// Whether the entry maps a large page.
    fn check_entry(&self, form: Form, level: u32, value: u64) -> Result<bool, Stop> {
        let reserved = Err(Stop::Fault(CODE_PRESENT | CODE_RESERVED));
        if form.entry_bytes == 4 {
            let large = level == 2 && value & LARGE != 0 && self.control.cr4 & CR4_PSE != 0;
            // PSE-36: bits 13 to 20 are address bits 32 to 39, bit 21 is reserved.
            return if large && value & 1 << 21 != 0 {
                reserved
            } else {
                Ok(large)
            };
        }
        if value & BEYOND != 0
            || value & NO_EXECUTE != 0 && self.control.efer & EFER_NXE == 0
            || form.levels == 3 && value & 0x7ff0_0000_0000_0000 != 0
        {
            return reserved;
        }
        if form.levels == 3 && level == 3 {
            let bad = value & (WRITABLE | USER | 0x1e0 | NO_EXECUTE) != 0;
            return if bad { reserved } else { Ok(false) };
        }
        let large = value & LARGE != 0 && level > 1;
        let low = match level {
            4 if large => return reserved,
            3 if large => 0x3fff_e000,
            2 if large => 0x001f_e000,
            _ => 0,
        };
        if value & low != 0 {
            return reserved;
        }
        Ok(large)
    }

    /// Whether a store would be permitted too.
    fn check_rights(
        &self,
        rights: u64,
        no_execute: bool,
        access: Access,
        context: Context,
    ) -> Result<bool, Stop> {
        let user_page = rights & USER != 0;
        let control = &self.control;
        let (may_read, may_write, may_execute) = if context == Context::User {
            let write = user_page && rights & WRITABLE != 0;
            (user_page, write, user_page && !no_execute)
        } else {
            let barred = user_page && control.cr4 & CR4_SMAP != 0 && context == Context::Supervisor;
            let write = rights & WRITABLE != 0 || control.cr0 & CR0_WP == 0;
            let execute = !(no_execute || user_page && control.cr4 & CR4_SMEP != 0);
            (!barred, write && !barred, execute)
        };
        let permitted = match access {
            Access::Read => may_read,
            Access::Write => may_write,
            Access::Execute => may_execute,
        };
        if permitted {
            Ok(may_write)
        } else {
            Err(Stop::Fault(CODE_PRESENT))
        }
    }

    /// Sets accessed bits on all steps and, for a store, the dirty bit on the last.
    fn set_accessed(&mut self, form: Form, steps: &mut [Step], dirty: bool) -> Result<(), Stop> {
        let last = steps.len() - 1;
        for (number, step) in steps.iter_mut().enumerate() {
            if form.levels == 3 && number == 0 {
                continue;
            }
            let mut wanted = step.value | ACCESSED;
            if number == last && dirty {
                wanted |= DIRTY;
            }
            if wanted != step.value {
                if !self.replace_entry(step, wanted, form.entry_bytes) {
                    return Err(Stop::Again);
                }
                step.value = wanted;
            }
        }
        Ok(())
    }

    /// A table outside RAM reads as all ones, as any absent memory.
    fn table_entry(&self, address: u64, bytes: u64) -> u64 {
        let Some((host, _)) = self.ram.host(address) else {
            return u64::MAX;
        };
        if bytes == 4 {
            // SAFETY: mapped for as long as `ram` lives, and aligned: tables and indices are.
            let entry = unsafe { AtomicU32::from_ptr(host.as_ptr().cast()) };
            u64::from(entry.load(Ordering::Acquire))
        } else {
            // SAFETY: as above.
            let entry = unsafe { AtomicU64::from_ptr(host.as_ptr().cast()) };
            entry.load(Ordering::Acquire)
        }
    }

    /// Puts `wanted` where the entry still is as it was read.
    fn replace_entry(&mut self, step: &Step, wanted: u64, bytes: u64) -> bool {
        let Some((host, page)) = self.ram.host(step.address) else {
            return true;
        };
        self.about_to_write(page);
        self.cannot_take_back();
        if bytes == 4 {
            // SAFETY: mapped for as long as `ram` lives, and aligned: tables and indices are.
            let entry = unsafe { AtomicU32::from_ptr(host.as_ptr().cast()) };
            entry
                .compare_exchange(
                    step.value as u32,
                    wanted as u32,
                    Ordering::AcqRel,
                    Ordering::Relaxed,
                )
                .is_ok()
        } else {
            // SAFETY: as above.
            let entry = unsafe { AtomicU64::from_ptr(host.as_ptr().cast()) };
            entry
                .compare_exchange(step.value, wanted, Ordering::AcqRel, Ordering::Relaxed)
                .is_ok()
        }
    }
}
