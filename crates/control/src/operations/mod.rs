//! The steps of operations. Each is idempotent both ways; what they do outside the store is the
//! node's or the image store's.

mod create;
mod delete;
mod images;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use api::RegistryAuth;
use model::{InstanceId, operation::OperationKind};
use node::Node;
use serde::{Deserialize, Serialize};
use store::Store;
use tokio::sync::RwLock;
use workflow::{Definition, OnFailure};

pub(crate) use images::{
    BuildInput, ImportInput, PullInput, PushInput, Registries, local_reference, reference,
};

/// Builds at once: each is a whole Debian installation.
const BUILDS: usize = 2;
/// Pulls, pushes and imports at once.
const TRANSFERS: usize = 8;

/// What an operation on an instance is asked for.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct InstanceInput {
    /// The instance.
    pub(crate) id: InstanceId,
    /// Its name, for messages.
    pub(crate) name: String,
}

/// Passwords for operations under way, by a key in the operation's input. Never stored: after a
/// restart the operation goes on with what the daemon is configured with.
#[derive(Clone, Default)]
pub(crate) struct Passwords {
    held: Arc<Mutex<HashMap<u64, RegistryAuth>>>,
}

impl Passwords {
    /// Holds a password; the key to ask for it.
    pub(crate) fn hold(&self, auth: RegistryAuth) -> u64 {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (0..)
            .find(|key| !held.contains_key(key))
            .unwrap_or_default();
        held.insert(key, auth);
        key
    }

    fn get(&self, key: Option<u64>) -> Option<RegistryAuth> {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.get(&key?).cloned()
    }

    fn forget(&self, key: Option<u64>) {
        if let Some(key) = key {
            self.held
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .remove(&key);
        }
    }
}

/// The engine that knows every kind of operation.
pub(crate) fn workflow(
    store: &Store,
    node: &Node,
    registries: Arc<Registries>,
    passwords: Passwords,
    collection: Arc<RwLock<()>>,
) -> Result<workflow::Engine, workflow::BuildError> {
    let transfer = images::Transfer {
        node: node.clone(),
        registries,
        passwords,
        collection,
    };
    let create = Definition::new(OperationKind::InstanceCreate.as_str(), 1)
        .step(create::FindImage {
            transfer: transfer.clone(),
        })
        .step(create::MakeDirectory { node: node.clone() })
        .step(create::MakeMachine { node: node.clone() })
        .finish(create::Ready { node: node.clone() });
    let delete = Definition::new(OperationKind::InstanceDelete.as_str(), 1)
        .on_failure(OnFailure::Stop)
        .step(delete::EndGuest { node: node.clone() })
        .step(delete::RemoveDirectory { node: node.clone() })
        .finish(delete::Gone { node: node.clone() });
    let image = |kind: OperationKind| {
        Definition::new(kind.as_str(), 1)
            .on_failure(OnFailure::Stop)
            .limit(TRANSFERS)
    };
    workflow::Engine::builder(store.clone())
        .register(create)
        .register(delete)
        .register(image(OperationKind::ImagePull).step(images::Pull(transfer.clone())))
        .register(image(OperationKind::ImagePush).step(images::Push(transfer.clone())))
        .register(image(OperationKind::ImageImport).step(images::Import(transfer.clone())))
        .register(
            image(OperationKind::ImageBuild)
                .limit(BUILDS)
                .step(images::Build(transfer)),
        )
        .build()
}
