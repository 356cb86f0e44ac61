//! Who has an instance's root open, besides its own program: what is at rest must not be mounted
//! twice, so a start or an end closes what is open first.
//!
//! Opening and closing happen within the instance's turn; using does not, however long it takes.

use std::{collections::HashMap, sync::Arc, time::Duration};

use engine::RootView;
use model::{
    InstanceId,
    record::{InstanceRecord, RecordState},
};
use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};
use tokio_util::sync::CancellationToken;

use crate::{Node, NodeError, lock};

/// How long those who were told to let go are waited for.
const PATIENCE: Duration = Duration::from_secs(20);

/// What a root is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Access {
    /// Only looked at; many may at once.
    Read,
    /// Changed.
    Write,
}

/// An instance's root, held open.
#[derive(Debug)]
pub struct OpenRoot {
    /// What was opened.
    pub view: RootView,
    /// Set when the holder must let go at once, because the instance is started or removed.
    pub ended: CancellationToken,
    // Let go after the view: fields are dropped in order.
    _hold: Hold,
}

#[derive(Debug)]
enum Hold {
    Shared { _guard: OwnedRwLockReadGuard<()> },
    Alone { _guard: OwnedRwLockWriteGuard<()> },
}

/// One instance's.
#[derive(Debug, Default)]
struct Gate {
    lock: Arc<RwLock<()>>,
    ended: std::sync::Mutex<CancellationToken>,
}

/// Every instance's.
#[derive(Debug, Default)]
pub(crate) struct Roots(std::sync::Mutex<HashMap<InstanceId, Arc<Gate>>>);

impl Roots {
    fn gate(&self, id: InstanceId) -> Arc<Gate> {
        lock(&self.0).entry(id).or_default().clone()
    }

    /// Forgets an instance that is gone.
    pub(crate) fn forget(&self, id: InstanceId) {
        lock(&self.0).remove(&id);
    }

    /// Makes everybody let go; to be called within the instance's turn.
    ///
    /// # Errors
    /// When somebody does not.
    pub(crate) async fn close(&self, id: InstanceId) -> Result<(), NodeError> {
        let Some(gate) = lock(&self.0).get(&id).cloned() else {
            return Ok(());
        };
        std::mem::take(&mut *lock(&gate.ended)).cancel();
        match tokio::time::timeout(PATIENCE, gate.lock.write()).await {
            Ok(_all_gone) => Ok(()),
            Err(_elapsed) => Err(NodeError::Unusable(
                "its files are still being copied and the copy does not end; try again".to_owned(),
            )),
        }
    }
}

impl Node {
    /// Opens an instance's root file system: as its program sees it while it runs, else as it
    /// would start with. Whoever holds it gives it back when told to, see [`OpenRoot::ended`].
    ///
    /// # Errors
    /// [`NodeError::Unusable`] when the instance is in no state for it, for the user; else what
    /// the engine says.
    pub async fn open_root(
        &self,
        record: &InstanceRecord,
        access: Access,
    ) -> Result<OpenRoot, NodeError> {
        if record.state != RecordState::Ready {
            let text = "the instance is being made or removed; its files cannot be copied now";
            return Err(NodeError::Unusable(text.to_owned()));
        }
        let id = record.id;
        let gate = self.inner.roots.gate(id);
        loop {
            let turn = self.turn(id).await;
            let seen = self.engine().observe(id).await.map_err(NodeError::Engine)?;
            if seen.state == engine::GuestState::Paused && access == Access::Write {
                let name = &record.name;
                return Err(NodeError::Unusable(format!(
                    "{name} is paused, nothing in it may change; resume it first: \
                     berth resume {name}"
                )));
            }
            let shared = seen.pid.is_some() || access == Access::Read;
            let hold = if shared {
                let guard = gate.lock.clone().try_read_owned();
                guard.ok().map(|guard| Hold::Shared { _guard: guard })
            } else {
                let guard = gate.lock.clone().try_write_owned();
                guard.ok().map(|guard| Hold::Alone { _guard: guard })
            };
            let Some(hold) = hold else {
                // Somebody else writes to it while it rests: wait outside of the turn.
                drop(turn);
                if shared {
                    drop(gate.lock.read().await);
                } else {
                    drop(gate.lock.write().await);
                }
                continue;
            };
            let ended = lock(&gate.ended).clone();
            let mut guest = self.resolve(record).await?;
            guest.root.read_only |= access == Access::Read;
            let view = self.engine().open_root(&guest).await;
            return Ok(OpenRoot {
                view: view.map_err(NodeError::Engine)?,
                ended,
                _hold: hold,
            });
        }
    }
}
