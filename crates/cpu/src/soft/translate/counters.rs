//! What happened how often, for those who make translation faster.

use std::collections::BTreeMap;

/// What happened how often on one vCPU.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counters {
    /// Blocks translated.
    pub translations: u64,
    /// Instructions in them.
    pub instructions: u64,
    /// Bytes of host code made of them.
    pub host_bytes: u64,
    /// Everything was forgotten, as there was no more room.
    pub flushes: u64,
    /// Blocks forgotten as the guest changed their code.
    pub stale: u64,
    /// Entries into translated code.
    pub entries: u64,
    /// It came back: a jump led to where the table of targets had nothing.
    pub misses: u64,
    /// It came back: a direct jump was not linked yet.
    pub unlinked: u64,
    /// It came back: the attention word was set.
    pub attention: u64,
    /// It came back: an instruction did something else than go on with the next.
    pub left: u64,
    /// Handlers of the interpreter called by translated code, for what is not translated and for
    /// what missed the translation lookaside buffer.
    pub handlers: u64,
    /// Blocks run by the interpreter.
    pub interpreted: u64,
    /// Direct jumps linked.
    pub links: u64,
    /// Targets that took the place of others.
    pub conflicts: u64,
    /// The table of targets was emptied.
    pub retargets: u64,
    /// Instructions translated into a call of their handler, by mnemonic.
    pub untranslated: BTreeMap<String, u64>,
}

impl Counters {
    /// Adds those of another vCPU.
    pub fn add(&mut self, other: &Self) {
        let pairs = [
            (&mut self.translations, other.translations),
            (&mut self.instructions, other.instructions),
            (&mut self.host_bytes, other.host_bytes),
            (&mut self.flushes, other.flushes),
            (&mut self.stale, other.stale),
            (&mut self.entries, other.entries),
            (&mut self.misses, other.misses),
            (&mut self.unlinked, other.unlinked),
            (&mut self.attention, other.attention),
            (&mut self.left, other.left),
            (&mut self.handlers, other.handlers),
            (&mut self.interpreted, other.interpreted),
            (&mut self.links, other.links),
            (&mut self.conflicts, other.conflicts),
            (&mut self.retargets, other.retargets),
        ];
        for (sum, more) in pairs {
            *sum += more;
        }
        for (name, count) in &other.untranslated {
            *self.untranslated.entry(name.clone()).or_default() += count;
        }
    }
}
