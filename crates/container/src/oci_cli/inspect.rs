//! `state`, `list`, `ps`, `events`, `features`: commands that only look.

use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use super::logger::rfc3339;
use super::{Call, Exit, Result, print};
use crate::container::Container;
use crate::spec::{OCI_VERSION, Status};
use crate::{caps, hooks};

/// `state`.
pub(super) fn state(call: &Call) -> Result<Exit> {
    let container = call.container()?;
    let mut value = serde_json::to_value(container.state())?;
    value["created"] = rfc3339(container.record().created_unix).into();
    value["pid"] = container.state().pid.into();
    print(&format!("{}\n", serde_json::to_string_pretty(&value)?))?;
    Ok(Exit::SUCCESS)
}

/// `list`.
pub(super) fn list(call: &Call) -> Result<Exit> {
    let values = &call.parsed.values;
    let ids = call.runtime.ids()?;
    // One that vanished meanwhile, or is still being made, is not listed.
    let containers: Vec<Container> = ids
        .iter()
        .filter_map(|id| call.runtime.open(id).ok())
        .collect();
    if values.has("quiet") {
        let text: String = containers.iter().map(|c| format!("{}\n", c.id())).collect();
        print(&text)?;
        return Ok(Exit::SUCCESS);
    }
    let rows: Vec<Value> = containers.iter().map(row).collect();
    match values.get("format").unwrap_or("table") {
        "json" => print(&format!("{}\n", Value::Array(rows)))?,
        "table" => print(&table(&rows))?,
        other => return Err(format!("--format: {other:?} is neither table nor json").into()),
    }
    Ok(Exit::SUCCESS)
}

fn row(container: &Container) -> Value {
    let record = container.record();
    let state = container.state();
    json!({
        "ociVersion": OCI_VERSION,
        "id": state.id,
        "pid": state.pid,
        "status": state.status,
        "bundle": state.bundle,
        "created": rfc3339(record.created_unix),
        "annotations": state.annotations,
        "owner": record.owner_uid.to_string(),
    })
}

fn table(rows: &[Value]) -> String {
    let head = ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"].map(str::to_owned);
    let cell = |row: &Value, key: &str| match &row[key] {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let mut lines = vec![head];
    lines.extend(rows.iter().map(|row| {
        ["id", "pid", "status", "bundle", "created", "owner"].map(|key| cell(row, key))
    }));
    let width = |i: usize| lines.iter().map(|line| line[i].len()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..6).map(width).collect();
    let mut text = String::new();
    for line in &lines {
        let cells: Vec<String> = line
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:<width$}"))
            .collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// `ps`.
pub(super) fn ps(call: &Call) -> Result<Exit> {
    let container = call.container()?;
    let pids = container.pids()?;
    match call.parsed.values.get("format").unwrap_or("table") {
        "json" => print(&format!("{}\n", serde_json::to_string(&pids)?))?,
        "table" => {
            let given = &call.parsed.positionals[1..];
            let options: Vec<&str> = if given.is_empty() {
                vec!["-ef"]
            } else {
                given.iter().map(String::as_str).collect()
            };
            let output = Command::new("ps")
                .args(&options)
                .output()
                .map_err(|error| {
                    format!("cannot run ps ({error}); install procps, or use --format json")
                })?;
            if !output.status.success() {
                return Err(String::from_utf8_lossy(&output.stderr)
                    .trim()
                    .to_owned()
                    .into());
            }
            print(&only_pids(&String::from_utf8_lossy(&output.stdout), &pids)?)?;
        }
        other => return Err(format!("--format: {other:?} is neither table nor json").into()),
    }
    Ok(Exit::SUCCESS)
}

/// The lines of a ps table whose PID column is one of `pids`.
fn only_pids(table: &str, pids: &[i32]) -> Result<String> {
    let mut lines = table.lines();
    let head = lines.next().unwrap_or_default();
    let column = head
        .split_whitespace()
        .position(|name| name == "PID")
        .ok_or("ps printed no PID column; use options that do")?;
    let mut text = format!("{head}\n");
    for line in lines {
        let pid = line
            .split_whitespace()
            .nth(column)
            .and_then(|field| field.parse::<i32>().ok());
        if pid.is_some_and(|pid| pids.contains(&pid)) {
            text.push_str(line);
            text.push('\n');
        }
    }
    Ok(text)
}

/// `events`.
pub(super) fn events(call: &Call) -> Result<Exit> {
    let values = &call.parsed.values;
    let interval = values
        .get("interval")
        .map(seconds)
        .transpose()?
        .unwrap_or(Duration::from_secs(5));
    let container = call.container()?;
    loop {
        if container.status() == Status::Stopped {
            return Err(format!(
                "container {} is stopped; it has no usage to show",
                container.id()
            )
            .into());
        }
        let line =
            json!({ "type": "stats", "id": container.id(), "data": usage(&container.stats()?) });
        print(&format!("{line}\n"))?;
        if values.has("stats") {
            return Ok(Exit::SUCCESS);
        }
        let Some(pidfd) = container.pidfd() else {
            return Ok(Exit::SUCCESS);
        };
        if hooks::wait_readable(&pidfd, Some(interval))? {
            return Ok(Exit::SUCCESS);
        }
    }
}

/// `5s`, `500ms`, `1m` or plain seconds.
fn seconds(text: &str) -> Result<Duration> {
    let number = |digits: &str, unit_ms: u64| {
        digits
            .parse::<u64>()
            .ok()
            .filter(|n| *n > 0)
            .and_then(|n| n.checked_mul(unit_ms))
    };
    let ms = if let Some(digits) = text.strip_suffix("ms") {
        number(digits, 1)
    } else if let Some(digits) = text.strip_suffix('m') {
        number(digits, 60_000)
    } else {
        number(text.strip_suffix('s').unwrap_or(text), 1000)
    };
    ms.map(Duration::from_millis)
        .ok_or_else(|| format!("--interval: {text:?} is not a duration such as 5s").into())
}

/// Usage in the form runc prints and its callers parse.
fn usage(stats: &cgroup::Stats) -> Value {
    let cpu = stats.cpu.clone().unwrap_or_default();
    let memory = stats.memory.clone().unwrap_or_default();
    let io = |read: fn(&cgroup::IoStats) -> u64,
              write: fn(&cgroup::IoStats) -> u64|
     -> Vec<Value> {
        stats
            .io
            .iter()
            .flat_map(|io| {
                [("Read", read(io)), ("Write", write(io))]
                    .map(|(op, value)| json!({ "major": io.major, "minor": io.minor, "op": op, "value": value }))
            })
            .collect()
    };
    json!({
        "cpu": {
            "usage": { "total": cpu.usage_ns, "kernel": cpu.system_ns, "user": cpu.user_ns },
            "throttling": {
                "periods": cpu.periods,
                "throttledPeriods": cpu.throttled_periods,
                "throttledTime": cpu.throttled_ns,
            },
        },
        "memory": {
            "usage": { "usage": memory.current_bytes, "max": memory.peak_bytes, "limit": memory.limit_bytes },
            "raw": {
                "anon": memory.anon_bytes,
                "file": memory.file_bytes,
                "inactive_file": memory.inactive_file_bytes,
                "pgmajfault": memory.major_faults,
                "oom_kill": memory.oom_kills,
            },
        },
        "pids": {
            "current": stats.pids.as_ref().map_or(0, |pids| pids.current),
            "limit": stats.pids.as_ref().and_then(|pids| pids.limit),
        },
        "blkio": {
            "ioServiceBytesRecursive": io(|s| s.read_bytes, |s| s.write_bytes),
            "ioServicedRecursive": io(|s| s.read_ops, |s| s.write_ops),
        },
    })
}

/// `features` (features.md and features-linux.md of the specification).
pub(super) fn features(_call: &Call) -> Result<Exit> {
    let value = json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": OCI_VERSION,
        "hooks": ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"],
        "mountOptions": MOUNT_OPTIONS,
        "linux": {
            "namespaces": ["cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts"],
            "capabilities": caps::names().collect::<Vec<_>>(),
            "cgroup": { "v1": true, "v2": true, "systemd": false, "systemdUser": false, "rdma": true },
            "seccomp": {
                "enabled": true,
                "actions": ["SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO", "SCMP_ACT_KILL", "SCMP_ACT_KILL_PROCESS",
                    "SCMP_ACT_KILL_THREAD", "SCMP_ACT_LOG", "SCMP_ACT_NOTIFY", "SCMP_ACT_TRACE", "SCMP_ACT_TRAP"],
                "operators": ["SCMP_CMP_EQ", "SCMP_CMP_GE", "SCMP_CMP_GT", "SCMP_CMP_LE", "SCMP_CMP_LT",
                    "SCMP_CMP_MASKED_EQ", "SCMP_CMP_NE"],
                "archs": seccomp::Arch::ALL.iter().map(|arch| format!("{arch:?}")).collect::<Vec<_>>(),
                "knownFlags": ["SECCOMP_FILTER_FLAG_TSYNC", "SECCOMP_FILTER_FLAG_LOG",
                    "SECCOMP_FILTER_FLAG_SPEC_ALLOW", "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"],
                "supportedFlags": ["SECCOMP_FILTER_FLAG_TSYNC", "SECCOMP_FILTER_FLAG_LOG",
                    "SECCOMP_FILTER_FLAG_SPEC_ALLOW", "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"],
            },
            "apparmor": { "enabled": true },
            "selinux": { "enabled": true },
            "intelRdt": { "enabled": false },
            "memoryPolicy": {
                "modes": ["MPOL_DEFAULT", "MPOL_BIND", "MPOL_INTERLEAVE", "MPOL_WEIGHTED_INTERLEAVE",
                    "MPOL_PREFERRED", "MPOL_PREFERRED_MANY", "MPOL_LOCAL"],
                "flags": ["MPOL_F_NUMA_BALANCING", "MPOL_F_RELATIVE_NODES", "MPOL_F_STATIC_NODES"],
            },
            "mountExtensions": { "idmap": { "enabled": true } },
            "netDevices": { "enabled": false },
        },
        "annotations": { "cloud.berth.oci.version": env!("CARGO_PKG_VERSION") },
    });
    print(&format!("{}\n", serde_json::to_string_pretty(&value)?))?;
    Ok(Exit::SUCCESS)
}

/// Options this runtime understands itself; the rest goes to the file system.
const MOUNT_OPTIONS: &[&str] = &[
    "async",
    "atime",
    "bind",
    "defaults",
    "dev",
    "diratime",
    "exec",
    "idmap",
    "noatime",
    "nodev",
    "nodiratime",
    "noexec",
    "norelatime",
    "nostrictatime",
    "nosuid",
    "nosymfollow",
    "private",
    "ratime",
    "rbind",
    "rdev",
    "rdiratime",
    "relatime",
    "remount",
    "rexec",
    "ridmap",
    "rnoatime",
    "rnodev",
    "rnodiratime",
    "rnoexec",
    "rnorelatime",
    "rnostrictatime",
    "rnosuid",
    "rnosymfollow",
    "ro",
    "rprivate",
    "rrelatime",
    "rro",
    "rrw",
    "rshared",
    "rslave",
    "rstrictatime",
    "rsuid",
    "rsymfollow",
    "runbindable",
    "rw",
    "shared",
    "slave",
    "strictatime",
    "suid",
    "symfollow",
    "tmpcopyup",
    "unbindable",
];
