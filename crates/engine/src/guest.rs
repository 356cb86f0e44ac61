//! A guest as an engine is handed it: nothing left to look up.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    path::{Path, PathBuf},
};

use ipnetwork::IpNetwork;
use model::{
    InstanceId,
    instance::{Accel, Limits, LogSpec, Ulimit},
    record::IdMap,
};

/// The root file system: image layers that many guests share, and this guest's own changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Root {
    /// Image layers as directories, topmost first; never written to.
    pub layers: Vec<PathBuf>,
    /// Directory of the guest's own changes.
    pub upper: PathBuf,
    /// Scratch directory of the overlay, on the same file system as `upper`.
    pub work: PathBuf,
    /// Whether the guest may only read it.
    pub read_only: bool,
}

/// A program.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GuestProcess {
    /// The program and its arguments; never empty.
    pub args: Vec<String>,
    /// `KEY=value`.
    pub env: Vec<String>,
    /// `user[:group]` by name or number, looked up in the guest's own files; root when `None`.
    pub user: Option<String>,
    /// Absolute path inside.
    pub cwd: String,
    /// Whether it gets a terminal.
    pub terminal: bool,
    /// Whether standard input stays open.
    pub stdin: bool,
    /// Size of the terminal: rows, columns.
    pub size: Option<(u16, u16)>,
}

/// What a mount shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MountKind {
    /// A file or directory of the host.
    Bind {
        /// Absolute path on the host.
        source: PathBuf,
    },
    /// Memory.
    Tmpfs {
        /// Most it may hold.
        size_bytes: Option<u64>,
    },
}

/// Something mounted inside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestMount {
    /// What it shows.
    pub kind: MountKind,
    /// Absolute path inside.
    pub target: String,
    /// Whether the guest may only read.
    pub read_only: bool,
    /// Whether ids on disk are the guest's own and so are mapped with the guest's user
    /// namespace, as for volumes; a bind of a host path keeps the host's ids when `false`.
    pub id_mapped: bool,
}

/// A device of the host made visible inside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestDevice {
    /// Absolute path on the host.
    pub host_path: PathBuf,
    /// Absolute path inside.
    pub path: String,
    /// Any of `r`, `w`, `m`.
    pub permissions: String,
}

/// Which network namespace a guest gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum GuestNetwork {
    /// One of its own; others attach interfaces to it.
    Own,
    /// The host's.
    Host,
}

/// The network interface of a virtual machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// Hardware address inside.
    pub mac: [u8; 6],
    /// Largest packet in bytes.
    pub mtu: Option<u32>,
    /// Addresses inside, each with the subnet's length.
    pub addresses: Vec<IpNetwork>,
    /// Default routes inside, at most one of each family.
    pub gateways: Vec<IpAddr>,
    /// Servers for names.
    pub nameservers: Vec<IpAddr>,
}

/// What the guest of a virtual machine is given at its first boot.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Customization {
    /// User data for cloud-init.
    pub user_data: Option<String>,
    /// Public keys that log in by SSH, each a line.
    pub ssh_keys: Vec<String>,
    /// Whom the keys log in.
    pub ssh_user: Option<String>,
}

/// How a disk with its own kernel and initial file system boots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnBoot {
    /// What its kernel is told.
    pub command_line: String,
    /// The agent's program, which then waits beside the guest's own init.
    pub agent: PathBuf,
}

/// What makes a guest a virtual machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestMachine {
    /// Virtual processors.
    pub vcpus: u32,
    /// Memory; a multiple of 1 MiB.
    pub memory_bytes: u64,
    /// What executes its code.
    pub accel: Accel,
    /// The kernel.
    pub kernel: PathBuf,
    /// Its initial file system; only a disk that boots by itself may do without.
    pub initrd: Option<PathBuf>,
    /// Added to the kernel's command line.
    pub append: String,
    /// Its root disk: an ext4 file system without a partition table, or one that boots by itself.
    pub disk: PathBuf,
    /// How the disk boots by itself; `None` has the agent mount it.
    pub own_boot: Option<OwnBoot>,
    /// The modules of its kernel, for a guest that loads some.
    pub modules: Option<KernelModules>,
    /// Its network interface, when it has one.
    pub interface: Option<Interface>,
    /// What its guest is given by a seed disk; `None` attaches none.
    pub seed: Option<Customization>,
}

/// All modules of a kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelModules {
    /// A disk with them, an ext4 file system that is only read.
    pub disk: PathBuf,
    /// Where the guest mounts it.
    pub target: String,
}

/// A guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guest {
    /// Identity.
    pub id: InstanceId,
    /// Generation of its spec.
    pub generation: u64,
    /// Directory that lasts: logs and the record of the exit are written here.
    pub directory: PathBuf,
    /// What makes it a virtual machine; a container when `None`.
    pub machine: Option<GuestMachine>,
    /// Root file system.
    pub root: Root,
    /// The program.
    pub process: GuestProcess,
    /// Whether the program is an init that expects to manage services: writable control groups,
    /// `/run` as a tmpfs, `SIGRTMIN+3` to stop.
    pub system: bool,
    /// What it may use.
    pub limits: Limits,
    /// Capabilities it has, without `CAP_`, in upper case.
    pub capabilities: Vec<String>,
    /// Whether the default system call filter is installed.
    pub seccomp: bool,
    /// Whether set-user-id programs inside may gain privileges.
    pub allow_new_privileges: bool,
    /// Its user namespace's map; `None` shares the host's users.
    pub idmap: Option<IdMap>,
    /// What is mounted inside, besides what every guest has.
    pub mounts: Vec<GuestMount>,
    /// Devices of the host.
    pub devices: Vec<GuestDevice>,
    /// Resource limits of the program.
    pub ulimits: Vec<Ulimit>,
    /// Kernel parameters of its own namespaces.
    pub sysctls: BTreeMap<String, String>,
    /// Host name.
    pub hostname: String,
    /// Network namespace.
    pub network: GuestNetwork,
    /// Its output.
    pub log: LogSpec,
}

impl Guest {
    /// The file its program's output goes to; rotated files have a number appended.
    #[must_use]
    pub fn log_path(directory: &Path) -> PathBuf {
        directory.join("log").join("console.log")
    }
}
