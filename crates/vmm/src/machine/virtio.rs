//! The virtio devices of a machine, as its configuration lists them.

use std::{fs::File, io, path::Path, sync::Arc};

use devices::{
    Interrupts,
    pci::PciBus,
    virtio::{
        Host, VirtioDevice,
        balloon::{Balloon, BalloonControl},
        block::{Block, BlockControl, BlockOptions, FileDisk},
        entropy::Entropy,
        fs::{Folder, Fs, FsControl},
        net::{Net, NetControl, NetOptions, Port},
        pci::VirtioPci,
        vsock::{UnixDialer, Vsock, VsockOptions},
    },
};
use memory::Ram;

use super::MachineError;
use crate::{
    VmConfig,
    control::protocol::{DiskLimits, NetLimits},
    shares::Shares,
};

/// What they are plugged into.
pub(super) struct Slots<'a> {
    pub(super) pci: &'a PciBus,
    pub(super) ram: &'a Ram,
    pub(super) interrupts: Arc<dyn Interrupts>,
    pub(super) host: Host,
}

/// All virtio devices, and what steers them.
#[derive(Default)]
pub(super) struct Virtio {
    functions: Vec<Arc<VirtioPci>>,
    disks: Vec<(String, BlockControl)>,
    shares: Vec<(String, FsControl)>,
    nets: Vec<(String, NetControl)>,
    balloon: Option<BalloonControl>,
}

impl Virtio {
    /// Holds all devices still.
    pub(super) fn pause(&self) {
        self.functions.iter().for_each(|it| it.pause());
    }

    /// Lets them go on.
    pub(super) fn resume(&self) {
        self.functions.iter().for_each(|it| it.resume());
    }

    pub(super) fn add_disk(
        &mut self,
        slots: &Slots<'_>,
        config: &crate::config::DiskConfig,
        queues: u32,
        file: File,
    ) -> Result<(), MachineError> {
        let make = || -> io::Result<Block> {
            let options = BlockOptions {
                label: config.id.clone(),
                serial: config.id.clone(),
                read_only: config.read_only,
                queues: u16::try_from(queues).unwrap_or(u16::MAX),
                read_limits: config.read_rate,
                write_limits: config.write_rate,
                ring: true,
            };
            Block::new(Arc::new(FileDisk::new(file)?), &options, &slots.host)
        };
        let block = make().map_err(failed("make a disk"))?;
        self.disks.push((config.id.clone(), block.control()));
        self.plug(slots, &config.id, Box::new(block))
    }

    pub(super) fn add_net(
        &mut self,
        slots: &Slots<'_>,
        config: &crate::config::NetConfig,
        port: Port,
    ) -> Result<(), MachineError> {
        let label = config.label().to_owned();
        let make = || -> io::Result<Net> {
            let options = NetOptions {
                label: label.clone(),
                mac: config.mac,
                mtu: config.mtu,
                receive_limits: config.receive_rate,
                transmit_limits: config.transmit_rate,
            };
            Net::new(vec![port], &options, &slots.host)
        };
        let net = make().map_err(failed("make a network card"))?;
        self.nets.push((label.clone(), net.control()));
        self.plug(slots, &label, Box::new(net))
    }

    /// `prefix`: the path that names of sockets the guest connects to begin with.
    pub(super) fn add_vsock(
        &mut self,
        slots: &Slots<'_>,
        cid: u32,
        listener: Option<std::os::unix::net::UnixListener>,
        prefix: &Path,
    ) -> Result<(), MachineError> {
        let options = VsockOptions {
            guest_cid: u64::from(cid),
            listener,
            dial: Box::new(UnixDialer::new(prefix)),
        };
        let vsock = Vsock::new(options, &slots.host).map_err(failed("make a vsock"))?;
        self.plug(slots, "vsock", Box::new(vsock))
    }

    pub(super) fn add_share(
        &mut self,
        slots: &Slots<'_>,
        config: &crate::config::ShareConfig,
        folder: Folder,
    ) -> Result<(), MachineError> {
        let tag = &config.tag;
        let fs = Fs::new(tag, folder, &slots.host).map_err(failed("share a folder"))?;
        fs.control().set_limits(config.read_rate, config.write_rate);
        self.shares.push((tag.clone(), fs.control()));
        self.plug(slots, tag, Box::new(fs))
    }

    pub(super) fn add_entropy(&mut self, slots: &Slots<'_>) -> Result<(), MachineError> {
        let entropy = Entropy::new(&slots.host).map_err(failed("make a source of entropy"))?;
        self.plug(slots, "entropy", Box::new(entropy))
    }

    pub(super) fn add_balloon(&mut self, slots: &Slots<'_>) -> Result<(), MachineError> {
        let balloon = Balloon::new(&slots.host).map_err(failed("make a balloon"))?;
        self.balloon = Some(balloon.control());
        self.plug(slots, "balloon", Box::new(balloon))
    }

    /// The balloon, if there is one.
    pub(super) fn balloon(&self) -> Option<&BalloonControl> {
        self.balloon.as_ref()
    }

    fn plug(
        &mut self,
        slots: &Slots<'_>,
        label: &str,
        device: Box<dyn VirtioDevice>,
    ) -> Result<(), MachineError> {
        let memory = slots.ram.guest_memory().clone();
        let interrupts = Arc::clone(&slots.interrupts);
        let function = VirtioPci::new(label, device, memory, interrupts, slots.host.clone())
            .map_err(failed("make a PCI function"))?;
        let function = Arc::new(function);
        slots.pci.add(None, Arc::clone(&function) as _)?;
        self.functions.push(function);
        Ok(())
    }

    /// Changes the limits of a disk; `false` if there is none of this id.
    pub(super) fn limit_disk(&self, limit: &DiskLimits) -> bool {
        let found = self.disks.iter().find(|(id, _)| *id == limit.id);
        found
            .inspect(|(_, disk)| disk.set_limits(limit.read, limit.write))
            .is_some()
    }

    /// Changes the limits of a folder; `false` if there is none of this tag.
    pub(super) fn limit_share(&self, limit: &DiskLimits) -> bool {
        let found = self.shares.iter().find(|(tag, _)| *tag == limit.id);
        found
            .inspect(|(_, share)| share.set_limits(limit.read, limit.write))
            .is_some()
    }

    /// Changes the limits of a network card; `false` if there is none of this name.
    pub(super) fn limit_net(&self, limit: &NetLimits) -> bool {
        let found = self.nets.iter().find(|(id, _)| *id == limit.id);
        found
            .inspect(|(_, net)| net.set_limits(limit.receive, limit.transmit))
            .is_some()
    }

    /// The limits of all disks.
    pub(super) fn disk_limits(&self) -> Vec<DiskLimits> {
        let limits = self.disks.iter().map(|(id, disk)| {
            let (read, write) = disk.limits();
            let id = id.clone();
            DiskLimits { id, read, write }
        });
        limits.collect()
    }

    /// The limits of all folders.
    pub(super) fn share_limits(&self) -> Vec<DiskLimits> {
        let limits = self.shares.iter().map(|(tag, share)| {
            let (read, write) = share.limits();
            let id = tag.clone();
            DiskLimits { id, read, write }
        });
        limits.collect()
    }

    /// The limits of all network cards.
    pub(super) fn net_limits(&self) -> Vec<NetLimits> {
        let limits = self.nets.iter().map(|(id, net)| {
            let (receive, transmit) = net.limits();
            NetLimits {
                id: id.clone(),
                receive,
                transmit,
            }
        });
        limits.collect()
    }
}

fn failed(what: &'static str) -> impl Fn(io::Error) -> MachineError {
    move |source| MachineError::System { what, source }
}

/// Makes all devices of `config` that are on the PCI bus, in the order of their kinds.
pub(super) fn build(
    slots: &Slots<'_>,
    config: &VmConfig,
    files: (Vec<File>, Vec<Port>, Shares),
    vsock: (Option<std::os::unix::net::UnixListener>, &Path),
) -> Result<Virtio, MachineError> {
    let mut virtio = Virtio::default();
    for (disk, file) in config.disks.iter().zip(files.0) {
        virtio.add_disk(slots, disk, config.vcpus, file)?;
    }
    for (net, tap) in config.nets.iter().zip(files.1) {
        virtio.add_net(slots, net, tap)?;
    }
    let shares = files.2.serve().map_err(failed("share folders"))?;
    for (config, folder) in shares {
        virtio.add_share(slots, &config, folder)?;
    }
    if let Some(config) = &config.vsock {
        virtio.add_vsock(slots, config.cid, vsock.0, vsock.1)?;
    }
    if config.rng {
        virtio.add_entropy(slots)?;
    }
    if config.balloon {
        virtio.add_balloon(slots)?;
    }
    Ok(virtio)
}
