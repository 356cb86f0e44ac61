//! What a machine is made of, as whoever starts `berth-vmm` writes it down.
//!
//! JSON in a file, version 1. Fields may be added with a default; unknown ones are refused, since a
//! machine that silently lacks what was asked for is worse than none. Paths are opened before the
//! process locks itself up.

use std::path::PathBuf;

use devices::virtio::Limits as Rate;
use serde::{Deserialize, Serialize};

use crate::control::protocol::Limits;

/// The version of [`VmConfig`] that this code reads.
pub const CONFIG_VERSION: u32 = 1;
/// The largest configuration that is read, in bytes.
pub const MAX_CONFIG: u64 = 1 << 20;
/// More than the APIC ids of one byte give; 255 is for all.
pub const MAX_VCPUS: u32 = 254;
/// Most disks, network cards and shares of a machine, each.
pub const MAX_DEVICES: usize = 16;
/// Less than virtio-fs allows: threads are named after tags.
const MAX_TAG: usize = 24;
const MIN_MEMORY: u64 = 32 << 20;
const MAX_MEMORY: u64 = 1 << 40;

/// A machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmConfig {
    /// [`CONFIG_VERSION`] of who wrote it.
    pub version: u32,
    /// Name, for messages and the process list.
    pub name: String,
    /// Size of RAM, a multiple of 4096.
    pub memory_bytes: u64,
    /// How many vCPUs.
    pub vcpus: u32,
    /// What executes them.
    #[serde(default)]
    pub accel: Accel,
    /// Number of a descriptor of `/dev/kvm` that whoever started the process left open for it, for KVM
    /// where the device itself cannot be seen or opened.
    #[serde(default)]
    pub kvm_descriptor: Option<i32>,
    /// Which instructions they show.
    #[serde(default)]
    pub cpu: CpuLevel,
    /// bzImage or vmlinux.
    pub kernel: PathBuf,
    /// Pieces of the initial RAM file system, in order.
    #[serde(default)]
    pub initrd: Vec<PathBuf>,
    /// The kernel's command line.
    #[serde(default)]
    pub command_line: String,
    /// Disks, in the order the guest sees them.
    #[serde(default)]
    pub disks: Vec<DiskConfig>,
    /// Network interfaces, likewise.
    #[serde(default)]
    pub nets: Vec<NetConfig>,
    /// The socket to and from the host.
    #[serde(default)]
    pub vsock: Option<VsockConfig>,
    /// Folders of the host.
    #[serde(default)]
    pub shares: Vec<ShareConfig>,
    /// Where the serial console goes.
    #[serde(default)]
    pub console: ConsoleConfig,
    /// Whether there is a device for random numbers.
    #[serde(default = "yes")]
    pub rng: bool,
    /// Whether there is a balloon.
    #[serde(default)]
    pub balloon: bool,
    /// For each vCPU the CPUs of the host it may run on; empty or missing for all.
    #[serde(default)]
    pub pinning: Vec<Vec<u32>>,
    /// Unix socket to make for [`crate::control`].
    #[serde(default)]
    pub control: Option<PathBuf>,
    /// File to write when the machine is over: [`crate::exit::ExitRecord`].
    #[serde(default)]
    pub exit_record: Option<PathBuf>,
    /// What standard input and output of the process are.
    #[serde(default)]
    pub stdio: Stdio,
    /// As whom the machine runs once it is locked up.
    #[serde(default)]
    pub jail: JailConfig,
}

/// What standard input and output of the process are; see [`crate::front`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stdio {
    /// Nothing: it is spoken to over its sockets.
    #[default]
    None,
    /// The console, which needs [`ConsoleConfig::socket`].
    Console,
    /// Those of this program, run by the agent in the guest, whose exit code becomes the process's;
    /// needs a vsock.
    Program(agent::protocol::Program),
}

/// What executes vCPUs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accel {
    /// KVM where a probe shows that it runs Linux, else the software CPU.
    #[default]
    Auto,
    /// KVM.
    Kvm,
    /// The software CPU.
    Soft,
}

/// Which instructions vCPUs show: the x86-64 psABI's levels.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CpuLevel {
    /// SSE2.
    V1,
    /// Up to SSE4.2 and POPCNT.
    V2,
    /// Up to AVX2, BMI and FMA.
    V3,
    /// All that this host and the backend have.
    #[default]
    Host,
}

/// A disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskConfig {
    /// Its serial number for the guest, at most 20 bytes.
    pub id: String,
    /// A raw image or a block device.
    pub path: PathBuf,
    /// Whether writes are refused.
    #[serde(default)]
    pub read_only: bool,
    /// How much the guest may read from it.
    #[serde(default)]
    pub read_rate: Rate,
    /// How much the guest may write to it.
    #[serde(default)]
    pub write_rate: Rate,
}

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetConfig {
    /// The tap device it is attached to, made by whoever starts the machine.
    #[serde(default)]
    pub tap: Option<String>,
    /// In its place, an interface whose frames are the guest's.
    #[serde(default)]
    pub interface: Option<String>,
    /// Its address.
    pub mac: [u8; 6],
    /// Largest packet.
    #[serde(default)]
    pub mtu: Option<u16>,
    /// How much the guest may receive.
    #[serde(default)]
    pub receive_rate: Rate,
    /// How much the guest may send.
    #[serde(default)]
    pub transmit_rate: Rate,
}

impl NetConfig {
    /// What it is attached to, by name.
    #[must_use]
    pub fn label(&self) -> &str {
        let name = self.tap.as_ref().or(self.interface.as_ref());
        name.map_or("", String::as_str)
    }
}

/// A folder of the host that the guest can mount (virtio-fs).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShareConfig {
    /// What the guest mounts it by, 1 to 24 bytes.
    pub tag: String,
    /// The folder.
    pub path: PathBuf,
    /// Whether changes are refused.
    #[serde(default)]
    pub read_only: bool,
    /// How much the guest may read from its files.
    #[serde(default)]
    pub read_rate: Rate,
    /// How much the guest may write to them.
    #[serde(default)]
    pub write_rate: Rate,
}

/// The socket to and from the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VsockConfig {
    /// The guest's context id, 3 or more.
    pub cid: u32,
    /// Unix socket for the host's side: programs connect to it and name a port; what the guest
    /// connects to is the socket with `_PORT` after its name.
    pub socket: PathBuf,
}

/// Where the serial console goes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ConsoleConfig {
    /// Unix socket to make for [`crate::console`].
    pub socket: Option<PathBuf>,
    /// File that keeps all output.
    pub log: Option<PathBuf>,
    /// Its size when it is put aside, as `NAME.1`; 0 for 1 MiB.
    pub log_bytes: u64,
}

/// As whom the machine runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct JailConfig {
    /// User; one per machine, so that machines cannot touch each other. 0 keeps the user that
    /// started it.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

fn yes() -> bool {
    true
}

/// Why there is no machine like this.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It is not JSON, or has other fields.
    #[error("the configuration cannot be read")]
    Json(#[from] serde_json::Error),
    /// It is of another version.
    #[error("the configuration has version {0}, and this berth-vmm reads version {CONFIG_VERSION}")]
    Version(u32),
    /// A value makes no sense.
    #[error("{field}: {reason}")]
    Field {
        /// Which.
        field: &'static str,
        /// Why.
        reason: String,
    },
}

impl VmConfig {
    /// Reads and checks a configuration.
    ///
    /// # Errors
    /// When it is none, or one that cannot be.
    pub fn parse(json: &[u8]) -> Result<Self, ConfigError> {
        let config: Self = serde_json::from_slice(json)?;
        config.check()?;
        Ok(config)
    }

    /// Takes over limits that were changed while it ran, for the next boot. The balloon's is none: the
    /// guest that lent the memory is gone.
    pub fn set_limits(&mut self, limits: &Limits) {
        for disk in &mut self.disks {
            if let Some(limit) = limits.disks.iter().find(|it| it.id == disk.id) {
                (disk.read_rate, disk.write_rate) = (limit.read, limit.write);
            }
        }
        for share in &mut self.shares {
            if let Some(limit) = limits.shares.iter().find(|it| it.id == share.tag) {
                (share.read_rate, share.write_rate) = (limit.read, limit.write);
            }
        }
        for net in &mut self.nets {
            if let Some(limit) = limits.nets.iter().find(|it| it.id == net.label()) {
                (net.receive_rate, net.transmit_rate) = (limit.receive, limit.transmit);
            }
        }
        if let Some(pinning) = &limits.pinning {
            self.pinning.clone_from(pinning);
        }
    }

    /// Checks that the numbers make sense.
    ///
    /// # Errors
    /// The first that does not.
    pub fn check(&self) -> Result<(), ConfigError> {
        if self.version != CONFIG_VERSION {
            return Err(ConfigError::Version(self.version));
        }
        let field = |field, reason: String| Err(ConfigError::Field { field, reason });
        if !(1..=MAX_VCPUS).contains(&self.vcpus) {
            return field("vcpus", format!("{}; give 1 to {MAX_VCPUS}", self.vcpus));
        }
        if !(MIN_MEMORY..=MAX_MEMORY).contains(&self.memory_bytes)
            || !self.memory_bytes.is_multiple_of(memory::PAGE_BYTES)
        {
            let reason = "give a multiple of 4 KiB, from 32 MiB to 1 TiB";
            return field("memory_bytes", format!("{}; {reason}", self.memory_bytes));
        }
        let most = [self.disks.len(), self.nets.len(), self.shares.len()];
        if most.iter().any(|it| *it > MAX_DEVICES) {
            return field(
                "disks, nets, shares",
                format!("more than {MAX_DEVICES} of one kind"),
            );
        }
        if let Some(share) = self
            .shares
            .iter()
            .find(|it| !(1..=MAX_TAG).contains(&it.tag.len()))
        {
            let reason = format!("the tag {:?} is not of 1 to {MAX_TAG} bytes", share.tag);
            return field("shares", reason);
        }
        if let Some(disk) = self.disks.iter().find(|it| it.id.len() > 20) {
            return field(
                "disks",
                format!("the id {:?} is longer than 20 bytes", disk.id),
            );
        }
        if let Some(net) = self
            .nets
            .iter()
            .find(|it| it.tap.is_some() == it.interface.is_some())
        {
            let reason = format!("{net:?}; name either a tap or an interface");
            return field("nets", reason);
        }
        match &self.stdio {
            Stdio::Console if self.console.socket.is_none() => {
                return field("stdio", "the console needs console.socket".into());
            }
            Stdio::Program(_) if self.vsock.is_none() => {
                return field(
                    "stdio",
                    "a program is reached by vsock, which is missing".into(),
                );
            }
            _ => {}
        }
        if self.vsock.as_ref().is_some_and(|it| it.cid < 3) {
            return field(
                "vsock",
                "context ids below 3 are taken; give 3 or more".into(),
            );
        }
        if self.pinning.len() > self.vcpus as usize {
            return field("pinning", "it has more entries than there are vCPUs".into());
        }
        Ok(())
    }
}
