//! The one place that reads the clock for records and statuses.

use std::time::{SystemTime, UNIX_EPOCH};

use model::Timestamp;

/// Now, by the host's wall clock.
#[must_use]
pub fn now() -> Timestamp {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    Timestamp::from_millis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
