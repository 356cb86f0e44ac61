//! A virtual machine as the container its process runs in.
//!
//! The jail holds the program, the files it works with, and nothing else: its root is empty and
//! read only, its user is nobody outside, its network namespace has one interface that carries the
//! guest's frames. `berth-vmm` narrows itself further once it has opened what it needs.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use engine::{
    EngineError, Guest, GuestMachine, GuestMount, GuestNetwork, GuestProcess, MountKind, Root,
};
use model::instance::Accel;

use super::{config, limits};

/// The program, inside.
const PROGRAM: &str = "/berth-vmm";
/// What serving folders that can be written takes.
const SHARING: [&str; 6] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "SETGID",
    "SETUID",
];
/// The hardware. Its device is opened for the process, which could not: in a user namespace nobody owns
/// it, and the jail shows no devices.
const KVM: &str = "/dev/kvm";

/// Makes the directory in which jail and host meet, and says which container the machine's process
/// runs in, and which files of the host that finds open, from descriptor 3 on. `vmm` is the program,
/// `accel` what executes where nothing is chosen, `dir` where the guest's files of this run are.
pub(crate) fn jail(
    guest: &Guest,
    machine: &GuestMachine,
    vmm: &Path,
    accel: Option<Accel>,
    dir: &Path,
) -> Result<(Guest, Vec<PathBuf>), EngineError> {
    if !vmm.exists() {
        return Err(EngineError::Refused {
            message: format!(
                "virtual machines are run by {}, which is missing; reinstall Berth",
                vmm.display()
            ),
        });
    }
    let failed = |source: io::Error| EngineError::Failed {
        id: guest.id,
        action: "writing what the machine is made of".to_owned(),
        source: source.into(),
    };
    let shared = super::directory(dir);
    let mut make = fs::DirBuilder::new();
    make.recursive(true).mode(0o700);
    make.create(&shared).map_err(failed)?;
    let accel = match machine.accel {
        Accel::Auto => accel.unwrap_or(Accel::Soft),
        chosen => chosen,
    };
    config::write(guest, machine, accel, &shared).map_err(failed)?;
    let nothing = dir.join("nothing");
    make.create(nothing.join("tmp")).map_err(failed)?;
    let mut mounts = vec![
        bind(vmm, PROGRAM, true),
        bind(&shared, config::INSIDE, false),
        bind(&machine.kernel, config::KERNEL, true),
        bind(&machine.disk, config::DISK, false),
    ];
    let shares = config::shares(guest);
    for share in &shares {
        mounts.push(bind_share(share)?);
    }
    if let Some(initrd) = &machine.initrd {
        mounts.push(bind(initrd, config::INITRD, true));
    }
    if let Some(modules) = &machine.modules {
        mounts.push(bind(&modules.disk, config::MODULES, true));
    }
    let log = guest.directory.join("log");
    mounts.push(bind(&log, config::LOG, false));
    let descriptors = match accel {
        Accel::Kvm => vec![PathBuf::from(KVM)],
        _ => Vec::new(),
    };
    let jailed = Guest {
        machine: None,
        root: Root {
            layers: vec![nothing],
            upper: guest.root.upper.clone(),
            work: guest.root.work.clone(),
            read_only: true,
        },
        process: process(guest),
        system: false,
        limits: limits::of_group(&guest.limits, machine.memory_bytes, machine.vcpus),
        capabilities: capabilities(&shares),
        // It filters itself, each thread by what it is for; the usual filter would only keep it from
        // changing to a root of its own.
        seccomp: false,
        allow_new_privileges: false,
        mounts,
        devices: Vec::new(),
        ulimits: Vec::new(),
        sysctls: quiet(),
        network: GuestNetwork::Own,
        ..guest.clone()
    };
    Ok((jailed, descriptors))
}

/// Over its own namespaces only: to open the interface, and to lock itself up, by which it gives all
/// of them up; but where folders are shared, to be all users of the guest in them, which the thread
/// keeps that serves them.
fn capabilities(shares: &[config::Share<'_>]) -> Vec<String> {
    let mut names = vec!["NET_RAW", "SETPCAP", "SYS_ADMIN"];
    if shares.iter().any(|it| it.read_only) {
        names.push("DAC_READ_SEARCH");
    }
    if shares.iter().any(|it| !it.read_only) {
        names.extend(SHARING);
    }
    names.into_iter().map(str::to_owned).collect()
}

/// A folder or file of the host for the guest.
fn bind_share(share: &config::Share<'_>) -> Result<GuestMount, EngineError> {
    if share.source.is_dir() || share.source.is_file() {
        return Ok(bind(share.source, &share.inside(), share.read_only));
    }
    Err(EngineError::Refused {
        message: format!(
            "{} is neither a folder nor a file: a virtual machine has a kernel of its own, to which \
             it would mean nothing",
            share.source.display()
        ),
    })
}

fn bind(source: &Path, target: &str, read_only: bool) -> GuestMount {
    GuestMount {
        kind: MountKind::Bind {
            source: source.to_owned(),
        },
        target: target.to_owned(),
        read_only,
        id_mapped: true,
    }
}

fn process(guest: &Guest) -> GuestProcess {
    let file = |name: &str| format!("{}/{name}", config::INSIDE);
    GuestProcess {
        args: vec![
            PROGRAM.to_owned(),
            "--config".to_owned(),
            file(config::FILE),
        ],
        env: Vec::new(),
        user: None,
        cwd: "/".to_owned(),
        ..guest.process.clone()
    }
}

/// The jail's own kernel must not answer for the guest, whose frames and address it sees.
fn quiet() -> BTreeMap<String, String> {
    ["all", "default"]
        .map(|which| {
            let key = format!("net.ipv6.conf.{which}.disable_ipv6");
            (key, "1".to_owned())
        })
        .into()
}
