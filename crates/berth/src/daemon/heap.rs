//! The daemon's memory after a burst of work: free, but kept by the allocator, and so counted as the
//! daemon's for as long as it lives.

use std::time::Duration;

use store::Store;

/// Quiet is when nothing changed for as long.
const QUIET: Duration = Duration::from_secs(5);

/// Gives free memory back to the host each time changes have come to rest, until the store is closed.
pub(super) async fn give_back_when_quiet(store: Store) {
    let mut given = store.revision().ok();
    let mut before = given;
    loop {
        tokio::time::sleep(QUIET).await;
        let Ok(now) = store.revision() else { return };
        let now = Some(now);
        if now == before && now != given {
            // Not on a thread that serves.
            let _ = tokio::task::spawn_blocking(container::heap::give_back).await;
            given = now;
        }
        before = now;
    }
}
