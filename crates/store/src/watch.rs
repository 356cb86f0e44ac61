//! [`Watcher`]: a cursor into the history, held by whoever wants to know of changes.

use std::sync::Arc;

use crate::error::WatchError;
use crate::history::History;
use crate::record::{Event, Revision};

/// Changes of one or more whole transactions, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Everything up to here has been seen: where to watch from after an interruption.
    pub revision: Revision,
    /// The changes under the watched prefix; never empty.
    pub events: Vec<Event>,
}

/// Sees every change under a prefix, or is told that it cannot. Holds no queue: one that is never
/// asked costs nothing.
#[derive(Debug)]
pub struct Watcher {
    history: Arc<History>,
    prefix: String,
    cursor: Revision,
    wake: tokio::sync::watch::Receiver<Revision>,
}

impl Watcher {
    /// Fails at once when `from` is already out of reach.
    pub(crate) fn new(
        history: Arc<History>,
        prefix: String,
        from: Revision,
    ) -> Result<Self, WatchError> {
        let wake = history.subscribe();
        history.after(from, &prefix)?;
        Ok(Self {
            history,
            prefix,
            cursor: from,
            wake,
        })
    }

    /// The next changes, as soon as there are any. Dropping the future loses nothing.
    ///
    /// # Errors
    /// [`WatchError::Compacted`] when changes were missed (list again, then watch anew);
    /// [`WatchError::Closed`] after the last change of a store that was closed.
    pub async fn next(&mut self) -> Result<Batch, WatchError> {
        loop {
            self.wake.borrow_and_update();
            let (events, revision) = self.history.after(self.cursor, &self.prefix)?;
            self.cursor = revision;
            if !events.is_empty() {
                return Ok(Batch { revision, events });
            }
            self.wake.changed().await.map_err(|_| WatchError::Closed)?;
        }
    }

    /// Everything up to here has been seen.
    #[must_use]
    pub const fn revision(&self) -> Revision {
        self.cursor
    }
}
