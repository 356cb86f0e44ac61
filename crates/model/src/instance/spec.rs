//! What a user asks of an instance. Immutable but for a change of the spec as a whole, which
//! raises its generation.

use std::{collections::BTreeMap, net::IpAddr};

use serde::{Deserialize, Serialize};

use crate::{
    Name,
    instance::{limits::Limits, machine::MachineSpec},
    units::ByteSize,
    validate::{Invalid, Report},
};

/// What an instance is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// One program (`berth run`).
    Application,
    /// An init and its services (`berth launch`).
    System,
}

/// The power state a user wants. The node brings an instance there and keeps it there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PowerState {
    /// Nothing runs.
    Stopped,
    /// All is set up and the program waits to be started: the *created* state of the OCI runtime
    /// specification. Whoever wants every byte of output attaches here.
    Prepared,
    /// The program runs.
    Running,
    /// The program is frozen.
    Paused,
}

/// The program in an instance. What is `None` comes from the image.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ProcessSpec {
    /// Replaces the image's command; the arguments after the entrypoint.
    pub command: Option<Vec<String>>,
    /// Replaces the image's entrypoint; empty means none.
    pub entrypoint: Option<Vec<String>>,
    /// Added to, or replacing, the image's environment.
    pub env: BTreeMap<String, String>,
    /// `user[:group]`, by name or number inside the instance.
    pub user: Option<String>,
    /// Absolute path inside the instance.
    pub workdir: Option<String>,
    /// Whether the program gets a terminal.
    pub terminal: bool,
    /// Whether standard input stays open.
    pub stdin: bool,
    /// Signal that asks the program to end, by name (`SIGTERM`) or number.
    pub stop_signal: Option<String>,
    /// Seconds between asking the program to end and ending it.
    pub stop_timeout_s: Option<u32>,
}

/// Where a mount comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum MountSource {
    /// A path of the host.
    Bind {
        /// Absolute path on the host.
        path: String,
    },
    /// A named volume, made when it does not exist.
    Volume {
        /// The volume.
        name: Name,
    },
    /// Memory, gone when the instance stops.
    Tmpfs {
        /// Most it may hold.
        size: Option<ByteSize>,
    },
}

/// Something mounted inside an instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// Where from.
    pub source: MountSource,
    /// Absolute path inside the instance.
    pub target: String,
    /// Whether the instance may only read.
    #[serde(default)]
    pub read_only: bool,
}

/// A device of the host made visible inside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceSpec {
    /// Absolute path on the host.
    pub host_path: String,
    /// Absolute path inside the instance.
    pub path: String,
    /// Any of `r` read, `w` write, `m` mknod.
    pub permissions: String,
}

/// A resource limit of the program (`setrlimit(2)`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ulimit {
    /// Name without `RLIMIT_`, in lower case: `nofile`, `core`.
    pub name: String,
    /// Soft limit.
    pub soft: u64,
    /// Hard limit.
    pub hard: u64,
}

/// How far an instance is shut in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Security {
    /// Whether the root file system may only be read.
    pub read_only: bool,
    /// Capabilities added to the default ones, without `CAP_`; `ALL` for all.
    pub cap_add: Vec<String>,
    /// Capabilities taken from the default ones, without `CAP_`; `ALL` for all.
    pub cap_drop: Vec<String>,
    /// Whether root inside is nobody outside (user namespace). On unless asked otherwise.
    pub user_namespace: bool,
    /// Whether the default system call filter is installed. On unless asked otherwise.
    pub seccomp: bool,
    /// Whether programs inside may gain privileges on exec (set-user-id programs).
    pub allow_new_privileges: bool,
    /// Devices of the host.
    pub devices: Vec<DeviceSpec>,
    /// Resource limits of the program.
    pub ulimits: Vec<Ulimit>,
    /// Kernel parameters of the instance's own namespaces.
    pub sysctls: BTreeMap<String, String>,
}

impl Default for Security {
    fn default() -> Self {
        Self {
            read_only: false,
            cap_add: Vec::new(),
            cap_drop: Vec::new(),
            user_namespace: true,
            seccomp: true,
            allow_new_privileges: false,
            devices: Vec::new(),
            ulimits: Vec::new(),
            sysctls: BTreeMap::new(),
        }
    }
}

/// How an instance meets the network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum NetworkMode {
    /// An address of its own on a network.
    Network {
        /// The network.
        name: Name,
        /// Asked-for IPv4 address; else the next free one.
        address: Option<IpAddr>,
    },
    /// Only a loopback interface.
    None,
    /// The host's own interfaces.
    Host,
}

/// Transport of a published port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// A port of the host that leads to a port of the instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortSpec {
    /// Address of the host it listens on; every address when `None`.
    pub host_address: Option<IpAddr>,
    /// Port of the host.
    pub host_port: u16,
    /// Port of the instance.
    pub port: u16,
    /// Transport.
    pub protocol: Protocol,
}

/// What happens when the program ends by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum RestartPolicy {
    /// It stays ended.
    No,
    /// It is started again when its exit code was not 0.
    OnFailure {
        /// At most so often in a row; without end when `None`.
        max_retries: Option<u32>,
    },
    /// It is started again, and after a restart of the host.
    Always,
    /// As `Always`, unless a user had stopped it.
    UnlessStopped,
}

/// A command run inside, again and again, that says whether the program is well.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthCheck {
    /// The command; exit code 0 means healthy.
    pub command: Vec<String>,
    /// Milliseconds between two checks.
    pub interval_ms: u64,
    /// Milliseconds a check may take.
    pub timeout_ms: u64,
    /// Failures in a row that make it unhealthy.
    pub retries: u32,
    /// Milliseconds after a start in which failures do not count.
    pub start_period_ms: u64,
}

/// How much of the output is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogSpec {
    /// Size at which the log is rotated.
    pub max_bytes: u64,
    /// Files kept, the current one included.
    pub files: u32,
}

impl Default for LogSpec {
    fn default() -> Self {
        Self {
            max_bytes: 16 << 20,
            files: 3,
        }
    }
}

/// All a user asks of an instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceSpec {
    /// What it is.
    pub kind: Kind,
    /// What makes it a virtual machine; a container when `None`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<MachineSpec>,
    /// The image, as the user wrote it.
    pub image: String,
    /// The program.
    #[serde(default)]
    pub process: ProcessSpec,
    /// What it may use.
    #[serde(default)]
    pub limits: Limits,
    /// How far it is shut in.
    #[serde(default)]
    pub security: Security,
    /// What is mounted inside.
    #[serde(default)]
    pub mounts: Vec<Mount>,
    /// Its network.
    pub network: NetworkMode,
    /// Published ports.
    #[serde(default)]
    pub ports: Vec<PortSpec>,
    /// What happens when the program ends by itself.
    pub restart: RestartPolicy,
    /// How its health is checked, if at all.
    #[serde(default)]
    pub health: Option<HealthCheck>,
    /// The user's own marks.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Host name inside; the instance's name when `None`.
    #[serde(default)]
    pub hostname: Option<String>,
    /// Its output.
    #[serde(default)]
    pub log: LogSpec,
    /// Most its own changes to the root file system may take, where the pool can hold it to that.
    #[serde(default)]
    pub root_size: Option<ByteSize>,
    /// Whether it is deleted when its program ends.
    #[serde(default)]
    pub remove_on_exit: bool,
}

/// Most entries in any list or map of a spec, and most bytes in any of its texts: a spec has to
/// fit one transaction of the store.
pub const MAX_ENTRIES: usize = 1024;
/// See [`MAX_ENTRIES`].
pub const MAX_TEXT_BYTES: usize = 64 << 10;

impl InstanceSpec {
    /// Checks everything that can be checked without looking at the host.
    ///
    /// # Errors
    /// Every field that is wrong.
    pub fn validate(&self) -> Result<(), Invalid> {
        let mut report = Report::default();
        let image_fits = !self.image.is_empty() && self.image.len() <= 512;
        report.require(
            image_fits,
            "image",
            "name an image, such as debian or web:1.2",
        );
        self.validate_process(&mut report);
        self.validate_limits(&mut report);
        self.validate_security(&mut report);
        self.validate_mounts(&mut report);
        self.validate_ports(&mut report);
        self.validate_rest(&mut report);
        self.validate_machine(&mut report);
        report.finish()
    }

    fn validate_process(&self, report: &mut Report) {
        let process = &self.process;
        for (field, list) in [
            ("command", &process.command),
            ("entrypoint", &process.entrypoint),
        ] {
            let Some(list) = list else { continue };
            let bytes: usize = list.iter().map(String::len).sum();
            let fits = list.len() <= MAX_ENTRIES && bytes <= MAX_TEXT_BYTES;
            let field = format!("process.{field}");
            report.require(fits, &field, "at most 1024 words and 64 KiB in all");
            let clean = list.iter().all(|word| !word.contains('\0'));
            report.require(clean, &field, "a word contains a NUL byte");
        }
        let bytes: usize = process
            .env
            .iter()
            .map(|(key, value)| key.len() + value.len())
            .sum();
        let fits = process.env.len() <= MAX_ENTRIES && bytes <= MAX_TEXT_BYTES;
        report.require(
            fits,
            "process.env",
            "at most 1024 variables and 64 KiB in all",
        );
        for (key, value) in &process.env {
            let good = !key.is_empty() && !key.contains(['=', '\0']) && !value.contains('\0');
            let message = "a variable needs a name without '=' and no NUL byte";
            report.require(good, &format!("process.env[{key:?}]"), message);
        }
        if let Some(workdir) = &process.workdir {
            report.require(inside_path(workdir), "process.workdir", ABSOLUTE);
        }
        if let Some(user) = &process.user {
            let good = !user.is_empty() && user.len() <= 256 && !user.contains('\0');
            report.require(
                good,
                "process.user",
                "write user or user:group, by name or number",
            );
        }
        if let Some(signal) = &process.stop_signal {
            let good = signal_number(signal).is_some();
            report.require(
                good,
                "process.stop_signal",
                "name a signal, such as SIGTERM or 15",
            );
        }
        let patient = process
            .stop_timeout_s
            .is_none_or(|seconds| seconds <= 86_400);
        report.require(patient, "process.stop_timeout_s", "at most 86400 (a day)");
    }

    fn validate_security(&self, report: &mut Report) {
        let security = &self.security;
        for (field, list) in [
            ("cap_add", &security.cap_add),
            ("cap_drop", &security.cap_drop),
        ] {
            for (index, capability) in list.iter().enumerate() {
                report.require(
                    is_capability(capability),
                    &format!("security.{field}[{index}]"),
                    format!("{capability:?} is not a capability; see capabilities(7)"),
                );
            }
        }
        for (index, device) in security.devices.iter().enumerate() {
            let field = format!("security.devices[{index}]");
            let paths = device.host_path.starts_with("/dev/") && inside_path(&device.host_path);
            report.require(paths, &field, "the host path must lie below /dev");
            report.require(inside_path(&device.path), &field, ABSOLUTE);
            let letters = !device.permissions.is_empty()
                && device
                    .permissions
                    .chars()
                    .all(|letter| "rwm".contains(letter));
            report.require(letters, &field, "permissions are any of r, w and m");
        }
        for (index, limit) in security.ulimits.iter().enumerate() {
            let field = format!("security.ulimits[{index}]");
            let known = RLIMITS.contains(&limit.name.as_str());
            report.require(
                known,
                &field,
                format!("{:?} is none of {RLIMITS:?}", limit.name),
            );
            report.require(
                limit.soft <= limit.hard,
                &field,
                "the soft limit exceeds the hard one",
            );
        }
        for (key, value) in &security.sysctls {
            let field = format!("security.sysctls[{key:?}]");
            let message = "only net.*, fs.mqueue.*, kernel.msg*, kernel.sem, kernel.shm* belong \
                           to an instance; others would change the host";
            report.require(is_namespaced_sysctl(key), &field, message);
            report.require(
                value.len() <= 4096 && !value.contains('\0'),
                &field,
                "too long",
            );
        }
    }

    fn validate_mounts(&self, report: &mut Report) {
        report.require(self.mounts.len() <= 128, "mounts", "at most 128");
        for (index, mount) in self.mounts.iter().enumerate() {
            let field = format!("mounts[{index}].target");
            report.require(inside_path(&mount.target), &field, ABSOLUTE);
            report.require(
                mount.target != "/",
                &field,
                "the root itself cannot be a mount",
            );
            if let MountSource::Bind { path } = &mount.source {
                report.require(
                    inside_path(path),
                    &format!("mounts[{index}].source"),
                    ABSOLUTE,
                );
            }
            let twice = self.mounts[..index]
                .iter()
                .any(|other| other.target == mount.target);
            report.require(!twice, &field, "another mount has the same target");
        }
    }

    fn validate_ports(&self, report: &mut Report) {
        report.require(self.ports.len() <= 32, "ports", "at most 32");
        let networked = matches!(self.network, NetworkMode::Network { .. });
        if !networked && !self.ports.is_empty() {
            report.add(
                "ports",
                "only an instance on a network has ports to publish",
            );
        }
        for (index, port) in self.ports.iter().enumerate() {
            let field = format!("ports[{index}]");
            report.require(
                port.host_port != 0 && port.port != 0,
                &field,
                "ports are 1 to 65535",
            );
            let twice = self.ports[..index].iter().any(|other| {
                other.host_port == port.host_port
                    && other.protocol == port.protocol
                    && other.host_address == port.host_address
            });
            report.require(!twice, &field, "the same host port is published twice");
        }
    }

    fn validate_rest(&self, report: &mut Report) {
        report.require(self.labels.len() <= MAX_ENTRIES, "labels", "at most 1024");
        for (key, value) in &self.labels {
            let good = !key.is_empty() && key.len() <= 256 && value.len() <= 4096;
            let message = "a key has 1 to 256 bytes and a value at most 4096";
            report.require(good, &format!("labels[{key:?}]"), message);
        }
        if let Some(hostname) = &self.hostname {
            let labels = hostname.len() <= 64 && hostname.split('.').all(is_host_label);
            report.require(
                labels,
                "hostname",
                "letters, digits, '-' and '.', at most 64",
            );
        }
        if let Some(health) = &self.health {
            report.require(
                !health.command.is_empty(),
                "health.command",
                "name a command",
            );
            let often = health.interval_ms >= 100 && health.timeout_ms >= 1;
            report.require(
                often,
                "health.interval_ms",
                "at least 100 ms, with a timeout above 0",
            );
        }
        let log = self.log.max_bytes >= 4096 && (1..=100).contains(&self.log.files);
        report.require(log, "log", "at least 4096 bytes a file, and 1 to 100 files");
        if self.remove_on_exit && self.restart != RestartPolicy::No {
            report.add(
                "restart",
                "an instance that is removed when it ends cannot be restarted",
            );
        }
    }
}

const ABSOLUTE: &str = "must be an absolute path without '..', at most 4096 bytes";

const RLIMITS: [&str; 16] = [
    "as",
    "core",
    "cpu",
    "data",
    "fsize",
    "locks",
    "memlock",
    "msgqueue",
    "nice",
    "nofile",
    "nproc",
    "rss",
    "rtprio",
    "rttime",
    "sigpending",
    "stack",
];

pub(super) fn inside_path(path: &str) -> bool {
    path.starts_with('/')
        && path.len() <= 4096
        && !path.contains('\0')
        && path.split('/').all(|part| part != "..")
}

fn is_host_label(label: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
    !label.is_empty() && label.bytes().all(plain) && !label.starts_with('-')
}

fn is_namespaced_sysctl(key: &str) -> bool {
    let tail = key.strip_prefix("kernel.");
    let plain = key
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || b"._-/".contains(&b));
    plain
        && !key.contains("..")
        && (key.starts_with("net.")
            || key.starts_with("fs.mqueue.")
            || tail.is_some_and(|t| t.starts_with("msg") || t.starts_with("shm") || t == "sem"))
}

/// Capability names of Linux 6.18 (`include/uapi/linux/capability.h`), without `CAP_`.
pub const CAPABILITIES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// Whether `text` names a capability, in either case, with or without `CAP_`, or is `ALL`.
#[must_use]
pub fn is_capability(text: &str) -> bool {
    let upper = text.to_ascii_uppercase();
    let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
    bare == "ALL" || CAPABILITIES.contains(&bare)
}

/// Signals by name, as numbered on Linux for x86, ARM and RISC-V (`signal(7)`).
pub const SIGNALS: [(&str, i32); 31] = [
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ILL", 4),
    ("TRAP", 5),
    ("ABRT", 6),
    ("BUS", 7),
    ("FPE", 8),
    ("KILL", 9),
    ("USR1", 10),
    ("SEGV", 11),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", 15),
    ("STKFLT", 16),
    ("CHLD", 17),
    ("CONT", 18),
    ("STOP", 19),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("XCPU", 24),
    ("XFSZ", 25),
    ("VTALRM", 26),
    ("PROF", 27),
    ("WINCH", 28),
    ("IO", 29),
    ("PWR", 30),
    ("SYS", 31),
];

/// The number of a signal given as `15`, `TERM`, `SIGTERM` or `RTMIN+3`, in either case.
#[must_use]
pub fn signal_number(text: &str) -> Option<i32> {
    if let Ok(number) = text.parse::<i32>() {
        return (1..=64).contains(&number).then_some(number);
    }
    let upper = text.to_ascii_uppercase();
    let bare = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(offset) = bare.strip_prefix("RTMIN") {
        let offset = offset
            .strip_prefix('+')
            .map_or(Some(0), |digits| digits.parse().ok())?;
        return (0..=30).contains(&offset).then_some(34 + offset);
    }
    SIGNALS
        .iter()
        .find(|(name, _)| *name == bare)
        .map(|(_, number)| *number)
}

#[cfg(test)]
mod tests;
