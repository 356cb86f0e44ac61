//! The flags of `run` and `launch` that say what an instance is, and the spec made of them.

use std::{
    collections::BTreeMap,
    io::Read,
    path::{Path, PathBuf},
};

use api::{Accel, Device, HealthCheck, InstanceSpec, Io, Kind, Machine, Mount, Net, Ulimit};
use clap::{Args, ValueEnum, ValueHint};

use crate::cli::{
    complete,
    exit::{Failure, Outcome},
    parse::{self, duration::seconds, env, mount, port, resource},
};

/// What the program is given.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Program")]
pub struct ProgramArgs {
    /// Set an environment variable; KEY alone passes on its value here
    #[arg(short, long, value_name = "KEY[=VALUE]")]
    env: Vec<String>,
    /// Read environment variables from a file, one KEY=VALUE a line
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    env_file: Vec<PathBuf>,
    /// Run as this user, by name or number inside
    #[arg(short, long, value_name = "USER[:GROUP]")]
    user: Option<String>,
    /// Run in this directory inside
    #[arg(short, long, value_name = "PATH")]
    workdir: Option<String>,
}

impl ProgramArgs {
    /// The environment: files first, flags over them.
    pub fn environment(&self) -> Outcome<BTreeMap<String, String>> {
        let mut found = BTreeMap::new();
        for path in &self.env_file {
            found.extend(env::read_file(path).map_err(Failure::usage)?);
        }
        for text in &self.env {
            found.extend(
                env::variable(text).map_err(|why| Failure::usage(format!("--env: {why}")))?,
            );
        }
        Ok(found)
    }

    /// The user.
    pub fn user(&self) -> Option<String> {
        self.user.clone()
    }

    /// The working directory.
    pub fn workdir(&self) -> Option<String> {
        self.workdir.clone()
    }
}

/// What an instance may use. All of it can be changed while it runs.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Limits")]
pub struct LimitArgs {
    /// Processor time, in CPUs, such as 1.5
    #[arg(long, value_name = "N", value_parser = parse::cpus)]
    cpus: Option<f64>,
    /// Share of the processors when they are busy, 1 to 10000; 100 is usual
    #[arg(long, value_name = "N")]
    cpu_weight: Option<u16>,
    /// Processors it may run on, such as 0-2,4; a virtual machine with as many of its own has one
    /// for each
    #[arg(long, value_name = "LIST")]
    cpuset: Option<String>,
    /// Memory it may hold, such as 512M or 4G
    #[arg(short, long, value_name = "SIZE", value_parser = parse::size)]
    memory: Option<String>,
    /// Memory above which it is slowed down
    #[arg(long, value_name = "SIZE", value_parser = parse::size)]
    memory_high: Option<String>,
    /// Swap it may use besides memory
    #[arg(long, value_name = "SIZE", value_parser = parse::size)]
    swap: Option<String>,
    /// Processes and threads it may have
    #[arg(long, value_name = "N")]
    pids: Option<u32>,
    /// Share of the disks when they are busy, 1 to 10000; 100 is usual
    #[arg(long, value_name = "N")]
    io_weight: Option<u16>,
    /// Bytes it may read from disks a second
    #[arg(long, value_name = "SIZE", value_parser = parse::size)]
    io_read_bps: Option<String>,
    /// Bytes it may write to disks a second
    #[arg(long, value_name = "SIZE", value_parser = parse::size)]
    io_write_bps: Option<String>,
    /// Reads from disks a second
    #[arg(long, value_name = "N")]
    io_read_iops: Option<u64>,
    /// Writes to disks a second
    #[arg(long, value_name = "N")]
    io_write_iops: Option<u64>,
    /// Bytes it may receive a second
    #[arg(long, value_name = "SIZE", value_parser = parse::size)]
    net_ingress_bps: Option<String>,
    /// Bytes it may send a second
    #[arg(long, value_name = "SIZE", value_parser = parse::size)]
    net_egress_bps: Option<String>,
    /// Bytes it may receive at once after a pause; a machine a tenth of a second's worth when not given,
    /// a container always a second's worth besides
    #[arg(long, value_name = "SIZE", value_parser = parse::size)]
    net_ingress_burst: Option<String>,
    /// Bytes it may send at once after a pause; as with --net-ingress-burst
    #[arg(long, value_name = "SIZE", value_parser = parse::size)]
    net_egress_burst: Option<String>,
}

impl LimitArgs {
    /// Puts what was given into a spec.
    pub fn apply(self, spec: &mut InstanceSpec) {
        spec.cpus = self.cpus;
        spec.cpu_weight = self.cpu_weight;
        spec.cpu_set = self.cpuset;
        spec.memory = self.memory;
        spec.memory_high = self.memory_high;
        spec.swap = self.swap;
        spec.pids = self.pids;
        spec.io = Io {
            weight: self.io_weight,
            read_bps: self.io_read_bps,
            write_bps: self.io_write_bps,
            read_iops: self.io_read_iops,
            write_iops: self.io_write_iops,
        };
        spec.net = Net {
            ingress_bps: self.net_ingress_bps,
            egress_bps: self.net_egress_bps,
            ingress_burst: self.net_ingress_burst,
            egress_burst: self.net_egress_burst,
        };
    }
}

/// What executes a virtual machine's code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum AccelArg {
    /// The hardware when a probe shows that it works, else the software CPU
    Auto,
    /// The hardware, or not at all
    Kvm,
    /// The software CPU
    Soft,
}

/// What makes it a virtual machine.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Virtual machine")]
pub struct MachineArgs {
    /// Make it a virtual machine with a kernel of its own: --cpus are its processors, --memory
    /// its memory
    #[arg(long)]
    vm: bool,
    /// What executes its code
    #[arg(long, value_enum, value_name = "HOW", requires = "vm")]
    accel: Option<AccelArg>,
    /// Boot this kernel of this host
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, requires = "vm")]
    kernel: Option<PathBuf>,
    /// Boot with this initial file system of this host
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, requires = "vm")]
    initrd: Option<PathBuf>,
    /// Add to the kernel's command line
    #[arg(long, value_name = "TEXT", requires = "vm", allow_hyphen_values = true)]
    append: Option<String>,
    /// Give cloud-init inside this user data, on a seed disk
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, requires = "vm")]
    cloud_init: Option<PathBuf>,
    /// Let the public keys of this file log in by SSH (repeatable)
    #[arg(long = "ssh-key", value_name = "FILE", value_hint = ValueHint::FilePath, requires = "vm")]
    ssh_keys: Vec<PathBuf>,
    /// Whom the keys log in: when not given, whom cloud-init says, else root
    #[arg(long, value_name = "NAME", requires = "ssh_keys")]
    ssh_user: Option<String>,
}

impl MachineArgs {
    fn into_machine(self) -> Outcome<Option<Machine>> {
        if !self.vm {
            return Ok(None);
        }
        let absolute = |path: Option<PathBuf>| {
            let path = path.map(std::path::absolute).transpose();
            path.map(|path| path.map(|path| path.to_string_lossy().into_owned()))
                .map_err(|why| Failure::usage(format!("the current directory is gone: {why}")))
        };
        Ok(Some(Machine {
            accel: match self.accel {
                None | Some(AccelArg::Auto) => Accel::Auto,
                Some(AccelArg::Kvm) => Accel::Kvm,
                Some(AccelArg::Soft) => Accel::Soft,
            },
            kernel: absolute(self.kernel)?,
            initrd: absolute(self.initrd)?,
            append: self.append,
            user_data: self.cloud_init.as_deref().map(read_text).transpose()?,
            ssh_keys: keys(&self.ssh_keys)?,
            ssh_user: self.ssh_user,
        }))
    }
}

/// Most bytes of a file that becomes part of a spec; the daemon says what it takes of them.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// A file of the caller's, sent as a part of the spec.
fn read_text(path: &Path) -> Outcome<String> {
    let read = || {
        let mut text = String::new();
        let file = std::fs::File::open(path)?;
        file.take(MAX_FILE_BYTES).read_to_string(&mut text)?;
        Ok::<_, std::io::Error>(text)
    };
    read().map_err(|why| Failure::usage(format!("{} cannot be read: {why}", path.display())))
}

/// The keys of `.pub` and `authorized_keys` files: their lines but empty ones and comments.
fn keys(files: &[PathBuf]) -> Outcome<Vec<String>> {
    let mut keys = Vec::new();
    for file in files {
        let text = read_text(file)?;
        // It never leaves this host.
        if text.contains("PRIVATE KEY") {
            let what = format!("{} is a private key, which stays with you", file.display());
            return Err(Failure::usage(what).advise("give the .pub file beside it"));
        }
        let lines = text.lines().map(str::trim);
        let mut found = lines
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
            .map(str::to_owned)
            .peekable();
        if found.peek().is_none() {
            let what = format!("{} has no SSH key", file.display());
            return Err(Failure::usage(what).advise("give a .pub file, as ssh-keygen writes it"));
        }
        keys.extend(found);
    }
    Ok(keys)
}

/// How its health is checked.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Health and restarts")]
pub struct HealthArgs {
    /// What to do when it ends: no, on-failure[:N], always or unless-stopped
    #[arg(long, value_name = "POLICY")]
    restart: Option<String>,
    /// Shell command that says by exit code 0 that it is well
    #[arg(long, value_name = "COMMAND")]
    health_cmd: Option<String>,
    /// Time between two checks
    #[arg(long, value_name = "TIME", value_parser = seconds, requires = "health_cmd")]
    health_interval: Option<f64>,
    /// Time a check may take
    #[arg(long, value_name = "TIME", value_parser = seconds, requires = "health_cmd")]
    health_timeout: Option<f64>,
    /// Failures in a row that make it unhealthy
    #[arg(long, value_name = "N", requires = "health_cmd")]
    health_retries: Option<u32>,
    /// Time after a start in which failures do not count
    #[arg(long, value_name = "TIME", value_parser = seconds, requires = "health_cmd")]
    health_start_period: Option<f64>,
}

impl HealthArgs {
    /// Puts what was given into a spec.
    pub fn apply(self, spec: &mut InstanceSpec) {
        spec.restart = self.restart;
        spec.health = self.health_cmd.map(|command| HealthCheck {
            command: vec!["/bin/sh".into(), "-c".into(), command],
            interval_s: self
                .health_interval
                .unwrap_or(HealthCheck::default_interval_s()),
            timeout_s: self
                .health_timeout
                .unwrap_or(HealthCheck::default_timeout_s()),
            retries: self
                .health_retries
                .unwrap_or(HealthCheck::default_retries()),
            start_period_s: self.health_start_period.unwrap_or(0.0),
        });
    }
}

/// How it is reached.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Network")]
pub struct NetworkArgs {
    /// Publish a port or a range on this host
    #[arg(short, long, value_name = "[ADDR:]HOST:PORT[/udp]", value_parser = port::ports)]
    publish: Vec<port::Ports>,
    /// Network to join, or none, or host
    #[arg(long, value_name = "NAME", add = complete::networks())]
    network: Option<String>,
    /// Address to ask for on the network
    #[arg(long, value_name = "ADDRESS")]
    ip: Option<std::net::IpAddr>,
    /// Host name inside; its name when not given
    #[arg(long, value_name = "NAME")]
    hostname: Option<String>,
}

/// What it may see and keep.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Storage")]
pub struct StorageArgs {
    /// Mount a path of this host, or a named volume, inside
    #[arg(short, long, value_name = "SOURCE:TARGET[:ro]", value_parser = mount::volume)]
    volume: Vec<Mount>,
    /// The same, spelled out: type=bind|volume|tmpfs,source=…,target=…[,readonly][,size=…]
    #[arg(long, value_name = "OPTIONS", value_parser = mount::mount)]
    mount: Vec<Mount>,
    /// Mount memory inside
    #[arg(long, value_name = "TARGET[:size=SIZE]", value_parser = mount::tmpfs)]
    tmpfs: Vec<Mount>,
    /// Let it only read its root file system
    #[arg(long)]
    read_only: bool,
    /// Most its changes to the root file system may take
    #[arg(long, value_name = "SIZE", value_parser = parse::size)]
    root_size: Option<String>,
}

/// What it may do to this host.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Security")]
pub struct SecurityArgs {
    /// Add a capability, or ALL
    #[arg(long, value_name = "CAP")]
    cap_add: Vec<String>,
    /// Take a capability away, or ALL
    #[arg(long, value_name = "CAP")]
    cap_drop: Vec<String>,
    /// Make a device of this host visible inside
    #[arg(long, value_name = "/dev/HOST[:/dev/INSIDE[:rwm]]", value_parser = resource::device)]
    device: Vec<Device>,
    /// Let root inside be root outside: no user namespace
    #[arg(long)]
    no_userns: bool,
    /// Install no system call filter
    #[arg(long)]
    no_seccomp: bool,
    /// Let set-user-id programs inside gain privileges
    #[arg(long)]
    allow_new_privileges: bool,
    /// Limit a resource of its program
    #[arg(long, value_name = "NAME=SOFT[:HARD]", value_parser = resource::ulimit)]
    ulimit: Vec<Ulimit>,
    /// Set a kernel parameter of its own namespaces
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse::key_value)]
    sysctl: Vec<(String, String)>,
}

impl SecurityArgs {
    fn apply(self, spec: &mut InstanceSpec) {
        let plain = |name: String| match name.to_ascii_uppercase() {
            name if name.starts_with("CAP_") => name[4..].to_owned(),
            name => name,
        };
        spec.cap_add = self.cap_add.into_iter().map(plain).collect();
        spec.cap_drop = self.cap_drop.into_iter().map(plain).collect();
        spec.devices = self.device;
        spec.user_namespace = !self.no_userns;
        spec.seccomp = !self.no_seccomp;
        spec.allow_new_privileges = self.allow_new_privileges;
        spec.ulimits = self.ulimit;
        spec.sysctls = self.sysctl.into_iter().collect();
    }
}

/// All that says what an instance is, but its image and command.
#[derive(Debug, Default, Args)]
pub struct SpecArgs {
    /// Its name; one is made up when not given
    #[arg(long)]
    pub name: Option<String>,
    /// Mark it
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = parse::label)]
    label: Vec<(String, String)>,
    /// Replace the entrypoint of the image; empty for none
    #[arg(long, value_name = "PROGRAM")]
    entrypoint: Option<String>,
    /// Signal that asks its program to end
    #[arg(long, value_name = "SIGNAL")]
    stop_signal: Option<String>,
    /// Time between asking its program to end and ending it
    #[arg(long, value_name = "TIME", value_parser = seconds)]
    stop_timeout: Option<f64>,
    #[command(flatten)]
    program: ProgramArgs,
    #[command(flatten)]
    machine: MachineArgs,
    #[command(flatten)]
    limits: LimitArgs,
    #[command(flatten)]
    network: NetworkArgs,
    #[command(flatten)]
    storage: StorageArgs,
    #[command(flatten)]
    health: HealthArgs,
    #[command(flatten)]
    security: SecurityArgs,
}

impl SpecArgs {
    /// The spec of an instance made from an image. A command replaces the image's.
    pub fn into_spec(
        self,
        kind: Kind,
        image: String,
        command: Vec<String>,
    ) -> Outcome<InstanceSpec> {
        let mut spec = InstanceSpec {
            kind,
            machine: self.machine.into_machine()?,
            image,
            command: (!command.is_empty()).then_some(command),
            entrypoint: self.entrypoint.map(|program| {
                if program.is_empty() {
                    Vec::new()
                } else {
                    vec![program]
                }
            }),
            env: self.program.environment()?,
            user: self.program.user(),
            workdir: self.program.workdir(),
            stop_signal: self.stop_signal,
            // Whole seconds on the wire; a part of one still leaves time to end.
            stop_timeout_s: self.stop_timeout.map(|seconds| seconds.ceil() as u32),
            labels: self.label.into_iter().collect(),
            read_only: self.storage.read_only,
            root_size: self.storage.root_size,
            network: self.network.network,
            address: self.network.ip.map(|address| address.to_string()),
            hostname: self.network.hostname,
            ..InstanceSpec::default()
        };
        spec.ports = self
            .network
            .publish
            .into_iter()
            .flat_map(|ports| ports.0)
            .collect();
        spec.mounts = [self.storage.volume, self.storage.mount, self.storage.tmpfs].concat();
        self.limits.apply(&mut spec);
        self.health.apply(&mut spec);
        self.security.apply(&mut spec);
        Ok(spec)
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        spec: SpecArgs,
        image: String,
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    }

    fn spec(words: &[&str]) -> serde_json::Value {
        let line = Line::try_parse_from([&["x"], words].concat()).unwrap();
        let made = line
            .spec
            .into_spec(Kind::Application, line.image, line.command);
        serde_json::to_value(made.unwrap()).unwrap()
    }

    #[test]
    fn nothing_but_the_image_is_asked_for_by_default() {
        let bare = serde_json::json!({"kind": "application", "image": "debian"});
        assert_eq!(spec(&["debian"]), bare);
    }

    #[test]
    fn files_for_the_guest_are_sent_as_what_is_in_them() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            path.to_str().unwrap().to_owned()
        };
        let data = file("user-data", "#cloud-config\n");
        let one = file("one.pub", "ssh-ed25519 A me\n");
        let more = file("more", "# mine\n\nssh-rsa B\n ssh-rsa C\n");
        let made = spec(&[
            "--vm",
            "--cloud-init",
            &data,
            "--ssh-key",
            &one,
            "--ssh-key",
            &more,
            "--ssh-user",
            "me",
            "debian",
        ]);
        let wanted = serde_json::json!({
            "accel": "auto", "user_data": "#cloud-config\n", "ssh_user": "me",
            "ssh_keys": ["ssh-ed25519 A me", "ssh-rsa B", "ssh-rsa C"],
        });
        assert_eq!(made["machine"], wanted);
        let empty = PathBuf::from(file("empty", "# nothing\n"));
        let error = keys(std::slice::from_ref(&empty)).unwrap_err();
        assert!(error.to_string().contains("empty"), "{error}");
        assert!(keys(&[empty.join("absent")]).is_err());
        let private = file("private", "-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n");
        let error = keys(&[private.into()]).unwrap_err();
        assert!(error.to_string().contains("private key"), "{error}");
    }

    #[test]
    fn every_flag_lands_in_its_field() {
        let made = spec(&[
            "--name",
            "web",
            "-l",
            "tier=front",
            "--entrypoint",
            "",
            "--stop-signal",
            "SIGQUIT",
            "--stop-timeout",
            "1m",
            "-e",
            "A=1",
            "-u",
            "1000:1000",
            "-w",
            "/srv",
            "--cpus",
            "1.5",
            "--cpu-weight",
            "50",
            "--cpuset",
            "0-1",
            "-m",
            "512M",
            "--memory-high",
            "400M",
            "--swap",
            "1G",
            "--pids",
            "99",
            "--io-weight",
            "10",
            "--io-read-bps",
            "1M",
            "--io-write-bps",
            "2M",
            "--io-read-iops",
            "3",
            "--io-write-iops",
            "4",
            "--net-ingress-bps",
            "5M",
            "--net-egress-bps",
            "6M",
            "--net-ingress-burst",
            "7K",
            "--net-egress-burst",
            "8K",
            "-p",
            "8080:80",
            "-p",
            "53/udp",
            "--network",
            "back",
            "--ip",
            "10.0.0.9",
            "--hostname",
            "h",
            "-v",
            "data:/d:ro",
            "--tmpfs",
            "/t",
            "--mount",
            "type=bind,source=/etc,target=/e",
            "--read-only",
            "--root-size",
            "5G",
            "--restart",
            "on-failure:3",
            "--health-cmd",
            "true",
            "--health-interval",
            "5s",
            "--cap-add",
            "cap_sys_time",
            "--cap-drop",
            "ALL",
            "--device",
            "/dev/fuse",
            "--no-userns",
            "--no-seccomp",
            "--allow-new-privileges",
            "--ulimit",
            "nofile=1:2",
            "--sysctl",
            "a.b=1",
            "debian",
            "sh",
            "-c",
            "exit 1",
            "--name",
        ]);
        let wanted = serde_json::json!({
            "kind": "application", "image": "debian", "command": ["sh", "-c", "exit 1", "--name"],
            "entrypoint": [], "env": {"A": "1"}, "user": "1000:1000", "workdir": "/srv",
            "stop_signal": "SIGQUIT", "stop_timeout_s": 60, "cpus": 1.5, "cpu_weight": 50,
            "cpu_set": "0-1", "memory": "512M", "memory_high": "400M", "swap": "1G", "pids": 99,
            "io": {"weight": 10, "read_bps": "1M", "write_bps": "2M", "read_iops": 3, "write_iops": 4},
            "net": {"ingress_bps": "5M", "egress_bps": "6M", "ingress_burst": "7K", "egress_burst": "8K"},
            "read_only": true, "cap_add": ["SYS_TIME"], "cap_drop": ["ALL"],
            "user_namespace": false, "seccomp": false, "allow_new_privileges": true,
            "devices": [{"host_path": "/dev/fuse"}],
            "ulimits": [{"name": "nofile", "soft": 1, "hard": 2}], "sysctls": {"a.b": "1"},
            "mounts": [
                {"type": "volume", "source": "data", "target": "/d", "read_only": true},
                {"type": "bind", "source": "/etc", "target": "/e"},
                {"type": "tmpfs", "target": "/t"},
            ],
            "network": "back", "address": "10.0.0.9",
            "ports": [
                {"host_port": 8080, "port": 80, "protocol": "tcp"},
                {"host_port": 53, "port": 53, "protocol": "udp"},
            ],
            "restart": "on-failure:3",
            "health": {"command": ["/bin/sh", "-c", "true"], "interval_s": 5.0, "timeout_s": 30.0,
                       "retries": 3, "start_period_s": 0.0},
            "labels": {"tier": "front"}, "hostname": "h", "root_size": "5G",
        });
        assert_eq!(made, wanted);
    }
}
