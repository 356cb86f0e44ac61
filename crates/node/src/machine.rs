//! What a virtual machine is made of, looked up: kernel, disks, network interface.
//!
//! The kernel is shared and belongs to the image store, as does the disk that those of instances are
//! copies of; an instance's own disk lies in its directory. Making them is for the operation that creates an
//! instance; when a record is resolved they are only looked up.

use std::net::IpAddr;

use engine::{Customization, GuestMachine, Interface};
use image::{
    Job,
    vm::{Kernel, KernelRecipe, copy_disk},
};
use ipnetwork::IpNetwork;
use model::{
    ByteSize,
    record::{InstanceRecord, NetworkRecord},
};

use crate::{
    Node, NodeError, directory, gateways, resolve::image_digest, tables, wiring::prefix_of,
};

/// Size of a root disk unless said otherwise. It takes only what is written to it.
const DEFAULT_DISK: ByteSize = ByteSize(10 << 30);

impl Node {
    /// The virtual machine of a record; `None` when it is a container.
    pub(crate) async fn machine(
        &self,
        record: &InstanceRecord,
    ) -> Result<Option<GuestMachine>, NodeError> {
        let Some(asked) = &record.spec.machine else {
            return Ok(None);
        };
        let parts = self.parts();
        let kernel = self.kernel(Job::silent()).await?;
        Ok(Some(GuestMachine {
            vcpus: record.spec.vcpus(),
            memory_bytes: record.spec.machine_memory().0,
            accel: asked.accel,
            kernel: asked
                .kernel
                .as_ref()
                .map_or(kernel.vmlinux.unwrap_or(kernel.vmlinuz), Into::into),
            initrd: asked.initrd.as_ref().map_or(kernel.initramfs, Into::into),
            append: asked.append.clone().unwrap_or_default(),
            disk: directory::disk(&parts.paths.instance(record.id)),
            interface: self.interface(record).await?,
            seed: asked.is_customized().then(|| Customization {
                user_data: asked.user_data.clone(),
                ssh_keys: asked.ssh_keys.clone(),
                ssh_user: asked.ssh_user.clone(),
            }),
        }))
    }

    /// The kernel machines boot: as made before, else made now.
    ///
    /// # Errors
    /// When it cannot be made; the store is then as before.
    pub async fn kernel(&self, job: Job) -> Result<Kernel, NodeError> {
        let (images, agent) = (self.parts().images.clone(), self.parts().agent.clone());
        let made = tokio::task::spawn_blocking(move || {
            images.build_kernel(&KernelRecipe::default(), &agent, false, &job)
        });
        joined(made.await).map_err(NodeError::Kernel)
    }

    /// Makes the root disk of a record: a copy of its image's, as large as asked for. One that is
    /// there already stays.
    ///
    /// # Errors
    /// When it cannot be made; nothing of it remains.
    pub async fn make_disk(&self, record: &InstanceRecord, job: Job) -> Result<(), NodeError> {
        let images = self.parts().images.clone();
        let digest = image_digest(record)?;
        let path = directory::disk(&self.parts().paths.instance(record.id));
        let asked = record.spec.root_size.unwrap_or(DEFAULT_DISK).0;
        let made = tokio::task::spawn_blocking(move || {
            if path.exists() {
                return Ok(());
            }
            let base = images.root_disk(&digest, &job).map_err(NodeError::Disk)?;
            let fresh = path.with_extension("new");
            // What an attempt that was cut off left there.
            let _ = std::fs::remove_file(&fresh);
            let bytes = asked.next_multiple_of(1 << 20);
            copy_disk(&base, &fresh, bytes).map_err(NodeError::Disk)?;
            std::fs::rename(&fresh, &path).map_err(NodeError::file("make", &path))
        });
        joined(made.await)
    }

    async fn interface(&self, record: &InstanceRecord) -> Result<Option<Interface>, NodeError> {
        let Some(lease) = &record.lease else {
            return Ok(None);
        };
        let parts = self.parts();
        let network = tables::NETWORKS
            .get(&parts.store, lease.network.as_str())
            .await?;
        let Some(network) = network.map(|entry| entry.value) else {
            return Ok(None);
        };
        Ok(Some(Interface {
            mac: lease.mac,
            mtu: network.spec.mtu,
            addresses: with_prefixes(&network, &lease.addresses),
            nameservers: gateways(&network),
            gateways: match network.spec.outside {
                model::network::Outside::Isolated => Vec::new(),
                model::network::Outside::Nat => gateways(&network),
            },
        }))
    }
}

fn joined<T>(result: Result<T, tokio::task::JoinError>) -> T {
    result.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
}

fn with_prefixes(network: &NetworkRecord, addresses: &[IpAddr]) -> Vec<IpNetwork> {
    addresses
        .iter()
        .filter_map(|address| IpNetwork::new(*address, prefix_of(network, address)).ok())
        .collect()
}
