//! From a record to a guest: every word of the spec becomes a path, a number or a list.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use engine::{Guest, GuestDevice, GuestMount, GuestNetwork, GuestProcess, MountKind, Root};
use image::{Digest, RunConfig};
use model::{
    instance::{InstanceSpec, Kind, MountSource, NetworkMode},
    record::InstanceRecord,
};
use volume::{VolumeId, VolumeSpec};

use crate::{
    Node, NodeError, Paths, directory,
    machine::{USUAL_INIT, check_init},
    tables,
};

const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Capabilities a container has unless asked otherwise: those that do not reach beyond its
/// namespaces and that ordinary packages count on (see docs/security.md).
const DEFAULT_CAPABILITIES: [&str; 14] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "NET_RAW",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

/// What an init and its services need besides, each of it confined by the user namespace.
const SYSTEM_CAPABILITIES: [&str; 11] = [
    "AUDIT_CONTROL",
    "DAC_READ_SEARCH",
    "IPC_LOCK",
    "IPC_OWNER",
    "LEASE",
    "LINUX_IMMUTABLE",
    "NET_ADMIN",
    "NET_BROADCAST",
    "SYS_ADMIN",
    "SYS_NICE",
    "SYS_PTRACE",
];

impl Node {
    /// The guest of a record. Makes the volumes it mounts.
    pub(crate) async fn resolve(&self, record: &InstanceRecord) -> Result<Guest, NodeError> {
        let spec = &record.spec;
        let paths = &self.parts().paths;
        let (layers, image) = self.image(record)?;
        let machine = self.machine(record).await?;
        if machine.as_ref().is_some_and(|it| it.own_boot.is_none()) {
            let program = command(spec, &image);
            check_init(spec, program.first().map(String::as_str), &layers)?;
        }
        let directory = paths.instance(record.id);
        let mut mounts = Vec::new();
        for mount in &spec.mounts {
            let (kind, id_mapped) = match &mount.source {
                MountSource::Bind { path } => (bind(path)?, true),
                MountSource::Tmpfs { size } => (
                    MountKind::Tmpfs {
                        size_bytes: size.map(|size| size.0),
                    },
                    false,
                ),
                MountSource::Volume { name } => {
                    let source = self.volume(name.as_str(), &layers, &mount.target).await?;
                    (MountKind::Bind { source }, true)
                }
            };
            let (target, read_only) = (mount.target.clone(), mount.read_only);
            mounts.push(GuestMount {
                kind,
                target,
                read_only,
                id_mapped,
            });
        }
        mounts.extend(own_files(&directory, spec));
        Ok(Guest {
            id: record.id,
            generation: record.generation,
            machine,
            root: Root {
                layers,
                upper: directory::upper(&directory),
                work: directory::work(&directory),
                read_only: spec.security.read_only,
            },
            directory,
            // An init writes to its console: a terminal whose output is the log.
            process: process(
                record,
                &image,
                spec.process.terminal || spec.kind == Kind::System,
            )?,
            system: spec.kind == Kind::System,
            limits: spec.limits.clone(),
            capabilities: capabilities(spec, record.idmap.is_some()),
            seccomp: spec.security.seccomp,
            allow_new_privileges: spec.security.allow_new_privileges || spec.kind == Kind::System,
            idmap: record.idmap,
            mounts,
            devices: devices(spec),
            ulimits: spec.security.ulimits.clone(),
            sysctls: spec.security.sysctls.clone(),
            hostname: hostname(record),
            network: match spec.network {
                NetworkMode::Host => GuestNetwork::Host,
                _ => GuestNetwork::Own,
            },
            log: spec.log.clone(),
        })
    }

    /// The layers of a record's image, topmost first, and how to run it.
    fn image(&self, record: &InstanceRecord) -> Result<(Vec<PathBuf>, RunConfig), NodeError> {
        let images = &self.parts().images;
        let digest = image_digest(record)?;
        let failed = |source| NodeError::Image {
            image: record.spec.image.clone(),
            source,
        };
        let layers = images.layers(&digest).map_err(failed)?;
        let config = images.config(&digest).map_err(failed)?;
        Ok((layers, config.config))
    }

    /// The signal a record's image asks to be stopped with.
    pub(crate) fn image_stop_signal(&self, record: &InstanceRecord) -> Option<i32> {
        let (_, image) = self.image(record).ok()?;
        model::instance::spec::signal_number(&image.stop_signal)
    }

    /// The directory of a named volume, made and, when new, filled with what the image has where
    /// it is mounted.
    async fn volume(
        &self,
        name: &str,
        layers: &[PathBuf],
        target: &str,
    ) -> Result<PathBuf, NodeError> {
        let stored = tables::VOLUMES.get(&self.parts().store, name).await?;
        let size_bytes = stored
            .and_then(|entry| entry.value.spec.size)
            .map(|size| size.0);
        let id = VolumeId::new(volume::Kind::Named, name)
            .map_err(|error| NodeError::Unusable(error.to_string()))?;
        let pool = std::sync::Arc::clone(&self.parts().volumes);
        let (layers, target) = (layers.to_vec(), target.to_owned());
        let work = move || -> Result<PathBuf, NodeError> {
            let spec = VolumeSpec {
                size_bytes,
                uid: 0,
                gid: 0,
                mode: 0o755,
            };
            let info = pool.ensure(&id, &spec)?;
            for layer in &layers {
                let directory =
                    std::fs::File::open(layer).map_err(NodeError::file("open", layer))?;
                let inside = Path::new(&target);
                let fd = std::os::fd::AsFd::as_fd(&directory);
                if pool.populate(&id, fd, inside)? != volume::Populated::NoSource {
                    break;
                }
            }
            Ok(info.path)
        };
        tokio::task::spawn_blocking(work)
            .await
            .unwrap_or_else(|panic| {
                Err(NodeError::Unusable(format!(
                    "making the volume {name:?} failed: {panic}"
                )))
            })
    }
}

/// The image that was pinned when the instance was made.
pub(crate) fn image_digest(record: &InstanceRecord) -> Result<Digest, NodeError> {
    let digest = record
        .image_digest
        .as_deref()
        .and_then(|text| text.parse().ok());
    digest.ok_or_else(|| {
        let image = &record.spec.image;
        NodeError::Unusable(format!(
            "the record of this instance names no image for {image:?}"
        ))
    })
}

/// Another program for an instance, as a user asks for it.
#[derive(Debug, Clone, Default)]
pub struct ExecRequest {
    /// The program and its arguments.
    pub command: Vec<String>,
    /// Added to the instance's own environment.
    pub env: BTreeMap<String, String>,
    /// `user[:group]`; the instance's own when `None`.
    pub user: Option<String>,
    /// Absolute path inside; the instance's own when `None`.
    pub workdir: Option<String>,
    /// Whether it gets a terminal.
    pub terminal: bool,
    /// Whether standard input is sent.
    pub stdin: bool,
    /// Size of the terminal: rows, columns.
    pub size: Option<(u16, u16)>,
}

impl Node {
    /// Another program in the surroundings of the instance's own.
    ///
    /// # Errors
    /// When the image cannot be read.
    pub fn exec_process(
        &self,
        record: &InstanceRecord,
        asked: ExecRequest,
    ) -> Result<GuestProcess, NodeError> {
        let (_, image) = self.image(record)?;
        let mut own = process(record, &image, asked.terminal)?;
        for (key, value) in &asked.env {
            set_variable(&mut own.env, format!("{key}={value}"));
        }
        Ok(GuestProcess {
            args: asked.command,
            env: own.env,
            user: asked.user.or(own.user),
            cwd: asked.workdir.unwrap_or(own.cwd),
            terminal: asked.terminal,
            stdin: asked.stdin,
            size: asked.size,
        })
    }
}

fn bind(path: &str) -> Result<MountKind, NodeError> {
    let source = PathBuf::from(path);
    if source.exists() {
        return Ok(MountKind::Bind { source });
    }
    Err(NodeError::Unusable(format!(
        "the host has no {path} to mount; make it, or name a volume instead of a path"
    )))
}

/// The files Berth writes for an instance and mounts over those of its image.
fn own_files(directory: &Path, spec: &InstanceSpec) -> Vec<GuestMount> {
    let taken = |target: &str| spec.mounts.iter().any(|mount| mount.target == target);
    directory::OWN_FILES
        .iter()
        .map(|name| (directory::own_file(directory, name), format!("/etc/{name}")))
        .filter(|(_, target)| !taken(target))
        .map(|(source, target)| GuestMount {
            kind: MountKind::Bind { source },
            target,
            read_only: false,
            id_mapped: true,
        })
        .collect()
}

fn process(
    record: &InstanceRecord,
    image: &RunConfig,
    terminal: bool,
) -> Result<GuestProcess, NodeError> {
    let spec = &record.spec;
    let asked = &spec.process;
    let args = command(spec, image);
    if args.is_empty() {
        return Err(NodeError::Unusable(format!(
            "the image {:?} names no program; give a command",
            spec.image
        )));
    }
    let mut env = vec![PATH.to_owned(), format!("HOSTNAME={}", hostname(record))];
    if terminal {
        env.push("TERM=xterm-256color".to_owned());
    }
    if spec.kind == Kind::System && spec.machine.is_none() {
        // What systemd and others look at to know that they run in a container.
        env.push("container=berth".to_owned());
    }
    for variable in &image.env {
        set_variable(&mut env, variable.clone());
    }
    for (key, value) in &asked.env {
        set_variable(&mut env, format!("{key}={value}"));
    }
    let from_image = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    Ok(GuestProcess {
        args,
        env,
        user: asked.user.clone().or_else(|| from_image(&image.user)),
        cwd: asked
            .workdir
            .clone()
            .or_else(|| from_image(&image.working_dir))
            .unwrap_or_else(|| "/".to_owned()),
        terminal,
        // Who attaches to an init's console can log in there.
        stdin: asked.stdin || spec.kind == Kind::System,
        size: None,
    })
}

/// The program and its arguments: an entrypoint of the user's own drops the image's command.
fn command(spec: &InstanceSpec, image: &RunConfig) -> Vec<String> {
    let asked = &spec.process;
    let entrypoint = asked.entrypoint.as_ref().unwrap_or(&image.entrypoint);
    let usual: &[String] = if asked.entrypoint.is_some() {
        &[]
    } else {
        &image.cmd
    };
    let command = asked.command.as_deref().unwrap_or(usual);
    let args: Vec<String> = entrypoint.iter().chain(command).cloned().collect();
    if args.is_empty() && spec.kind == Kind::System {
        return vec![USUAL_INIT.to_owned()];
    }
    args
}

fn set_variable(env: &mut Vec<String>, variable: String) {
    let key = variable.split('=').next().unwrap_or_default();
    let same = |old: &String| old.split('=').next() == Some(key);
    match env.iter().position(same) {
        Some(index) => env[index] = variable,
        None => env.push(variable),
    }
}

fn capabilities(spec: &InstanceSpec, user_namespace: bool) -> Vec<String> {
    let bare = |text: &String| {
        let upper = text.to_ascii_uppercase();
        upper
            .strip_prefix("CAP_")
            .map_or(upper.clone(), str::to_owned)
    };
    let added: Vec<String> = spec.security.cap_add.iter().map(bare).collect();
    let dropped: Vec<String> = spec.security.cap_drop.iter().map(bare).collect();
    let all = |list: &[String]| list.iter().any(|capability| capability == "ALL");
    let mut usual = DEFAULT_CAPABILITIES.to_vec();
    if spec.kind == Kind::System && user_namespace {
        usual.extend(SYSTEM_CAPABILITIES);
    }
    model::instance::spec::CAPABILITIES
        .iter()
        .filter(|name| {
            let named = |list: &[String]| list.iter().any(|capability| capability == *name);
            let begins = all(&added) || (usual.contains(*name) && !all(&dropped));
            (begins && !named(&dropped)) || named(&added)
        })
        .map(|name| (*name).to_owned())
        .collect()
}

fn devices(spec: &InstanceSpec) -> Vec<GuestDevice> {
    let one = |device: &model::instance::DeviceSpec| GuestDevice {
        host_path: device.host_path.clone().into(),
        path: device.path.clone(),
        permissions: device.permissions.clone(),
    };
    spec.security.devices.iter().map(one).collect()
}

/// The host name inside.
pub(crate) fn hostname(record: &InstanceRecord) -> String {
    record
        .spec
        .hostname
        .clone()
        .unwrap_or_else(|| record.name.to_string())
}

impl Paths {
    /// Makes the directories every part counts on, readable by root only.
    ///
    /// # Errors
    /// When one cannot be made.
    pub fn make(&self) -> Result<(), NodeError> {
        use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
        let ours = [
            self.instances(),
            self.trash(),
            self.uploads(),
            self.guests(),
        ];
        for path in &ours {
            std::fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(path)
                .map_err(NodeError::file("make the directory", path))?;
        }
        // Only what is inside matters to others: the socket has its own mode.
        std::fs::set_permissions(self.run_dir(), std::fs::Permissions::from_mode(0o755))
            .map_err(NodeError::file("set the mode of", self.run_dir()))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use model::instance::{Limits, LogSpec, MachineSpec, ProcessSpec, RestartPolicy, Security};

    use super::*;

    fn spec(kind: Kind) -> InstanceSpec {
        InstanceSpec {
            kind,
            machine: None,
            image: "debian".to_owned(),
            process: ProcessSpec::default(),
            limits: Limits::default(),
            security: Security::default(),
            mounts: Vec::new(),
            network: NetworkMode::None,
            ports: Vec::new(),
            restart: RestartPolicy::No,
            health: None,
            labels: Default::default(),
            hostname: None,
            log: LogSpec::default(),
            root_size: None,
            remove_on_exit: false,
        }
    }

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn a_users_entrypoint_drops_the_images_command() {
        let image = RunConfig {
            entrypoint: words(&["/entry"]),
            cmd: words(&["serve"]),
            ..RunConfig::default()
        };
        let mut asked = spec(Kind::Application);
        assert_eq!(command(&asked, &image), ["/entry", "serve"]);
        asked.process.command = Some(words(&["check"]));
        assert_eq!(command(&asked, &image), ["/entry", "check"]);
        asked.process.entrypoint = Some(words(&["sh"]));
        assert_eq!(command(&asked, &image), ["sh", "check"]);
        asked.process.command = None;
        assert_eq!(command(&asked, &image), ["sh"]);
        assert_eq!(
            command(&spec(Kind::System), &RunConfig::default()),
            ["/sbin/init"]
        );
    }

    #[test]
    fn capabilities_are_dropped_and_added_by_name_or_all() {
        let mut asked = spec(Kind::Application);
        assert_eq!(capabilities(&asked, true).len(), DEFAULT_CAPABILITIES.len());
        asked.security.cap_drop = words(&["ALL"]);
        asked.security.cap_add = words(&["cap_chown"]);
        assert_eq!(capabilities(&asked, true), ["CHOWN"]);
        asked.security.cap_drop = words(&["SYS_ADMIN"]);
        asked.security.cap_add = words(&["ALL"]);
        let most = capabilities(&asked, true);
        assert_eq!(most.len(), model::instance::spec::CAPABILITIES.len() - 1);
        assert!(!most.contains(&"SYS_ADMIN".to_owned()));
        let system = spec(Kind::System);
        assert!(capabilities(&system, true).contains(&"SYS_ADMIN".to_owned()));
        assert!(!capabilities(&system, false).contains(&"SYS_ADMIN".to_owned()));
    }

    #[test]
    fn a_machine_is_no_system_if_its_image_has_no_init() {
        let layer = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(layer.path().join("usr/sbin")).unwrap();
        let layers = [layer.path().to_owned()];
        let mut asked = spec(Kind::System);
        assert!(
            check_init(&asked, None, &layers).is_ok(),
            "a container says so itself"
        );
        asked.machine = Some(MachineSpec::default());
        let error = check_init(&asked, Some("sh"), &layers).unwrap_err();
        assert!(error.to_string().contains("has no init"), "{error}");
        assert!(check_init(&asked, Some("/sbin/init"), &layers).is_err());
        assert!(check_init(&asked, Some("/opt/own"), &layers).is_ok());
        asked.kind = Kind::Application;
        assert!(check_init(&asked, Some("sh"), &layers).is_ok());
        asked.kind = Kind::System;
        // A link counts: it leads to where it will be inside.
        std::os::unix::fs::symlink("/nowhere", layer.path().join("usr/sbin/init")).unwrap();
        assert!(check_init(&asked, Some("sh"), &layers).is_ok());
    }

    #[test]
    fn later_variables_replace_earlier_ones() {
        let mut env = words(&["A=1", "B=2"]);
        set_variable(&mut env, "A=3".to_owned());
        set_variable(&mut env, "C=4".to_owned());
        assert_eq!(env, ["A=3", "B=2", "C=4"]);
    }
}
