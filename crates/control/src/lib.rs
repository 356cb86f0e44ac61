//! The meaning of the API: records, claims, operations, access.
//!
//! [`Control`] implements [`api::service::Service`]. A request is checked, becomes one transaction
//! (the record, what it claims, and the operation that acquires the rest), and is answered; what
//! follows is the workflow's and the node's. Control knows no engine, no socket and no route.
//!
//! | module | owns |
//! |---|---|
//! | `wire` | conversion between wire types and internal ones |
//! | `claims` | what only one instance may hold: names, addresses, ports, host ids |
//! | `instances` | create, change, power, wait, delete, streams |
//! | `operations` | the steps of operations |
//! | `images`, `networks`, `volumes`, `logins`, `tokens` | the other nouns |
//! | `events` | what happened, for who listens |
//! | `recover` | records rebuilt from directories |

#![forbid(unsafe_code)]

mod claims;
mod error;
mod events;
mod images;
mod instances;
mod logins;
mod networks;
mod operations;
mod ops;
pub mod recover;
mod service;
mod system;
mod tokens;
mod volumes;
mod wire;

use std::sync::Arc;

use engine::Engine;
use model::{InstanceStatus, Timestamp, record::InstanceRecord};
use node::{Node, cache::Cached, tables};
use store::Store;
use tokio::sync::RwLock;

pub use error::OpenError;

/// What control is made of.
pub struct Parts {
    /// The host.
    pub node: Node,
    /// Credentials and mirrors for registries.
    pub registries: image::RegistryConfig,
    /// What this daemon says of itself.
    pub identity: Identity,
}

/// What a daemon says of itself.
#[derive(Debug, Clone)]
pub struct Identity {
    /// Version of Berth.
    pub version: String,
    /// Prefix of its network interfaces and rules.
    pub prefix: String,
    /// `v2`, `v1` or `hybrid`.
    pub cgroups: String,
    /// What this host can and cannot do.
    pub checks: Vec<api::Check>,
    /// When it started.
    pub started_at: Timestamp,
}

/// The meaning of the API. Cheap to clone.
#[derive(Clone)]
pub struct Control {
    inner: Arc<Inner>,
}

struct Inner {
    node: Node,
    workflow: workflow::Engine,
    claims: claims::Claims,
    /// Held from looking which ports are free until they are claimed.
    ports: tokio::sync::Mutex<()>,
    events: events::Events,
    /// Passwords for operations under way; never stored.
    passwords: operations::Passwords,
    registries: Arc<operations::Registries>,
    /// Written by a garbage collection, read by whoever begins to use an image.
    collection: Arc<RwLock<()>>,
    identity: Identity,
    records: Cached<InstanceRecord>,
    statuses: Cached<InstanceStatus>,
    leaving: instances::Leaving,
}

impl Control {
    /// Takes up what an earlier run left: claims, unfinished operations, instances to remove.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn open(parts: Parts) -> Result<Self, OpenError> {
        let Parts {
            node,
            registries,
            identity,
        } = parts;
        let store = node.parts().store.clone();
        let passwords = operations::Passwords::default();
        let registries = Arc::new(operations::Registries::new(registries));
        let collection = Arc::new(RwLock::default());
        let workflow = operations::workflow(
            &store,
            &node,
            Arc::clone(&registries),
            passwords.clone(),
            Arc::clone(&collection),
        )?;
        let claims = claims::Claims::load(&store).await?;
        let control = Self {
            inner: Arc::new(Inner {
                node,
                workflow,
                claims,
                ports: tokio::sync::Mutex::default(),
                events: events::Events::default(),
                passwords,
                registries,
                collection,
                identity,
                records: Cached::new(&tables::INSTANCES),
                statuses: Cached::new(&tables::STATUSES),
                leaving: instances::Leaving::default(),
            }),
        };
        control.follow();
        let recovery = control.inner.workflow.recover().await?;
        for (key, reason) in &recovery.unreadable {
            tracing::error!(key, reason, "an operation cannot be read");
        }
        if !recovery.resumed.is_empty() {
            tracing::info!(
                count = recovery.resumed.len(),
                "going on with unfinished operations"
            );
        }
        control.reap_all().await;
        control.reap_abandoned().await;
        if let Err(problem) = control.sweep_uploads().await {
            tracing::error!(%problem, "left-over uploads");
        }
        Ok(control)
    }

    /// Stops between the steps of operations; the next start goes on with them.
    pub async fn shutdown(&self) {
        self.inner
            .workflow
            .shutdown(std::time::Duration::from_secs(2))
            .await;
    }

    fn node(&self) -> &Node {
        &self.inner.node
    }

    fn store(&self) -> &Store {
        &self.inner.node.parts().store
    }

    fn engine(&self) -> &dyn Engine {
        self.inner.node.engine()
    }

    fn workflow(&self) -> &workflow::Engine {
        &self.inner.workflow
    }

    fn images(&self) -> &image::Store {
        &self.inner.node.parts().images
    }
}
