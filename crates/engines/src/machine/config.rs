//! What a machine is made of, and what its guest is told: the files `berth-vmm` and the agent read.
//!
//! Written before each start, read once. Versions are checked by whoever reads.

use std::{fs, io, path::Path};

use ::agent::config::{Config, File, Interface, Mount, Root, Source, Ssh, Start};
use engine::{Customization, Guest, GuestMachine, GuestMount, MountKind};
use image::vm::{Seed, SeedInterface};
use model::instance::Accel;
use serde_json::{Value, json};

use super::{limits, session};

/// Where `/dev/kvm` is open, for a machine that is executed by it.
const KVM_DESCRIPTOR: i32 = 3;
/// Version of the machine's description.
const VERSION: u32 = 1;
/// Where jail and host meet, inside.
pub(super) const INSIDE: &str = "/vm";
/// Where the kernel is, inside.
pub(super) const KERNEL: &str = "/kernel";
/// Where the initial file system is, inside.
pub(super) const INITRD: &str = "/initrd";
/// Where the root disk is, inside.
pub(super) const DISK: &str = "/disk.img";
/// Where the disk with the kernel's modules is, inside.
pub(super) const MODULES: &str = "/modules.img";
/// Where the instance's logs are, inside.
pub(super) const LOG: &str = "/log";
/// Below which the host's folders are, inside.
const SHARES: &str = "/shares";
/// The machine's description, in the shared directory.
pub(super) const FILE: &str = "vm.json";
/// The socket to the guest's ports, in the shared directory.
pub(super) const SOCKET: &str = "vsock";
/// The socket of the machine's process, in the shared directory.
pub(super) const CONTROL: &str = "control";
/// The seed disk, in the shared directory.
const SEED: &str = "seed.img";
/// The archive that tells the guest what it is, in the shared directory.
const GUEST_ARCHIVE: &str = "guest.cpio";

/// The guest's context id. Each machine has a socket of its own, so all may have the same.
const CID: u32 = 3;
/// Serial of the root disk, by which the guest finds it.
pub(super) const DISK_SERIAL: &str = "berth-root";
/// What carries the guest's frames, in the jail.
pub(super) const INTERFACE: &str = "eth0";
/// Serial of the seed disk.
const SEED_SERIAL: &str = "berth-seed";
/// Serial of the disk with the kernel's modules.
const MODULES_SERIAL: &str = "berth-modules";

/// Kernel parameters of every guest: nothing is probed that is known, nothing mitigated that a
/// software CPU does not have, ciphers are not tested against themselves at every boot (a quarter of the
/// time to init), and whatever ends the kernel ends the machine.
const COMMAND_LINE: &str = "console=ttyS0 reboot=k panic=-1 tsc=reliable \
     no_timer_check mitigations=off random.trust_cpu=on i8042.noaux i8042.nomux i8042.dumbkbd \
     8250.nr_uarts=1 audit=0 cryptomgr.notests";
/// What the kernel starts: the agent as the init of our initial file system, or before the init of
/// another one.
const OUR_INIT: &str = "rdinit=/init";
const BEFORE_INIT: &str = "rdinit=/berth/agent";

/// The name of a file that is shared alone.
const FILE_NAME: &str = "file";

/// A folder or file of the host that the guest mounts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Share<'a> {
    /// What the guest mounts it by.
    tag: String,
    /// On the host.
    pub(super) source: &'a Path,
    pub(super) read_only: bool,
    /// It is a file, and the only one of the folder the guest mounts.
    file: bool,
}

impl Share<'_> {
    /// The folder that is served, in the jail.
    fn folder(&self) -> String {
        format!("{SHARES}/{}", self.tag)
    }

    /// Where it is in the jail itself.
    pub(super) fn inside(&self) -> String {
        match self.file {
            true => format!("{}/{FILE_NAME}", self.folder()),
            false => self.folder(),
        }
    }
}

/// The folders and files of the host among a guest's mounts.
pub(super) fn shares(guest: &Guest) -> Vec<Share<'_>> {
    let mounts = guest.mounts.iter().enumerate();
    mounts
        .filter_map(|(index, mount)| share(guest, index, mount))
        .collect()
}

fn share<'a>(guest: &Guest, index: usize, mount: &'a GuestMount) -> Option<Share<'a>> {
    let MountKind::Bind { source } = &mount.kind else {
        return None;
    };
    // The host's own files for the guest are written there.
    (!source.starts_with(&guest.directory)).then(|| Share {
        tag: format!("mount{index}"),
        source,
        read_only: mount.read_only,
        file: source.is_file(),
    })
}

/// Writes what is in the shared directory before the machine starts.
pub(super) fn write(
    guest: &Guest,
    machine: &GuestMachine,
    accel: Accel,
    shared: &Path,
) -> io::Result<()> {
    let told = told(guest, machine).to_json();
    let archive = match &machine.own_boot {
        None => image::vm::config_archive(&told),
        Some(own) => image::vm::agent_archive(&told, &fs::read(&own.agent)?),
    };
    fs::write(shared.join(GUEST_ARCHIVE), archive)?;
    if let Some(seed) = &machine.seed {
        fs::write(shared.join(SEED), self::seed(guest, machine, seed).disk()?)?;
    }
    let text = serde_json::to_vec_pretty(&description(guest, machine, accel))?;
    fs::write(shared.join(FILE), text)
}

/// What of a description follows from limits.
const LIMITED: [&str; 6] = [
    "memory_bytes",
    "vcpus",
    "pinning",
    "disks",
    "nets",
    "shares",
];

/// Describes a machine anew by the limits it has now, of which it was prepared for others and not started
/// yet. Whether they are others.
pub(super) fn renew(guest: &Guest, machine: &GuestMachine, shared: &Path) -> io::Result<bool> {
    let path = shared.join(FILE);
    let mut described: Value = serde_json::from_slice(&fs::read(&path)?)?;
    // What executes it was chosen, and is open for it.
    let mut now = description(guest, machine, machine.accel);
    let mut others = false;
    for field in LIMITED {
        others |= described[field] != now[field];
        described[field] = now[field].take();
    }
    if others {
        fs::write(path, serde_json::to_vec_pretty(&described)?)?;
    }
    Ok(others)
}

/// What a machine was started with, and keeps.
#[derive(Debug, serde::Deserialize)]
pub(super) struct Started {
    pub(super) memory_bytes: u64,
    pub(super) vcpus: u32,
    nets: Vec<serde::de::IgnoredAny>,
    shares: Vec<Tagged>,
}

#[derive(Debug, serde::Deserialize)]
struct Tagged {
    tag: String,
}

impl Started {
    /// Reads it from the shared directory.
    pub(super) fn read(shared: &Path) -> io::Result<Self> {
        let text = fs::read(shared.join(FILE))?;
        Ok(serde_json::from_slice(&text)?)
    }

    /// Whether it has a network card.
    pub(super) fn is_networked(&self) -> bool {
        !self.nets.is_empty()
    }

    /// What its folders of the host are called.
    pub(super) fn shares(&self) -> impl Iterator<Item = &str> {
        self.shares.iter().map(|it| &*it.tag)
    }
}

fn description(guest: &Guest, machine: &GuestMachine, accel: Accel) -> Value {
    let inside = |name: &str| format!("{INSIDE}/{name}");
    let line = match (&machine.own_boot, &machine.initrd) {
        (None, _) => format!("{COMMAND_LINE} {OUR_INIT}"),
        (Some(own), Some(_)) => format!("{COMMAND_LINE} {BEFORE_INIT} {}", own.command_line),
        // Its kernel mounts the root itself, which an initial file system would keep it from.
        (Some(own), None) => format!("{COMMAND_LINE} {}", own.command_line),
    };
    let line = format!("{line} {}", machine.append);
    let initrd: Vec<String> = match &machine.initrd {
        Some(_) => vec![INITRD.to_owned(), inside(GUEST_ARCHIVE)],
        None => Vec::new(),
    };
    let nets: Vec<Value> = machine
        .interface
        .iter()
        .map(|interface| {
            json!({
                "interface": INTERFACE,
                "mac": interface.mac,
                "mtu": interface.mtu,
                "receive_rate": limits::ingress(&guest.limits),
                "transmit_rate": limits::egress(&guest.limits),
            })
        })
        .collect();
    let mut disks = vec![json!({
        "id": DISK_SERIAL,
        "path": DISK,
        "read_rate": limits::reads(&guest.limits),
        "write_rate": limits::writes(&guest.limits),
    })];
    if machine.seed.is_some() {
        disks.push(json!({ "id": SEED_SERIAL, "path": inside(SEED), "read_only": true }));
    }
    if machine.modules.is_some() {
        disks.push(json!({ "id": MODULES_SERIAL, "path": MODULES, "read_only": true }));
    }
    // A system's output is its console; a program's output is its own, and the kernel's apart.
    let (stdio, console) = if guest.system {
        (json!("console"), json!({ "socket": inside("console") }))
    } else {
        let log = format!("{LOG}/kernel.log");
        (
            json!({ "program": session::program(&guest.process) }),
            json!({ "log": log, "log_bytes": guest.log.max_bytes }),
        )
    };
    let shares: Vec<Value> = shares(guest)
        .iter()
        .map(|it| {
            json!({
                "tag": it.tag,
                "path": it.folder(),
                "read_only": it.read_only,
                "read_rate": limits::reads(&guest.limits),
                "write_rate": limits::writes(&guest.limits),
            })
        })
        .collect();
    json!({
        "version": VERSION,
        "name": guest.hostname,
        "memory_bytes": machine.memory_bytes,
        "vcpus": machine.vcpus,
        "accel": accel,
        "kvm_descriptor": (accel == Accel::Kvm).then_some(KVM_DESCRIPTOR),
        "kernel": KERNEL,
        "initrd": initrd,
        "command_line": line.trim(),
        "disks": disks,
        "nets": nets,
        "shares": shares,
        "vsock": { "cid": CID, "socket": inside(SOCKET) },
        "console": console,
        "balloon": true,
        "pinning": limits::pinning(&guest.limits, machine.vcpus),
        "control": inside(CONTROL),
        "stdio": stdio,
    })
}

fn told(guest: &Guest, machine: &GuestMachine) -> Config {
    let root = Root {
        source: match machine.own_boot {
            Some(_) => Source::Own,
            None => Source::Disk {
                serial: DISK_SERIAL.to_owned(),
                file_system: "ext4".to_owned(),
            },
        },
        changes: None,
        read_only: guest.root.read_only,
    };
    let start = if machine.own_boot.is_some() {
        Start::Beside
    } else if guest.system {
        // A bare word is the program of an image that is none of a system: the guest says so.
        let init = guest.process.args.first().cloned();
        Start::System {
            init: init.filter(|init| init.starts_with('/')),
        }
    } else {
        Start::Idle
    };
    Config {
        interfaces: machine.interface.iter().map(interface).collect(),
        mounts: modules(machine).chain(mounts(guest)).collect(),
        files: own_files(guest),
        sysctls: guest.sysctls.clone().into_iter().collect(),
        ssh: machine.seed.as_ref().and_then(ssh),
        // What cloud-init mounts the seed with.
        modules: machine.seed.iter().map(|_| "vfat".to_owned()).collect(),
        ..Config::new(&guest.hostname, root, start)
    }
}

/// What cloud-init in the guest is told.
fn seed(guest: &Guest, machine: &GuestMachine, given: &Customization) -> Seed {
    Seed {
        instance_id: guest.id.to_string(),
        hostname: guest.hostname.clone(),
        user_data: given.user_data.clone(),
        ssh_keys: given.ssh_keys.clone(),
        interface: machine.interface.as_ref().map(|it| SeedInterface {
            mac: it.mac,
            addresses: it.addresses.iter().map(ToString::to_string).collect(),
            gateways: it.gateways.clone(),
            nameservers: it.nameservers.clone(),
            mtu: it.mtu,
        }),
    }
}

/// The keys the agent lets in, where no cloud-init does.
fn ssh(given: &Customization) -> Option<Ssh> {
    (!given.ssh_keys.is_empty()).then(|| Ssh {
        user: given.ssh_user.clone(),
        keys: given.ssh_keys.clone(),
    })
}

fn interface(interface: &engine::Interface) -> Interface {
    let mac = interface.mac.map(|byte| format!("{byte:02x}"));
    Interface {
        mac: mac.join(":"),
        addresses: interface
            .addresses
            .iter()
            .map(ToString::to_string)
            .collect(),
        gateways: interface.gateways.clone(),
        mtu: interface.mtu,
    }
}

/// The modules of the guest's kernel.
fn modules(machine: &GuestMachine) -> impl Iterator<Item = Mount> {
    machine.modules.iter().map(|modules| Mount {
        source: Source::Disk {
            serial: MODULES_SERIAL.to_owned(),
            file_system: "ext4".to_owned(),
        },
        file: None,
        target: modules.target.clone(),
        read_only: true,
    })
}

/// Memory and folders, in the order asked for: one may be mounted in another.
fn mounts(guest: &Guest) -> impl Iterator<Item = Mount> {
    guest
        .mounts
        .iter()
        .enumerate()
        .filter_map(|(index, mount)| {
            let (source, file) = match mount.kind {
                MountKind::Tmpfs { size_bytes } => (Source::Memory { size_bytes }, None),
                MountKind::Bind { .. } => {
                    let Share { tag, file, .. } = share(guest, index, mount)?;
                    (Source::Share { tag }, file.then(|| FILE_NAME.to_owned()))
                }
            };
            Some(Mount {
                source,
                file,
                target: mount.target.clone(),
                read_only: mount.read_only,
            })
        })
}

/// Files the host wrote for the guest, such as `/etc/hosts`: mounted in containers, written here.
fn own_files(guest: &Guest) -> Vec<File> {
    let files = guest.mounts.iter().filter_map(|mount| match &mount.kind {
        MountKind::Bind { source } if source.starts_with(&guest.directory) => Some(File {
            path: mount.target.clone(),
            content: fs::read_to_string(source).ok()?,
            mode: 0o644,
        }),
        _ => None,
    });
    files.collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::{collections::BTreeMap, path::PathBuf};

    use engine::{GuestNetwork, GuestProcess};
    use model::{InstanceId, instance::LogSpec};

    use super::*;

    fn guest(system: bool) -> (Guest, GuestMachine) {
        let machine = GuestMachine {
            vcpus: 2,
            memory_bytes: 256 << 20,
            accel: Accel::Soft,
            kernel: "/k".into(),
            initrd: Some("/i".into()),
            append: "quiet".to_owned(),
            disk: "/d".into(),
            own_boot: None,
            modules: None,
            interface: Some(engine::Interface {
                mac: [2, 0, 0, 0, 0, 1],
                mtu: None,
                addresses: vec!["10.77.0.2/20".parse().unwrap()],
                gateways: vec!["10.77.0.1".parse().unwrap()],
                nameservers: vec!["10.77.0.1".parse().unwrap()],
            }),
            seed: None,
        };
        let guest = Guest {
            id: "01a1f98c-ac8a-7458-8b1d-875239f62899"
                .parse::<InstanceId>()
                .unwrap(),
            generation: 1,
            machine: Some(machine.clone()),
            directory: "/instances/x".into(),
            root: engine::Root {
                layers: Vec::new(),
                upper: "/u".into(),
                work: "/w".into(),
                read_only: false,
            },
            process: GuestProcess {
                args: vec!["sh".to_owned()],
                cwd: "/".to_owned(),
                terminal: system,
                ..GuestProcess::default()
            },
            system,
            limits: Default::default(),
            capabilities: Vec::new(),
            seccomp: true,
            allow_new_privileges: false,
            idmap: None,
            mounts: Vec::new(),
            devices: Vec::new(),
            ulimits: Vec::new(),
            sysctls: BTreeMap::new(),
            hostname: "box".to_owned(),
            network: GuestNetwork::Own,
            log: LogSpec::default(),
        };
        (guest, machine)
    }

    #[test]
    fn the_machines_program_reads_what_is_written_for_it() {
        for system in [false, true] {
            let (guest, machine) = guest(system);
            let shared = tempfile::tempdir().unwrap();
            write(&guest, &machine, Accel::Soft, shared.path()).unwrap();
            let text = fs::read(shared.path().join(FILE)).unwrap();
            let read = vmm::VmConfig::parse(&text).unwrap();
            assert_eq!(read.vcpus, 2);
            assert!(read.command_line.ends_with(" quiet"));
            assert_eq!(read.stdio == vmm::config::Stdio::Console, system);
            let started = Started::read(shared.path()).unwrap();
            assert_eq!((started.memory_bytes, started.vcpus), (256 << 20, 2));
            assert!(started.is_networked() && started.shares().next().is_none());
        }
    }

    #[test]
    fn limits_that_change_before_the_start_are_those_it_starts_with() {
        let (mut guest, mut machine) = guest(true);
        let shared = tempfile::tempdir().unwrap();
        write(&guest, &machine, Accel::Soft, shared.path()).unwrap();
        machine.accel = Accel::Auto;
        assert!(!renew(&guest, &machine, shared.path()).unwrap());
        guest.limits.io.read_iops = Some(100);
        guest.limits.net.egress_bps = Some(1000);
        (machine.vcpus, machine.memory_bytes) = (3, 512 << 20);
        assert!(renew(&guest, &machine, shared.path()).unwrap());
        let text = fs::read(shared.path().join(FILE)).unwrap();
        let read = vmm::VmConfig::parse(&text).unwrap();
        assert_eq!(read.disks[0].read_rate.operations_per_second, 100);
        assert_eq!(read.nets[0].transmit_rate.bytes_per_second, 1000);
        assert_eq!((read.vcpus, read.memory_bytes), (3, 512 << 20));
        let described: Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(described["accel"], "soft");
        assert!(!renew(&guest, &machine, shared.path()).unwrap());
    }

    #[test]
    fn folders_are_shared_and_the_hosts_own_files_written() {
        let (mut guest, machine) = guest(false);
        let shared = tempfile::tempdir().unwrap();
        guest.directory = shared.path().join("instance");
        fs::create_dir(&guest.directory).unwrap();
        fs::write(guest.directory.join("hosts"), "::1 localhost").unwrap();
        let mount = |kind, target: &str| GuestMount {
            kind,
            target: target.to_owned(),
            read_only: true,
            id_mapped: true,
        };
        let bind = |source: PathBuf| MountKind::Bind { source };
        let alone = shared.path().join("alone");
        fs::write(&alone, "").unwrap();
        guest.mounts = vec![
            mount(MountKind::Tmpfs { size_bytes: None }, "/tmp"),
            mount(bind("/srv/data".into()), "/tmp/data"),
            mount(bind(guest.directory.join("hosts")), "/etc/hosts"),
            mount(bind(alone), "/etc/alone"),
        ];
        let told = told(&guest, &machine);
        assert_eq!(told.mounts.len(), 3);
        assert_eq!(told.mounts[2].file.as_deref(), Some(FILE_NAME));
        let tag = "mount1".to_owned();
        assert_eq!(told.mounts[1].source, Source::Share { tag });
        assert_eq!(told.files.len(), 1);
        assert_eq!(told.files[0].content, "::1 localhost");
        write(&guest, &machine, Accel::Soft, shared.path()).unwrap();
        let text = fs::read(shared.path().join(FILE)).unwrap();
        let read = vmm::VmConfig::parse(&text).unwrap().shares;
        assert_eq!(read.len(), 2);
        assert_eq!(read[0].tag, "mount1");
        assert_eq!(read[0].path, Path::new("/shares/mount1"));
        assert!(read[0].read_only);
        let started = Started::read(shared.path()).unwrap();
        assert_eq!(started.shares().collect::<Vec<_>>(), ["mount1", "mount3"]);
    }

    #[test]
    fn a_seed_is_a_second_disk_that_is_only_read_and_its_keys_go_to_the_agent() {
        let (guest, machine) = guest(true);
        let key = "ssh-ed25519 AAAA me".to_owned();
        let machine = GuestMachine {
            modules: Some(engine::KernelModules {
                disk: "/m".into(),
                target: "/lib/modules/6".to_owned(),
            }),
            seed: Some(Customization {
                user_data: Some("#cloud-config\n".to_owned()),
                ssh_keys: vec![key.clone()],
                ssh_user: Some("me".to_owned()),
            }),
            ..machine
        };
        let shared = tempfile::tempdir().unwrap();
        write(&guest, &machine, Accel::Soft, shared.path()).unwrap();
        let text = fs::read(shared.path().join(FILE)).unwrap();
        let read = vmm::VmConfig::parse(&text).unwrap();
        let [root, seed, modules] = &read.disks[..] else {
            panic!("{:?}", read.disks);
        };
        assert!(!root.read_only && seed.read_only && modules.read_only);
        assert!(shared.path().join(SEED).exists());
        let told = told(&guest, &machine);
        assert_eq!(told.mounts[0].target, "/lib/modules/6");
        let ssh = told.ssh.unwrap();
        assert_eq!((ssh.user.as_deref(), ssh.keys), (Some("me"), vec![key]));
        let seed = super::seed(&guest, &machine, machine.seed.as_ref().unwrap());
        assert_eq!(seed.instance_id, guest.id.to_string());
        assert_eq!(seed.interface.unwrap().addresses, ["10.77.0.2/20"]);
    }

    #[test]
    fn a_disk_that_boots_by_itself_has_the_agent_beside_it() {
        let (guest, machine) = guest(true);
        let shared = tempfile::tempdir().unwrap();
        let agent = shared.path().join("agent");
        fs::write(&agent, b"the agent").unwrap();
        let mut machine = GuestMachine {
            own_boot: Some(engine::OwnBoot {
                command_line: "root=/dev/vda1 ro".to_owned(),
                agent,
            }),
            ..machine
        };
        let read = |machine: &GuestMachine| {
            write(&guest, machine, Accel::Soft, shared.path()).unwrap();
            let text = fs::read(shared.path().join(FILE)).unwrap();
            vmm::VmConfig::parse(&text).unwrap()
        };
        let with = read(&machine);
        let line = with.command_line;
        assert!(
            line.contains("rdinit=/berth/agent root=/dev/vda1 ro quiet"),
            "{line}"
        );
        assert_eq!(with.initrd.len(), 2);
        let archive = fs::read(shared.path().join(GUEST_ARCHIVE)).unwrap();
        assert!(archive.windows(9).any(|it| it == b"the agent"));
        assert_eq!(told(&guest, &machine).root.source, Source::Own);
        machine.initrd = None;
        let without = read(&machine);
        assert!(without.initrd.is_empty());
        assert!(!without.command_line.contains("rdinit"));
    }

    #[test]
    fn a_bare_word_is_no_init() {
        let (guest, machine) = guest(true);
        let Start::System { init } = told(&guest, &machine).start else {
            panic!("a system starts as one");
        };
        assert_eq!(init, None);
    }
}
