//! Upstream's answers, kept for as long as they allow, within a fixed size.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::wire::{Answer, Query};

/// Most answers kept.
const ENTRIES_MAX: usize = 2048;
/// Largest answer kept, in bytes; with the above, 4 MiB at the very most.
const BYTES_MAX: usize = 2048;
/// Longest that any answer is kept.
const TTL_MAX_S: u32 = 3600;

#[derive(Debug, Default)]
pub(super) struct Cache {
    entries: Mutex<HashMap<Vec<u8>, (Instant, Answer)>>,
}

impl Cache {
    /// The answer to `query`, aged, if a fresh one is kept.
    pub(super) fn get(&self, query: &Query, now: Instant) -> Option<Vec<u8>> {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let (received, answer) = entries.get(&query.cache_key())?;
        let age = now.saturating_duration_since(*received);
        (age < lifetime(answer))
            .then(|| answer.for_query(query, u32::try_from(age.as_secs()).unwrap_or(u32::MAX)))
    }

    /// Keeps the answer if it allows that.
    pub(super) fn put(&self, query: &Query, answer: &Answer, now: Instant) {
        if answer.ttl_s == 0 || answer.bytes.len() > BYTES_MAX {
            return;
        }
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        if entries.len() >= ENTRIES_MAX {
            entries.retain(|_, (at, kept)| now.saturating_duration_since(*at) < lifetime(kept));
        }
        if entries.len() >= ENTRIES_MAX {
            // Full of fresh ones: start afresh, rather than keep order for a rare case.
            entries.clear();
        }
        entries.insert(query.cache_key(), (now, answer.clone()));
    }
}

fn lifetime(answer: &Answer) -> Duration {
    Duration::from_secs(u64::from(answer.ttl_s.min(TTL_MAX_S)))
}
