//! Instances that go away with their program, from when somebody was told of its end: they are not listed
//! any more, though it takes some milliseconds to take them away.
//!
//! Only for a while: one that cannot be taken away is listed again, for somebody has to see it.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use model::InstanceId;

/// How long one is hidden.
const HIDDEN: Duration = Duration::from_secs(5);

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Leaving {
    since: Mutex<HashMap<InstanceId, Instant>>,
}

impl Leaving {
    /// Hides an instance from now on, and forgets those that were hidden long enough.
    pub(crate) fn add(&self, id: InstanceId) {
        let mut since = self.since();
        since.retain(|_, begun| begun.elapsed() < HIDDEN);
        since.insert(id, Instant::now());
    }

    /// Whether it is hidden.
    pub(crate) fn hides(&self, id: InstanceId) -> bool {
        let since = self.since();
        since.get(&id).is_some_and(|begun| begun.elapsed() < HIDDEN)
    }

    fn since(&self) -> MutexGuard<'_, HashMap<InstanceId, Instant>> {
        self.since.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
