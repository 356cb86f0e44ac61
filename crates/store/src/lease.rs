//! When leases end. Monotonic time only; what a lease takes with it is the backend's affair.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::record::LeaseId;

/// The leases that are alive.
#[derive(Debug, Default)]
pub(crate) struct Deadlines {
    leases: HashMap<LeaseId, (Duration, Instant)>,
}

impl Deadlines {
    /// Starts a lease.
    pub(crate) fn start(&mut self, lease: LeaseId, ttl: Duration, now: Instant) {
        self.leases.insert(lease, (ttl, due(now, ttl)));
    }

    /// Starts the lease's time anew; false when it has ended.
    pub(crate) fn keep(&mut self, lease: LeaseId, now: Instant) -> bool {
        match self.leases.get_mut(&lease) {
            Some((ttl, deadline)) if *deadline > now => {
                *deadline = due(now, *ttl);
                true
            }
            _ => false,
        }
    }

    /// Starts every lease's time anew, as after a restart.
    pub(crate) fn keep_all(&mut self, now: Instant) {
        for (ttl, deadline) in self.leases.values_mut() {
            *deadline = due(now, *ttl);
        }
    }

    /// Forgets a lease; false when it had ended.
    pub(crate) fn end(&mut self, lease: LeaseId) -> bool {
        self.leases.remove(&lease).is_some()
    }

    /// Whether keys may be attached to it.
    pub(crate) fn alive(&self, lease: LeaseId) -> bool {
        self.leases.contains_key(&lease)
    }

    /// When the next lease ends.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.leases.values().map(|(_, deadline)| *deadline).min()
    }

    /// Those whose time is over, oldest id first.
    pub(crate) fn expired(&self, now: Instant) -> Vec<LeaseId> {
        let over = self
            .leases
            .iter()
            .filter(|(_, (_, deadline))| *deadline <= now);
        let mut over: Vec<_> = over.map(|(lease, _)| *lease).collect();
        over.sort_unstable();
        over
    }
}

/// A time-to-live beyond what the clock can count never ends in practice: thirty years will do.
fn due(now: Instant, ttl: Duration) -> Instant {
    const LONG: Duration = Duration::from_secs(30 * 365 * 86_400);
    now + ttl.min(LONG)
}
