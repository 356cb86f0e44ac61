//! What a guest is told at boot.
//!
//! Written by the host as JSON into a small archive appended to the shared initramfs
//! ([`crate::CONFIG_PATH`]), read once by the agent as `/init`. It holds nothing that changes while the
//! guest runs. Versioned: an agent refuses a version it does not know, which cannot happen as long as
//! host and agent come together.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// Version of [`Config`] that this library writes.
pub const VERSION: u32 = 1;

/// Most bytes of an encoded configuration.
pub const MAX_BYTES: usize = 4 << 20;

/// Everything a guest needs to know to come up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// [`VERSION`].
    pub version: u32,
    /// Its host name.
    pub hostname: String,
    /// Its root file system.
    pub root: Root,
    /// What runs in it.
    pub start: Start,
    /// Its network interfaces.
    #[serde(default)]
    pub interfaces: Vec<Interface>,
    /// How it resolves names.
    #[serde(default)]
    pub dns: Dns,
    /// Further lines of `/etc/hosts`.
    #[serde(default)]
    pub hosts: Vec<HostsLine>,
    /// Further file systems.
    #[serde(default)]
    pub mounts: Vec<Mount>,
    /// Files to write into the root file system before anything of it starts.
    #[serde(default)]
    pub files: Vec<File>,
    /// Kernel parameters, such as `net.ipv4.ip_forward` = `1`.
    #[serde(default)]
    pub sysctls: Vec<(String, String)>,
    /// Who may log in by SSH.
    #[serde(default)]
    pub ssh: Option<Ssh>,
    /// Lists of further modules to load (see [`crate::MODULE_LIST_PATH`]).
    #[serde(default)]
    pub modules: Vec<String>,
}

impl Config {
    /// A guest that boots `root` with nothing else.
    #[must_use]
    pub fn new(hostname: impl Into<String>, root: Root, start: Start) -> Self {
        Self {
            version: VERSION,
            hostname: hostname.into(),
            root,
            start,
            interfaces: Vec::new(),
            dns: Dns::default(),
            hosts: Vec::new(),
            mounts: Vec::new(),
            files: Vec::new(),
            sysctls: Vec::new(),
            ssh: None,
            modules: Vec::new(),
        }
    }

    /// The configuration as it goes into the initramfs.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec_pretty(self).expect("plain data with string keys always encodes")
    }

    /// Reads a configuration back.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn from_json(bytes: &[u8]) -> Result<Self, ConfigError> {
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        if bytes.len() > MAX_BYTES {
            return Err(ConfigError::TooLarge(bytes.len()));
        }
        let Versioned { version } = serde_json::from_slice(bytes)?;
        if version != VERSION {
            return Err(ConfigError::Version(version));
        }
        Ok(serde_json::from_slice(bytes)?)
    }
}

/// A configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It is too large to have been written by this library.
    #[error("the guest configuration has {0} bytes, more than the {MAX_BYTES} allowed")]
    TooLarge(usize),
    /// Host and agent do not belong together.
    #[error(
        "the guest configuration has version {0}, this agent knows version {VERSION}: \
         rebuild the kernel image so that it carries this host's agent"
    )]
    Version(u32),
    /// Not the expected JSON.
    #[error("the guest configuration cannot be read")]
    Json(#[from] serde_json::Error),
}

/// Where a file system comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// A virtio block device, by the serial its host gave it.
    Disk {
        /// The serial.
        serial: String,
        /// Type of the file system on it, such as `ext4`.
        file_system: String,
    },
    /// A folder shared by the host, by its tag (virtio-fs).
    Share {
        /// The tag.
        tag: String,
    },
    /// Memory of the guest.
    Memory {
        /// Most it may hold; half of the guest's memory when `None`.
        #[serde(default)]
        size_bytes: Option<u64>,
    },
    /// Whatever the guest mounts by itself.
    Own,
}

/// The root file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Root {
    /// Where it is.
    pub source: Source,
    /// Where changes go when `source` is not to be changed; `None` writes to `source` itself.
    #[serde(default)]
    pub changes: Option<Source>,
    /// Whether programs may only read it.
    #[serde(default)]
    pub read_only: bool,
}

/// What runs in a guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Start {
    /// The image's own init becomes PID 1.
    System {
        /// Its path; the usual places are tried when `None`.
        #[serde(default)]
        init: Option<String>,
    },
    /// The agent stays PID 1 and runs one program; the guest powers off when it ends.
    Application(crate::protocol::Program),
    /// The agent stays PID 1 and waits for requests.
    Idle,
    /// The guest boots by itself, from its own initial file system; the agent waits for requests
    /// beside its init. For a root that is [`Source::Own`].
    Beside,
}

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// Its hardware address, in colon notation: how it is found.
    pub mac: String,
    /// Its addresses with prefix length, such as `10.77.0.14/24`.
    #[serde(default)]
    pub addresses: Vec<String>,
    /// Default routers.
    #[serde(default)]
    pub gateways: Vec<IpAddr>,
    /// Largest packet in bytes; the device's own when `None`.
    #[serde(default)]
    pub mtu: Option<u32>,
}

/// How a guest resolves names.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dns {
    /// Servers; none leaves the image's `/etc/resolv.conf` alone.
    #[serde(default)]
    pub servers: Vec<IpAddr>,
    /// Search domains.
    #[serde(default)]
    pub search: Vec<String>,
    /// Options, such as `ndots:1`.
    #[serde(default)]
    pub options: Vec<String>,
}

/// A line of `/etc/hosts`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostsLine {
    /// The address.
    pub address: IpAddr,
    /// Its names.
    pub names: Vec<String>,
}

/// A further file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// Where it is.
    pub source: Source,
    /// A file of it, by name, to be mounted in the place of the whole.
    #[serde(default)]
    pub file: Option<String>,
    /// Absolute path inside; made when missing.
    pub target: String,
    /// Whether programs may only read it.
    #[serde(default)]
    pub read_only: bool,
}

/// A file to write.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct File {
    /// Absolute path inside; directories on the way are made.
    pub path: String,
    /// Its content.
    pub content: String,
    /// Its permissions.
    pub mode: u32,
}

/// Who may log in by SSH.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ssh {
    /// Whom the keys log in; without a name root, unless the guest has a cloud-init, which has an
    /// opinion of its own.
    #[serde(default)]
    pub user: Option<String>,
    /// Public keys, each a line of `authorized_keys`.
    pub keys: Vec<String>,
}
