//! One host: keeps what runs in line with what is recorded.
//!
//! ```text
//!   store: instances/… ──watch──┐
//!   engine: events ─────────────┼─▶ Kicks ─▶ one pass at a time per instance:
//!   timers: restarts, stops ────┘            record + observe ─▶ planner ─▶ one step ─▶ status
//! ```
//!
//! A pass takes no input but the instance's id: everything it needs is read anew, so it can be cut
//! off anywhere and run again. The node writes statuses and nothing else of the store; records
//! belong to `control`, which also calls the node for the external part of its operations. The
//! node knows no engine by name, no route, and no other host.

#![forbid(unsafe_code)]

pub mod cache;
pub mod clock;
pub mod directory;
mod error;
pub mod files;
mod health;
mod kicks;
pub mod machine;
mod pass;
pub mod paths;
mod resolve;
mod roots;
pub mod tables;
mod wiring;

use std::{collections::HashMap, sync::Arc, time::Duration};

use engine::Engine;
use model::{InstanceId, instance::Limits, record::InstanceRecord};
use store::Store;
use tokio::sync::{Mutex, OwnedMutexGuard, broadcast};
use volume::Pool;

pub use error::NodeError;
pub use kicks::Kicks;
pub use paths::Paths;
pub use resolve::ExecRequest;
pub use roots::{Access, OpenRoot};
pub use wiring::{Wiring, WiringError, gateways};

/// Pause between looks at what the host's settings are: two small files.
const HOST_TURN: Duration = Duration::from_secs(5);

/// What a node is made of.
pub struct Parts {
    /// Where everything is.
    pub paths: Paths,
    /// Records and statuses.
    pub store: Store,
    /// What runs instances.
    pub engine: Arc<dyn Engine>,
    /// Images.
    pub images: image::Store,
    /// The program that virtual machines start with.
    pub agent: std::path::PathBuf,
    /// Named volumes.
    pub volumes: Arc<dyn Pool>,
    /// Networks.
    pub wiring: Wiring,
}

/// Something that happened to an instance, for whoever listens. What is, is in the store.
#[derive(Debug, Clone)]
pub struct Notice {
    /// The instance.
    pub id: InstanceId,
    /// Its name.
    pub name: String,
    /// What: `started`, `exited`, `paused`, `resumed`, `start_failed`, `restarting`, `healthy`,
    /// `unhealthy`, `limits_changed`.
    pub kind: &'static str,
    /// For people.
    pub message: String,
    /// More, such as `exit_code`.
    pub attributes: Vec<(&'static str, String)>,
}

/// One host. Cheap to clone.
#[derive(Clone)]
pub struct Node {
    inner: Arc<Inner>,
}

struct Inner {
    parts: Parts,
    kicks: Kicks,
    locks: std::sync::Mutex<HashMap<InstanceId, Arc<Mutex<()>>>>,
    health: std::sync::Mutex<HashMap<InstanceId, tokio::task::AbortHandle>>,
    /// Generations whose records are known to be in their directories.
    written: std::sync::Mutex<HashMap<InstanceId, u64>>,
    /// Limits known to be in force.
    limits: std::sync::Mutex<HashMap<InstanceId, Limits>>,
    /// Who copies files.
    roots: roots::Roots,
    notices: broadcast::Sender<Notice>,
    /// Hears of what happens while the node starts, for the first who asks.
    first: std::sync::Mutex<Option<broadcast::Receiver<Notice>>>,
}

impl Node {
    /// Starts a node: takes back what runs, removes what nobody knows, makes the networks, and
    /// from then on follows records and engine.
    ///
    /// # Errors
    /// When the store or the engine cannot be read. A network that cannot be made is logged, not
    /// fatal: what does not need it goes on.
    pub async fn start(parts: Parts) -> Result<Self, NodeError> {
        let (notices, first) = broadcast::channel(4096);
        let node = Self {
            inner: Arc::new(Inner {
                parts,
                kicks: Kicks::default(),
                locks: std::sync::Mutex::default(),
                health: std::sync::Mutex::default(),
                written: std::sync::Mutex::default(),
                limits: std::sync::Mutex::default(),
                roots: roots::Roots::default(),
                notices,
                first: std::sync::Mutex::new(Some(first)),
            }),
        };
        let events = node.engine().events();
        let revision = node.adopt().await?;
        node.follow_records(revision);
        node.follow_engine(events);
        node.follow_host();
        Ok(node)
    }

    /// The parts.
    #[must_use]
    pub fn parts(&self) -> &Parts {
        &self.inner.parts
    }

    /// What runs instances.
    #[must_use]
    pub fn engine(&self) -> &dyn Engine {
        &*self.inner.parts.engine
    }

    /// What happens from now on; for the first who asks, from the node's start on, when it finds out
    /// what ended while no daemon ran.
    #[must_use]
    pub fn notices(&self) -> broadcast::Receiver<Notice> {
        let first = lock(&self.inner.first).take();
        first.unwrap_or_else(|| self.inner.notices.subscribe())
    }

    /// Looks at an instance soon.
    pub fn kick(&self, id: InstanceId) {
        let node = self.clone();
        self.inner.kicks.kick(id, move || {
            let node = node.clone();
            async move { node.settle_in(id).await }
        });
    }

    /// Ends whatever runs of an instance and gives back what the node holds for it: its network
    /// link, its rules, its name. Its directory stays. Idempotent; for a record that is being
    /// deleted, so that no pass starts it again.
    ///
    /// # Errors
    /// When something could not be taken away; calling again goes on.
    pub async fn end(&self, id: InstanceId) -> Result<(), NodeError> {
        let _turn = self.turn(id).await;
        self.stop_health(id);
        self.engine().remove(id).await.map_err(NodeError::Engine)?;
        self.inner.roots.close(id).await?;
        self.parts().wiring.detach(id).await?;
        Ok(())
    }

    /// Forgets what is kept in memory of an instance that is gone.
    pub fn forget(&self, id: InstanceId) {
        lock(&self.inner.locks).remove(&id);
        lock(&self.inner.written).remove(&id);
        lock(&self.inner.limits).remove(&id);
        self.inner.roots.forget(id);
    }

    /// Waits for one's turn with an instance: passes and operations never touch one at once.
    async fn turn(&self, id: InstanceId) -> OwnedMutexGuard<()> {
        let mutex = lock(&self.inner.locks).entry(id).or_default().clone();
        mutex.lock_owned().await
    }

    /// Takes back what an earlier run of the daemon left running, and removes what no record
    /// names. Answers the revision whose records it saw.
    async fn adopt(&self) -> Result<store::Revision, NodeError> {
        let listing = tables::INSTANCES.list(&self.parts().store).await?;
        let networks = tables::NETWORKS.list(&self.parts().store).await?;
        let records: HashMap<InstanceId, InstanceRecord> = listing
            .entries
            .into_iter()
            .map(|entry| (entry.value.id, entry.value))
            .collect();
        for network in networks.entries {
            if let Err(error) = self.parts().wiring.ensure_network(&network.value).await {
                tracing::error!(network = %network.value.name, error = %error.chain(), "network");
            }
        }
        let mut live = Vec::new();
        for seen in self.engine().list().await.map_err(NodeError::Engine)? {
            match records.get(&seen.id) {
                Some(record) if seen.pid.is_some() => live.push(record.clone()),
                Some(_) => {}
                None => {
                    tracing::warn!(id = %seen.id, "removing a guest that no record names");
                    if let Err(error) = self.engine().remove(seen.id).await {
                        tracing::error!(id = %seen.id, error = %error.chain(), "removing failed");
                    }
                }
            }
        }
        if let Err(error) = self.parts().wiring.adopt(&live).await {
            tracing::error!(error = %error.chain(), "taking back networks");
        }
        for id in records.keys() {
            self.kick(*id);
        }
        Ok(listing.revision)
    }

    fn follow_records(&self, from: store::Revision) {
        let node = self.clone();
        tokio::spawn(async move {
            let mut from = from;
            loop {
                match node.watch_records(from).await {
                    Ok(()) => return,
                    Err(revision) => from = revision,
                }
            }
        });
    }

    /// Kicks every instance whose record changes. Ends with `Ok` when the store is closed, with
    /// a revision to go on from after changes were missed.
    async fn watch_records(&self, from: store::Revision) -> Result<(), store::Revision> {
        let store = &self.parts().store;
        let watcher = store.watch(tables::INSTANCES.prefix(), from);
        if let Ok(mut watcher) = watcher {
            while let Ok(batch) = watcher.next().await {
                for event in batch.events {
                    let id = event.key.strip_prefix(tables::INSTANCES.prefix());
                    if let Some(id) = id.and_then(|id| id.parse().ok()) {
                        self.kick(id);
                    }
                }
            }
        }
        // Too slow, or closed: list all anew.
        let Ok(listing) = tables::INSTANCES.list(store).await else {
            return Ok(());
        };
        for entry in &listing.entries {
            self.kick(entry.value.id);
        }
        Err(listing.revision)
    }

    /// Asks again and again for what the kernel has no news of.
    fn follow_host(&self) {
        let node = self.clone();
        tokio::spawn(async move {
            let mut turn = tokio::time::interval(HOST_TURN);
            turn.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                turn.tick().await;
                if let Err(error) = node.parts().wiring.notice_host().await {
                    tracing::warn!(error = %error.chain(), "looking at the host's settings");
                }
            }
        });
    }

    fn follow_engine(&self, mut events: broadcast::Receiver<engine::Changed>) {
        let node = self.clone();
        tokio::spawn(async move {
            loop {
                match events.recv().await {
                    Ok(event) => node.kick(event.id),
                    Err(broadcast::error::RecvError::Closed) => return,
                    Err(broadcast::error::RecvError::Lagged(missed)) => {
                        tracing::warn!(missed, "engine events were missed; looking at everything");
                        let Ok(all) = tables::INSTANCES.list(&node.parts().store).await else {
                            return;
                        };
                        for entry in all.entries {
                            node.kick(entry.value.id);
                        }
                    }
                }
            }
        });
    }

    fn notify(&self, notice: Notice) {
        tracing::info!(
            instance = %notice.name, id = %notice.id, kind = notice.kind, "{}", notice.message
        );
        // Nobody listening is no error.
        let _ = self.inner.notices.send(notice);
    }
}

fn lock<T>(mutex: &std::sync::Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}
