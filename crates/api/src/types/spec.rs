//! What a user asks of an instance, as one flat document: the body of a create request, the
//! target of a merge patch, and what `berth edit` opens.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What an instance is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// One program.
    #[default]
    Application,
    /// An init and its services.
    System,
}

/// What executes a virtual machine's code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Accel {
    /// The hardware when a probe shows that it works, else the software CPU.
    #[default]
    Auto,
    /// The hardware, or not at all.
    Kvm,
    /// The software CPU.
    Soft,
}

/// A virtual machine's own settings: vCPUs follow from `cpus`, memory from `memory`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Machine {
    /// What executes its code.
    pub accel: Accel,
    /// A kernel of one's own: path on the host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel: Option<String>,
    /// An initial file system of one's own: path on the host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub initrd: Option<String>,
    /// Added to the kernel's command line.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub append: Option<String>,
    /// What cloud-init in the guest is told to do: the content of a user-data file, at most 64 KiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_data: Option<String>,
    /// Public keys that log in by SSH, each a line as in a `.pub` file.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ssh_keys: Vec<String>,
    /// Whom the keys log in; without a name the user of the guest's cloud-init, else root.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ssh_user: Option<String>,
}

/// Limits on block I/O.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Io {
    /// Relative weight, 1 to 10,000; 100 is usual.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<u16>,
    /// Bytes read a second, as a size such as `10M`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read_bps: Option<String>,
    /// Bytes written a second, as a size such as `10M`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub write_bps: Option<String>,
    /// Reads a second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read_iops: Option<u64>,
    /// Writes a second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub write_iops: Option<u64>,
}

/// Limits on what an instance's network interface carries.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Net {
    /// Bytes a second it may receive, as a size such as `10M`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ingress_bps: Option<String>,
    /// Bytes a second it may send, as a size such as `10M`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub egress_bps: Option<String>,
    /// Bytes it may receive at once after a pause: by a machine, a tenth of a second's worth when absent;
    /// by a container, beside a second's worth, which always may.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ingress_burst: Option<String>,
    /// Bytes it may send at once after a pause, in the same way.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub egress_burst: Option<String>,
}

/// Where a mount comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum MountType {
    /// `source` is an absolute path of the host.
    Bind,
    /// `source` is the name of a volume, made when it does not exist.
    Volume,
    /// Memory; no `source`.
    Tmpfs,
}

/// Something mounted inside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Mount {
    /// Where from.
    #[serde(rename = "type")]
    pub kind: MountType,
    /// Path of the host or name of a volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// Absolute path inside.
    pub target: String,
    /// Whether the instance may only read.
    #[serde(default, skip_serializing_if = "is_false")]
    pub read_only: bool,
    /// Most a tmpfs may hold, such as `64M`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<String>,
}

/// Transport of a published port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
}

/// A port of the host that leads to a port of the instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Port {
    /// Address of the host; every address when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_address: Option<String>,
    /// Port of the host.
    pub host_port: u16,
    /// Port of the instance.
    pub port: u16,
    /// Transport.
    #[serde(default)]
    pub protocol: Protocol,
}

/// A device of the host made visible inside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Device {
    /// Path on the host, below `/dev`.
    pub host_path: String,
    /// Path inside; the same as on the host when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Any of `r`, `w`, `m`; all when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub permissions: Option<String>,
}

/// A resource limit of the program (`setrlimit(2)`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Ulimit {
    /// Name in lower case, such as `nofile`.
    pub name: String,
    /// Soft limit.
    pub soft: u64,
    /// Hard limit.
    pub hard: u64,
}

/// A command run inside, again and again, that says whether the program is well.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HealthCheck {
    /// The command; exit code 0 means healthy.
    pub command: Vec<String>,
    /// Seconds between two checks.
    #[serde(default = "HealthCheck::default_interval_s")]
    pub interval_s: f64,
    /// Seconds a check may take.
    #[serde(default = "HealthCheck::default_timeout_s")]
    pub timeout_s: f64,
    /// Failures in a row that make it unhealthy.
    #[serde(default = "HealthCheck::default_retries")]
    pub retries: u32,
    /// Seconds after a start in which failures do not count.
    #[serde(default)]
    pub start_period_s: f64,
}

impl HealthCheck {
    /// 30 s.
    #[must_use]
    pub const fn default_interval_s() -> f64 {
        30.0
    }

    /// 30 s.
    #[must_use]
    pub const fn default_timeout_s() -> f64 {
        30.0
    }

    /// Three.
    #[must_use]
    pub const fn default_retries() -> u32 {
        3
    }
}

/// How much of the output is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Log {
    /// Size at which the log is rotated, such as `16M`.
    pub max_size: String,
    /// Files kept, the current one included.
    pub files: u32,
}

/// All a user asks of an instance. What is absent comes from the image or is the usual.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct InstanceSpec {
    /// What it is.
    pub kind: Kind,
    /// What makes it a virtual machine; a container when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub machine: Option<Machine>,
    /// The image, such as `debian`, `web:1.2` or `registry.example.org/team/web@sha256:…`.
    pub image: String,
    /// Replaces the image's command; the arguments after the entrypoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub command: Option<Vec<String>>,
    /// Replaces the image's entrypoint; empty means none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entrypoint: Option<Vec<String>>,
    /// Added to, or replacing, the image's environment.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// `user[:group]`, by name or number inside.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Absolute path inside.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workdir: Option<String>,
    /// Whether the program gets a terminal.
    #[serde(skip_serializing_if = "is_false")]
    pub terminal: bool,
    /// Whether standard input stays open.
    #[serde(skip_serializing_if = "is_false")]
    pub stdin: bool,
    /// Signal that asks the program to end, such as `SIGTERM`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_signal: Option<String>,
    /// Seconds between asking the program to end and ending it; 10 when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_timeout_s: Option<u32>,

    /// Processor time, in CPUs: `1.5`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpus: Option<f64>,
    /// Relative processor weight, 1 to 10,000; 100 is usual.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_weight: Option<u16>,
    /// Processors it may run on, such as `0-2,4`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_set: Option<String>,
    /// Memory it may hold, such as `512M`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<String>,
    /// Memory above which it is slowed down and reclaimed from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_high: Option<String>,
    /// Swap it may use besides memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swap: Option<String>,
    /// Processes and threads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pids: Option<u32>,
    /// Block I/O.
    #[serde(skip_serializing_if = "is_default")]
    pub io: Io,
    /// What its network interface carries.
    #[serde(skip_serializing_if = "is_default")]
    pub net: Net,

    /// Whether the root file system may only be read.
    #[serde(skip_serializing_if = "is_false")]
    pub read_only: bool,
    /// Capabilities added to the default ones, without `CAP_`; `ALL` for all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cap_add: Vec<String>,
    /// Capabilities taken from the default ones, without `CAP_`; `ALL` for all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cap_drop: Vec<String>,
    /// Whether root inside is nobody outside; on unless `false`.
    #[serde(skip_serializing_if = "is_true")]
    pub user_namespace: bool,
    /// Whether the default system call filter is installed; on unless `false`.
    #[serde(skip_serializing_if = "is_true")]
    pub seccomp: bool,
    /// Whether set-user-id programs inside may gain privileges.
    #[serde(skip_serializing_if = "is_false")]
    pub allow_new_privileges: bool,
    /// Devices of the host.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<Device>,
    /// Resource limits of the program.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ulimits: Vec<Ulimit>,
    /// Kernel parameters of the instance's own namespaces.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub sysctls: BTreeMap<String, String>,

    /// What is mounted inside.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<Mount>,
    /// Name of a network, `none`, or `host`; the network `default` when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    /// Asked-for address on the network; else the next free one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// Published ports.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<Port>,

    /// `no`, `on-failure`, `on-failure:N`, `always` or `unless-stopped`; `no` when absent for an
    /// application, `unless-stopped` for a system.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restart: Option<String>,
    /// How its health is checked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub health: Option<HealthCheck>,
    /// The user's own marks.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Host name inside; the instance's name when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// Its output.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log: Option<Log>,
    /// Most its changes to the root file system may take, where the pool can hold it to that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub root_size: Option<String>,
    /// Whether it is deleted when its program ends.
    #[serde(skip_serializing_if = "is_false")]
    pub remove_on_exit: bool,
}

impl Default for InstanceSpec {
    fn default() -> Self {
        Self {
            kind: Kind::default(),
            machine: None,
            image: String::new(),
            command: None,
            entrypoint: None,
            env: BTreeMap::new(),
            user: None,
            workdir: None,
            terminal: false,
            stdin: false,
            stop_signal: None,
            stop_timeout_s: None,
            cpus: None,
            cpu_weight: None,
            cpu_set: None,
            memory: None,
            memory_high: None,
            swap: None,
            pids: None,
            io: Io::default(),
            net: Net::default(),
            read_only: false,
            cap_add: Vec::new(),
            cap_drop: Vec::new(),
            user_namespace: true,
            seccomp: true,
            allow_new_privileges: false,
            devices: Vec::new(),
            ulimits: Vec::new(),
            sysctls: BTreeMap::new(),
            mounts: Vec::new(),
            network: None,
            address: None,
            ports: Vec::new(),
            restart: None,
            health: None,
            labels: BTreeMap::new(),
            hostname: None,
            log: None,
            root_size: None,
            remove_on_exit: false,
        }
    }
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde passes a reference"
)]
fn is_false(value: &bool) -> bool {
    !*value
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde passes a reference"
)]
fn is_true(value: &bool) -> bool {
    *value
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}
