//! Which ended operations are kept. Stuck ones always are.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use model::Timestamp;
use store::{Store, Txn, limits::MAX_TXN_OPS};

use crate::operation::{CANCELS, OPERATIONS, OperationId, now};

/// How many ended operations are kept, and how long: until the first of both is exceeded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// Operations.
    pub count: usize,
    /// Since they ended.
    pub age: Duration,
}

impl Default for Retention {
    fn default() -> Self {
        Self {
            count: 1000,
            age: Duration::from_secs(7 * 86_400),
        }
    }
}

/// The ended operations, in the order they ended.
#[derive(Debug, Default)]
pub(crate) struct Ended {
    queue: Mutex<VecDeque<(Timestamp, OperationId)>>,
}

impl Ended {
    /// Takes note of operations that ended.
    pub(crate) fn add(&self, ended: impl IntoIterator<Item = (Timestamp, OperationId)>) {
        self.queue
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .extend(ended);
    }

    /// An ended operation goes on after all.
    pub(crate) fn forget(&self, id: OperationId) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.retain(|(_, ended)| *ended != id);
    }

    /// Forgets what is over the bounds. Not durable: what comes back is forgotten again.
    pub(crate) async fn prune(&self, store: &Store, retention: Retention) {
        loop {
            let over = self.over(retention, MAX_TXN_OPS / 2);
            if over.is_empty() {
                return;
            }
            let mut txn = Txn::relaxed();
            for id in &over {
                OPERATIONS.remove(&mut txn, &id.to_string());
                CANCELS.remove(&mut txn, &id.to_string());
            }
            if let Err(error) = store.commit(txn).await {
                tracing::warn!(%error, "ended operations could not be forgotten");
                return;
            }
        }
    }

    fn over(&self, retention: Retention, most: usize) -> Vec<OperationId> {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let now = now();
        let age = u64::try_from(retention.age.as_millis()).unwrap_or(u64::MAX);
        let mut over = Vec::new();
        while let Some((at, id)) = queue.front() {
            let old = queue.len() > retention.count || now.millis_since(*at) > age;
            if !old || over.len() == most {
                break;
            }
            over.push(*id);
            queue.pop_front();
        }
        over
    }
}
