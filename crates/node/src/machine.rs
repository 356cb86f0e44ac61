//! What a virtual machine is made of, looked up: kernel, disks, network interface.
//!
//! The kernel is shared and belongs to the image store, as does the disk that those of instances are
//! copies of; an instance's own disk lies in its directory. Making them is for the operation that creates an
//! instance; when a record is resolved they are only looked up.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
};

use engine::{Customization, GuestMachine, Interface, KernelModules, OwnBoot};
use image::{
    Job,
    vm::{Kernel, KernelRecipe, copy_disk},
};
use ipnetwork::IpNetwork;
use model::{
    ByteSize, InstanceSpec,
    instance::{Kind, MachineSpec},
    record::{InstanceRecord, NetworkRecord},
};

use crate::{
    Node, NodeError, directory, gateways, resolve::image_digest, tables, wiring::prefix_of,
};

/// Size of a root disk unless said otherwise. It takes only what is written to it.
const DEFAULT_DISK: ByteSize = ByteSize(10 << 30);

/// What a system runs where nothing else is named.
pub(crate) const USUAL_INIT: &str = "/sbin/init";
/// Where images have their init: where the agent in the guest looks (`berth-agent`), and where links of
/// merged directories lead, for a layer may hold only one of the two.
const INITS: [&str; 7] = [
    "sbin/init",
    "usr/sbin/init",
    "lib/systemd/systemd",
    "usr/lib/systemd/systemd",
    "etc/init",
    "bin/init",
    "usr/bin/init",
];

/// Refuses a system whose image has none: its guest would come up, find nothing to run, and go down again
/// at each attempt. `program` is what the image or the user names: a path is taken at its word, a bare word
/// is the program of an application. A kernel or an initial file system of the user's own may know another
/// way. Not for a disk that boots by itself.
pub(crate) fn check_init(
    spec: &InstanceSpec,
    program: Option<&str>,
    layers: &[PathBuf],
) -> Result<(), NodeError> {
    let ours = |it: &MachineSpec| it.kernel.is_none() && it.initrd.is_none();
    let named = program.is_some_and(|it| it.starts_with('/') && it != USUAL_INIT);
    let looked_for = spec.kind == Kind::System && spec.machine.as_ref().is_some_and(ours) && !named;
    if !looked_for || layers.iter().any(|layer| has_init(layer)) {
        return Ok(());
    }
    Err(NodeError::Unusable(format!(
        "the image {:?} has no init: it holds an application, not a system; use `berth run --vm`, or an \
         image with systemd or busybox init",
        spec.image
    )))
}

fn has_init(layer: &Path) -> bool {
    INITS
        .iter()
        .any(|path| layer.join(path).symlink_metadata().is_ok())
}

/// What a machine boots.
struct Boot {
    kernel: PathBuf,
    initrd: Option<PathBuf>,
    modules: Option<KernelModules>,
    own: Option<OwnBoot>,
}

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
        let boot = self.boot(record).await?;
        let own = |path: &Option<String>| path.as_ref().map(PathBuf::from);
        let is_system = record.spec.kind == Kind::System;
        // A guest that boots by itself is told by its seed who it is.
        let seeded = asked.is_customized() || boot.own.is_some();
        Ok(Some(GuestMachine {
            vcpus: record.spec.vcpus(),
            memory_bytes: record.spec.machine_memory().0,
            accel: asked.accel,
            kernel: own(&asked.kernel).unwrap_or(boot.kernel),
            initrd: own(&asked.initrd).or(boot.initrd),
            append: asked.append.clone().unwrap_or_default(),
            disk: directory::disk(&parts.paths.instance(record.id)),
            own_boot: boot.own,
            // A program finds loaded what it needs; a kernel of the user's has others.
            modules: boot.modules.filter(|_| is_system && asked.kernel.is_none()),
            interface: self.interface(record).await?,
            seed: seeded.then(|| Customization {
                user_data: asked.user_data.clone(),
                ssh_keys: asked.ssh_keys.clone(),
                ssh_user: asked.ssh_user.clone(),
            }),
        }))
    }

    /// What a machine boots: its disk's own kernel, or ours.
    async fn boot(&self, record: &InstanceRecord) -> Result<Boot, NodeError> {
        let (images, digest) = (self.parts().images.clone(), image_digest(record)?);
        let found = tokio::task::spawn_blocking(move || own_boot(&images, &digest));
        Ok(match joined(found.await)? {
            Some(disk) => Boot {
                kernel: disk.kernel,
                initrd: disk.initrd,
                modules: None,
                own: Some(OwnBoot {
                    command_line: disk.command_line,
                    agent: self.parts().agent.clone(),
                }),
            },
            None => {
                let kernel = self.kernel(Job::silent()).await?;
                let target = kernel.modules_target();
                Boot {
                    modules: kernel.modules.map(|disk| KernelModules { disk, target }),
                    kernel: kernel.vmlinux.unwrap_or(kernel.vmlinuz),
                    initrd: Some(kernel.initramfs),
                    own: None,
                }
            }
        })
    }

    /// Refuses an image that cannot be what a record asks for, and makes the kernel of one that can.
    ///
    /// # Errors
    /// [`NodeError::Unusable`], or that there is no kernel.
    pub async fn prepare_boot(&self, record: &InstanceRecord, job: Job) -> Result<(), NodeError> {
        let (images, digest) = (self.parts().images.clone(), image_digest(record)?);
        let failed = |source| NodeError::Image {
            image: record.spec.image.clone(),
            source,
        };
        if images.is_machine_image(&digest).map_err(failed)? {
            return check_machine_image(&record.spec);
        }
        match record.spec.machine {
            Some(_) => self.kernel(job).await.map(drop),
            None => Ok(()),
        }
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

    /// Makes all that the machines of an image share: the kernel with the agent, and the disk that theirs
    /// are copies of.
    ///
    /// # Errors
    /// When one cannot be made; the other may be there.
    pub async fn prepare_machine(&self, image: image::Digest, job: Job) -> Result<(), NodeError> {
        self.kernel(job.clone()).await?;
        let images = self.parts().images.clone();
        let made = tokio::task::spawn_blocking(move || images.root_disk(&image, &job));
        joined(made.await).map(drop).map_err(NodeError::Disk)
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
        let asked = record.spec.root_size.map(|size| size.0);
        let made = tokio::task::spawn_blocking(move || {
            if path.exists() {
                return Ok(());
            }
            let base = images.root_disk(&digest, &job).map_err(NodeError::Disk)?;
            let fresh = path.with_extension("new");
            // What an attempt that was cut off left there.
            let _ = std::fs::remove_file(&fresh);
            let bytes = asked.unwrap_or(DEFAULT_DISK.0.max(base.bytes));
            let bytes = bytes.next_multiple_of(1 << 20);
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

/// What an image boots by itself; taken out of its disk again where a collection removed it.
fn own_boot(
    images: &image::Store,
    digest: &image::Digest,
) -> Result<Option<image::vm::OwnBoot>, NodeError> {
    let failed = |error: image::StoreError| NodeError::Disk(error.into());
    if let Some(boot) = images.own_boot(digest).map_err(failed)? {
        return Ok(Some(boot));
    }
    if !images.is_machine_image(digest).map_err(failed)? {
        return Ok(None);
    }
    let disk = images.root_disk(digest, &Job::silent());
    Ok(disk.map_err(NodeError::Disk)?.boot)
}

/// A disk with a kernel of its own is a whole machine, and nothing else.
fn check_machine_image(spec: &InstanceSpec) -> Result<(), NodeError> {
    let image = &spec.image;
    let unusable = |text: String| Err(NodeError::Unusable(text));
    if spec.machine.is_none() {
        return unusable(format!(
            "{image} is the disk of a virtual machine; add --vm: berth launch --vm {image}"
        ));
    }
    if spec.kind == Kind::Application {
        return unusable(format!(
            "{image} is the disk of a virtual machine, which starts its own init and no command; \
             launch it: berth launch --vm {image}"
        ));
    }
    Ok(())
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
