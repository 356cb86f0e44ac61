//! What this host can and cannot do: looked at once, when the daemon starts.
//!
//! Each check says what was found and, where something is missing, what that means and what to
//! change. Nothing here stops the daemon: what does not need the missing part goes on.

use std::{
    path::Path,
    process::{Command, Stdio},
};

use api::{Check, Verdict};
use serde::Deserialize;
use volume::Pool;

/// Longest answer of the machines' program that is read.
const MAX_ANSWER: usize = 64 << 10;
/// Tools that recipes run, the package each comes with, and what for.
const TOOLS: [(&str, &str, &str); 3] = [
    ("mmdebstrap", "mmdebstrap", "make Debian images"),
    ("mkfs.ext4", "e2fsprogs", "make disks of virtual machines"),
    ("dpkg-deb", "dpkg", "make kernels of virtual machines"),
];

/// Everything that was looked at, and how machines are executed.
pub(super) struct Findings {
    pub(super) checks: Vec<Check>,
    pub(super) accel: Option<model::instance::Accel>,
}

/// Looks at the host.
pub(super) fn examine(vmm: &Path, cgroups: Check, pool: &dyn Pool) -> Findings {
    let answer = ask(vmm);
    let (machines, accel) = machines(vmm, answer.as_ref());
    let mut checks = vec![cgroups, machines];
    checks.extend(answer.map(disks));
    checks.push(volumes(pool));
    checks.extend(TOOLS.map(tool));
    Findings { checks, accel }
}

fn check(name: &str, verdict: Verdict, found: impl Into<String>, advice: Option<String>) -> Check {
    Check {
        name: name.to_owned(),
        verdict,
        found: found.into(),
        advice,
    }
}

/// What the machines' program says of the host.
#[derive(Deserialize)]
struct Answer {
    kvm: Kvm,
    io_uring: IoUring,
}

#[derive(Deserialize)]
struct Kvm {
    usable: bool,
    mips: Option<f64>,
    reason: Option<String>,
}

#[derive(Deserialize)]
struct IoUring {
    usable: bool,
    reason: Option<String>,
}

fn ask(vmm: &Path) -> Option<Answer> {
    let asked = Command::new(vmm)
        .arg("probe")
        .env_clear()
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output();
    let answer = asked
        .ok()
        .filter(|output| output.stdout.len() <= MAX_ANSWER)?;
    serde_json::from_slice(&answer.stdout).ok()
}

fn machines(vmm: &Path, answer: Option<&Answer>) -> (Check, Option<model::instance::Accel>) {
    const NAME: &str = "virtual machines";
    let Some(Answer { kvm, .. }) = answer else {
        let found = format!("{} does not answer", vmm.display());
        let advice = "reinstall Berth; containers work without".to_owned();
        return (check(NAME, Verdict::Missing, found, Some(advice)), None);
    };
    if kvm.usable {
        let speed = kvm.mips.unwrap_or_default() / 1000.0;
        let found = format!("by the processor (KVM), {speed:.1} billion instructions a second");
        return (
            check(NAME, Verdict::Ok, found, None),
            Some(model::instance::Accel::Kvm),
        );
    }
    let found = "on the software CPU";
    let advice = format!(
        "slower than by the processor, which cannot be used: {}",
        kvm.reason.as_deref().unwrap_or_default()
    );
    (
        check(NAME, Verdict::Limited, found, Some(advice)),
        Some(model::instance::Accel::Soft),
    )
}

/// How machines' disks are read: one request of a queue after another works everywhere.
fn disks(answer: Answer) -> Check {
    const NAME: &str = "disks of virtual machines";
    let IoUring { usable, reason } = answer.io_uring;
    if usable {
        let found = "reads overlap by io_uring";
        return check(NAME, Verdict::Ok, found, None);
    }
    let advice = format!(
        "slower where much is read at once; io_uring cannot be used: {}",
        reason.unwrap_or_default()
    );
    let found = "reads follow one another in each queue";
    check(NAME, Verdict::Limited, found, Some(advice))
}

fn volumes(pool: &dyn Pool) -> Check {
    const NAME: &str = "sizes of volumes";
    match pool.capabilities().quota {
        volume::Enforcement::Unsupported { reason } => {
            let found = "recorded, not enforced";
            check(NAME, Verdict::Limited, found, Some(reason.to_string()))
        }
        _ => check(NAME, Verdict::Ok, "enforced", None),
    }
}

fn tool((program, package, purpose): (&str, &str, &str)) -> Check {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/sbin", "/sbin"].map(std::path::PathBuf::from);
    let found = std::env::split_paths(&path)
        .chain(usual)
        .map(|directory| directory.join(program))
        .find(|path| path.exists());
    match found {
        Some(path) => check(program, Verdict::Ok, path.display().to_string(), None),
        None => {
            let advice = format!("needed to {purpose}: install the package {package}");
            check(program, Verdict::Missing, "not installed", Some(advice))
        }
    }
}
