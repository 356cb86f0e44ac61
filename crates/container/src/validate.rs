//! What a [`Spec`] must satisfy before anything is done for it. Pure: looks at nothing but the value.
//!
//! Called by [`crate::bundle`] and, for specs built in memory, by `create`. Checks what the
//! specification calls an error, what would reach outside the container (host sysctls), what this
//! runtime refuses, and bounds every list. Whether the kernel agrees is found out later.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::spec::{Hook, IdMapping, Linux, Mount, NamespaceKind, Process, Spec};

/// Most entries in any list of a configuration.
const MAX_ENTRIES: usize = 4096;
/// Longest path, the kernel's `PATH_MAX`.
const MAX_PATH: usize = 4095;
/// Most lines the kernel takes in `uid_map`.
const MAX_MAPPINGS: usize = 340;

/// A field that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("field `{field}`: {why}")]
pub struct Invalid {
    /// JSON path of the field.
    pub field: String,
    /// What is wrong and what would be right.
    pub why: String,
}

type Check = Result<(), Invalid>;

fn bad(field: impl Into<String>, why: impl Into<String>) -> Check {
    Err(Invalid {
        field: field.into(),
        why: why.into(),
    })
}

/// Checks a whole configuration.
///
/// # Errors
/// The first field that cannot be used.
pub fn spec(spec: &Spec) -> Check {
    version(&spec.oci_version)?;
    if let Some(process) = &spec.process {
        self::process(process, "process.")?;
    }
    match &spec.root {
        Some(root) => path("root.path", &root.path, false)?,
        None => {
            return bad(
                "root",
                "it is missing; a container needs a root file system",
            );
        }
    }
    count("mounts", spec.mounts.len())?;
    for (i, mount) in spec.mounts.iter().enumerate() {
        self::mount(&format!("mounts[{i}]"), mount)?;
    }
    let hooks = &spec.hooks;
    for (name, list) in [
        ("prestart", &hooks.prestart),
        ("createRuntime", &hooks.create_runtime),
        ("createContainer", &hooks.create_container),
        ("startContainer", &hooks.start_container),
        ("poststart", &hooks.poststart),
        ("poststop", &hooks.poststop),
    ] {
        count(&format!("hooks.{name}"), list.len())?;
        for (i, hook) in list.iter().enumerate() {
            self::hook(&format!("hooks.{name}[{i}]"), hook)?;
        }
    }
    linux(&spec.linux)?;
    for (name, value) in [
        ("hostname", &spec.hostname),
        ("domainname", &spec.domainname),
    ] {
        if value.is_empty() {
            continue;
        }
        if !spec.linux.has(NamespaceKind::Uts) {
            return bad(
                name,
                "it would change the host's; add a namespace of type \"uts\"",
            );
        }
        if value.len() > 64 || value.contains('\0') {
            return bad(name, "the kernel takes at most 64 bytes, none of them NUL");
        }
    }
    Ok(())
}

fn version(version: &str) -> Check {
    if version.is_empty() {
        return bad(
            "ociVersion",
            "it is missing; write the version the bundle follows, e.g. \"1.3.0\"",
        );
    }
    let mut parts = version.splitn(3, '.');
    let number = |part: Option<&str>| part.and_then(|p| p.parse::<u32>().ok());
    let (major, minor) = (number(parts.next()), number(parts.next()));
    let patch = parts
        .next()
        .and_then(|p| p.split(['-', '+']).next())
        .and_then(|p| p.parse::<u32>().ok());
    match (major, minor, patch) {
        (Some(1), Some(_), Some(_)) => Ok(()),
        (Some(0), Some(_), Some(_)) | (Some(2..), Some(_), Some(_)) => bad(
            "ociVersion",
            format!("{version} is not supported; this runtime speaks 1.x"),
        ),
        _ => bad(
            "ociVersion",
            format!("{version:?} is not a version of the form 1.3.0"),
        ),
    }
}

/// Checks a process description; `prefix` is put before the names of its fields.
///
/// # Errors
/// The first field that cannot be used.
pub fn process(process: &Process, prefix: &str) -> Check {
    let field = |name: &str| format!("{prefix}{name}");
    if process.args.is_empty() {
        return bad(field("args"), "it is empty; name the program to run");
    }
    if process.args[0].is_empty() {
        return bad(field("args[0]"), "it is empty; name the program to run");
    }
    for (name, list) in [("args", &process.args), ("env", &process.env)] {
        if list.iter().any(|text| text.contains('\0')) {
            return bad(field(name), "an entry contains a NUL byte");
        }
    }
    path(&field("cwd"), &process.cwd, true)?;
    if process.user.additional_gids.len() > 65536 {
        return bad(
            field("user.additionalGids"),
            "the kernel takes at most 65536",
        );
    }
    if process.user.umask.is_some_and(|mask| mask > 0o777) {
        return bad(field("user.umask"), "it must be at most 0777 (511)");
    }
    if process
        .oom_score_adj
        .is_some_and(|score| !(-1000..=1000).contains(&score))
    {
        return bad(field("oomScoreAdj"), "it must lie between -1000 and 1000");
    }
    for (i, limit) in process.rlimits.iter().enumerate() {
        let name = field(&format!("rlimits[{i}]"));
        if crate::limits::resource(&limit.kind).is_none() {
            return bad(
                format!("{name}.type"),
                format!("{:?} is not a resource limit of Linux", limit.kind),
            );
        }
        if limit.soft > limit.hard {
            return bad(
                format!("{name}.soft"),
                format!("{} is above hard ({})", limit.soft, limit.hard),
            );
        }
        if process.rlimits[..i]
            .iter()
            .any(|other| other.kind == limit.kind)
        {
            return bad(
                format!("{name}.type"),
                format!("{} is given twice", limit.kind),
            );
        }
    }
    if process
        .io_priority
        .as_ref()
        .is_some_and(|io| !(0..=7).contains(&io.priority))
    {
        return bad(field("ioPriority.priority"), "it must lie between 0 and 7");
    }
    if let Some(scheduler) = &process.scheduler {
        crate::limits::sched_attr(scheduler).map_err(|why| Invalid {
            field: field("scheduler"),
            why,
        })?;
    }
    Ok(())
}

fn mount(field: &str, mount: &Mount) -> Check {
    path(&format!("{field}.destination"), &mount.destination, false)?;
    if mount.source.as_os_str().len() > MAX_PATH || mount.source.as_os_str().as_bytes().contains(&0)
    {
        return bad(
            format!("{field}.source"),
            "it is longer than 4095 bytes or contains NUL",
        );
    }
    count(&format!("{field}.options"), mount.options.len())?;
    if mount.uid_mappings.is_empty() != mount.gid_mappings.is_empty() {
        return bad(
            format!("{field}.uidMappings"),
            "give uidMappings and gidMappings together",
        );
    }
    mappings(&format!("{field}.uidMappings"), &mount.uid_mappings)?;
    mappings(&format!("{field}.gidMappings"), &mount.gid_mappings)?;
    crate::mounts::options::parse(mount)
        .map(drop)
        .map_err(|why| Invalid {
            field: format!("{field}.options"),
            why,
        })
}

fn hook(field: &str, hook: &Hook) -> Check {
    path(&format!("{field}.path"), &hook.path, true)?;
    if hook.timeout.is_some_and(|seconds| seconds <= 0) {
        return bad(
            format!("{field}.timeout"),
            "it must be greater than zero seconds",
        );
    }
    if hook
        .args
        .iter()
        .chain(&hook.env)
        .any(|text| text.contains('\0'))
    {
        return bad(field, "an argument or variable contains a NUL byte");
    }
    Ok(())
}

fn linux(linux: &Linux) -> Check {
    namespaces(linux)?;
    mappings("linux.uidMappings", &linux.uid_mappings)?;
    mappings("linux.gidMappings", &linux.gid_mappings)?;
    count("linux.devices", linux.devices.len())?;
    for (i, device) in linux.devices.iter().enumerate() {
        let field = format!("linux.devices[{i}]");
        path(&format!("{field}.path"), &device.path, true)?;
        if !matches!(device.kind.as_str(), "c" | "u" | "b" | "p") {
            return bad(
                format!("{field}.type"),
                format!("{:?} is none of c, u, b, p", device.kind),
            );
        }
        let fits = |n: i64| (0..=i64::from(u32::MAX)).contains(&n);
        if device.kind != "p" && !(fits(device.major) && fits(device.minor)) {
            return bad(
                format!("{field}.major"),
                "device numbers must be positive 32-bit numbers",
            );
        }
    }
    // Read-only ones may be relative to the root, as every other runtime takes them.
    for (name, list, absolute) in [
        ("maskedPaths", &linux.masked_paths, true),
        ("readonlyPaths", &linux.readonly_paths, false),
    ] {
        count(&format!("linux.{name}"), list.len())?;
        for (i, entry) in list.iter().enumerate() {
            path(&format!("linux.{name}[{i}]"), entry, absolute)?;
        }
    }
    if !matches!(
        linux.rootfs_propagation.as_str(),
        "" | "shared"
            | "rshared"
            | "slave"
            | "rslave"
            | "private"
            | "rprivate"
            | "unbindable"
            | "runbindable"
    ) {
        return bad(
            "linux.rootfsPropagation",
            format!(
                "{:?} is none of shared, slave, private, unbindable",
                linux.rootfs_propagation
            ),
        );
    }
    if linux.intel_rdt.is_some() {
        return bad(
            "linux.intelRdt",
            "Intel RDT is not supported by this runtime; remove it",
        );
    }
    if !linux.net_devices.is_empty() {
        return bad(
            "linux.netDevices",
            "moving interfaces is not done by this runtime; move them into a network namespace and name its path",
        );
    }
    if let Some(personality) = &linux.personality {
        if !matches!(personality.domain.as_str(), "LINUX" | "LINUX32") {
            return bad("linux.personality.domain", "it must be LINUX or LINUX32");
        }
        if !personality.flags.is_empty() {
            return bad(
                "linux.personality.flags",
                "the specification defines none yet",
            );
        }
    }
    if let Some(policy) = &linux.memory_policy {
        crate::limits::memory_policy(policy)
            .map(drop)
            .map_err(|why| Invalid {
                field: "linux.memoryPolicy".into(),
                why,
            })?;
    }
    for clock in linux.time_offsets.keys() {
        if !matches!(clock.as_str(), "boottime" | "monotonic") {
            return bad(
                format!("linux.timeOffsets.{clock}"),
                "clocks are boottime and monotonic",
            );
        }
    }
    if !linux.time_offsets.is_empty() && !linux.is_new(NamespaceKind::Time) {
        return bad(
            "linux.timeOffsets",
            "it needs a new namespace of type \"time\"",
        );
    }
    linux
        .sysctl
        .iter()
        .try_for_each(|(name, value)| sysctl(linux, name, value))
}

fn namespaces(linux: &Linux) -> Check {
    for (i, namespace) in linux.namespaces.iter().enumerate() {
        let field = format!("linux.namespaces[{i}]");
        if linux.namespaces[..i]
            .iter()
            .any(|other| other.kind == namespace.kind)
        {
            return bad(
                field,
                format!("a namespace of kind {:?} is given twice", namespace.kind),
            );
        }
        if !namespace.path.as_os_str().is_empty() {
            path(&format!("{field}.path"), &namespace.path, true)?;
        }
    }
    let mapped = !linux.uid_mappings.is_empty() || !linux.gid_mappings.is_empty();
    if mapped && !linux.has(NamespaceKind::User) {
        return bad(
            "linux.uidMappings",
            "mappings need a namespace of type \"user\"",
        );
    }
    if linux.is_new(NamespaceKind::User)
        && (linux.uid_mappings.is_empty() || linux.gid_mappings.is_empty())
    {
        return bad(
            "linux.uidMappings",
            "a new user namespace needs uidMappings and gidMappings",
        );
    }
    Ok(())
}

fn mappings(field: &str, list: &[IdMapping]) -> Check {
    if list.len() > MAX_MAPPINGS {
        return bad(
            field,
            format!("the kernel takes at most {MAX_MAPPINGS} ranges"),
        );
    }
    for (i, map) in list.iter().enumerate() {
        let fits = |first: u32| first.checked_add(map.size).is_some();
        if map.size == 0 || !fits(map.container_id) || !fits(map.host_id) {
            return bad(
                format!("{field}[{i}]"),
                "its size is zero or it runs past the largest id",
            );
        }
        let overlaps = |a: u32, b: u32, size: u32| {
            a < b.saturating_add(size) && b < a.saturating_add(map.size)
        };
        if list[..i].iter().any(|o| {
            overlaps(map.container_id, o.container_id, o.size)
                || overlaps(map.host_id, o.host_id, o.size)
        }) {
            return bad(format!("{field}[{i}]"), "it overlaps an earlier range");
        }
    }
    Ok(())
}

/// Only parameters of a namespace that the container has for itself may be set.
fn sysctl(linux: &Linux, name: &str, value: &str) -> Check {
    let field = format!("linux.sysctl.{name}");
    let dotted = name.replace('/', ".");
    let kind = match dotted.as_str() {
        "kernel.msgmax"
        | "kernel.msgmnb"
        | "kernel.msgmni"
        | "kernel.sem"
        | "kernel.shmall"
        | "kernel.shmmax"
        | "kernel.shmmni"
        | "kernel.shm_rmid_forced" => NamespaceKind::Ipc,
        "kernel.hostname" | "kernel.domainname" => NamespaceKind::Uts,
        other if other.starts_with("fs.mqueue.") => NamespaceKind::Ipc,
        other if other.starts_with("net.") => NamespaceKind::Network,
        other if other.starts_with("user.") => NamespaceKind::User,
        _ => {
            return bad(
                field,
                "it belongs to no namespace, so setting it would change the host",
            );
        }
    };
    if !linux.has(kind) {
        return bad(
            field,
            format!("it would change the host; add a namespace of kind {kind:?}"),
        );
    }
    if dotted.split('.').any(|part| part.is_empty()) || name.contains("..") || name.contains('\0') {
        return bad(field, "it is not the name of a kernel parameter");
    }
    if value.len() > 4096 {
        return bad(field, "its value is longer than 4096 bytes");
    }
    Ok(())
}

fn path(field: &str, path: &Path, absolute: bool) -> Check {
    let bytes = path.as_os_str().as_bytes();
    if bytes.is_empty() {
        return bad(field, "it is missing or empty");
    }
    if bytes.len() > MAX_PATH || bytes.contains(&0) {
        return bad(field, "it is longer than 4095 bytes or contains NUL");
    }
    if absolute && !path.is_absolute() {
        return bad(field, format!("{} is not an absolute path", path.display()));
    }
    Ok(())
}

fn count(field: &str, len: usize) -> Check {
    if len > MAX_ENTRIES {
        return bad(
            field,
            format!("it has {len} entries, more than the {MAX_ENTRIES} accepted"),
        );
    }
    Ok(())
}

impl Linux {
    /// Whether the container has a namespace of this kind for itself, new or joined.
    pub fn has(&self, kind: NamespaceKind) -> bool {
        self.namespaces
            .iter()
            .any(|namespace| namespace.kind == kind)
    }

    /// Whether a new namespace of this kind is made.
    pub fn is_new(&self, kind: NamespaceKind) -> bool {
        self.namespaces
            .iter()
            .any(|ns| ns.kind == kind && ns.path.as_os_str().is_empty())
    }

    /// The path of the namespace of this kind that is joined.
    pub fn joined(&self, kind: NamespaceKind) -> Option<&Path> {
        self.namespaces
            .iter()
            .find(|ns| ns.kind == kind && !ns.path.as_os_str().is_empty())
            .map(|ns| ns.path.as_path())
    }
}
