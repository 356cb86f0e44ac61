//! What happened how often: for those who make translation faster, and for those who wonder why a
//! machine is slow.
//!
//! Each vCPU counts for itself, in [`Cells`], and anybody may read them at any time: while it runs
//! the numbers of one reading belong to slightly different moments. Counting is a load and a store,
//! never a locked instruction, and nothing is counted by translated code itself.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

/// A number that one thread counts up and all may read.
#[derive(Debug, Default)]
pub(in crate::soft) struct Cell(AtomicU64);

impl Cell {
    /// Counts; for the vCPU's own thread only.
    #[inline(always)]
    pub(in crate::soft) fn add(&self, more: u64) {
        let count = self.0.load(Ordering::Relaxed);
        self.0.store(count.wrapping_add(more), Ordering::Relaxed);
    }

    /// Counts one.
    #[inline(always)]
    pub(in crate::soft) fn increment(&self) {
        self.add(1);
    }
}

/// Says once what is counted: for [`Cells`], for [`Counters`], and for people.
macro_rules! counted {
    ($($(#[doc = $meaning:literal])+ $name:ident,)+) => {
        /// The counters of one vCPU as it counts them.
        #[derive(Debug, Default)]
        pub(in crate::soft) struct Cells {
            $(pub(in crate::soft) $name: Cell,)+
            untranslated: Mutex<BTreeMap<String, u64>>,
        }

        /// What happened how often on one vCPU, or on several.
        #[derive(Debug, Clone, Default, PartialEq, Eq)]
        pub struct Counters {
            $($(#[doc = $meaning])+ pub $name: u64,)+
            /// Instructions translated into a call of their handler, by the name of their form.
            pub untranslated: BTreeMap<String, u64>,
        }

        impl Cells {
            /// The numbers by now.
            pub(in crate::soft) fn read(&self) -> Counters {
                let untranslated = self.untranslated.lock();
                Counters {
                    $($name: self.$name.0.load(Ordering::Relaxed),)+
                    untranslated: untranslated.unwrap_or_else(PoisonError::into_inner).clone(),
                }
            }
        }

        impl Counters {
            /// Adds those of another vCPU.
            pub fn add(&mut self, other: &Self) {
                $(self.$name = self.$name.wrapping_add(other.$name);)+
                for (name, count) in &other.untranslated {
                    *self.untranslated.entry(name.clone()).or_default() += count;
                }
            }

            /// All but [`Self::untranslated`]: the name of each, what it counts, and the number.
            #[must_use]
            pub fn named(&self) -> Vec<(&'static str, &'static str, u64)> {
                vec![$((stringify!($name), concat!($($meaning),+).trim_start(), self.$name),)+]
            }
        }
    };
}

counted! {
    /// Blocks translated.
    translations,
    /// Instructions in them.
    translated_instructions,
    /// Bytes of host code made of them.
    host_bytes,
    /// Times that all translations were dropped, as there was no more room.
    flushes,
    /// Translations dropped as the guest wrote to their page.
    stale,
    /// Direct jumps linked to the translation they lead to.
    links,
    /// Entries into translated code.
    entries,
    /// Exits: a direct jump was not linked yet.
    unlinked,
    /// Exits: the table of targets did not have where a jump led.
    misses,
    /// Exits: the attention word was set, as for an interrupt.
    attention,
    /// Exits: a handler did something else than go on with the next instruction.
    left,
    /// Entries of the table of targets that took the place of others.
    conflicts,
    /// Times that the table of targets was emptied.
    retargets,
    /// Handlers of the interpreter called by translated code, for what is not translated and for
    /// the slow path of memory.
    handlers,
    /// Blocks run by the interpreter.
    interpreted,
    /// Accesses to data that missed the TLB.
    tlb_misses,
    /// Of these: a page was walked to and entered.
    tlb_fills,
    /// Of these: stores to a page that holds decoded code, or that is watched for writes.
    watched_stores,
    /// Of these: accesses that cross into another page.
    crossings,
    /// Of these: accesses to devices.
    device_accesses,
    /// Of these: accesses that faulted.
    faults,
    /// Fetches of code that missed the TLB.
    tlb_code_misses,
}

impl Cells {
    /// Notes that a form of instruction was translated into a call of its handler.
    pub(in crate::soft) fn note_untranslated(&self, form: String) {
        let mut names = self
            .untranslated
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *names.entry(form).or_default() += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_is_read_by_name_and_added_up() {
        let cells = Cells::default();
        cells.links.increment();
        cells.links.add(4);
        cells.note_untranslated("Cpuid".into());
        let mut sum = cells.read();
        sum.add(&cells.read());
        let links = sum.named().into_iter().find(|it| it.0 == "links");
        let meaning = "Direct jumps linked to the translation they lead to.";
        assert_eq!(links, Some(("links", meaning, 10)));
        assert_eq!(sum.untranslated.get("Cpuid"), Some(&2));
    }
}
