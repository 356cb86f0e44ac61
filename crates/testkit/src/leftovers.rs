//! What a daemon and its guests left on the host: the proof that nothing leaks.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use crate::Netns;

/// How deep control groups of a daemon may be below a hierarchy's root.
const MAX_DEPTH: usize = 4;

/// Everything that carries a directory in its command line or mount point, or a prefix in its name:
/// processes, mounts, control groups, and in the namespace links and nftables tables. Sorted, for
/// people to read.
#[must_use]
pub fn leftovers(directory: &Path, prefix: &str, netns: &Netns) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let directory = directory.to_string_lossy();
    found.extend(processes(&directory));
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mounts = mounts.lines().filter_map(|line| line.split(' ').nth(4));
    found.extend(
        mounts
            .filter(|point| point.starts_with(&*directory))
            .map(|point| format!("mount {point}")),
    );
    let mut groups = Vec::new();
    control_groups(Path::new("/sys/fs/cgroup"), prefix, 0, &mut groups);
    found.extend(
        groups
            .iter()
            .map(|path| format!("cgroup {}", path.display())),
    );
    found.extend(links(prefix, netns));
    found.extend(tables(prefix, netns));
    found
}

fn processes(directory: &str) -> Vec<String> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let pid = entry.file_name().into_string().ok()?;
            pid.parse::<u32>().ok()?;
            let words = fs::read(entry.path().join("cmdline")).ok()?;
            let line = String::from_utf8_lossy(&words).replace('\0', " ");
            line.contains(directory)
                .then(|| format!("process {pid}: {line}"))
        })
        .collect()
}

fn control_groups(below: &Path, prefix: &str, depth: usize, found: &mut Vec<PathBuf>) {
    if depth > MAX_DEPTH {
        return;
    }
    for entry in fs::read_dir(below).into_iter().flatten().flatten() {
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        let name = entry.file_name().to_string_lossy().into_owned();
        let ours = name
            .strip_prefix(prefix)
            .is_some_and(|rest| !rest.starts_with(|next: char| next.is_ascii_alphanumeric()));
        if ours {
            found.push(entry.path());
        } else {
            control_groups(&entry.path(), prefix, depth + 1, found);
        }
    }
}

fn links(prefix: &str, netns: &Netns) -> Vec<String> {
    let output = netns.command("ip").args(["-o", "link"]).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    text.unwrap_or_default()
        .lines()
        .filter_map(|line| line.split(": ").nth(1))
        .filter(|name| name.starts_with(prefix))
        .map(|name| format!("link {name}"))
        .collect()
}

fn tables(prefix: &str, netns: &Netns) -> Vec<String> {
    let output = netns.command("nft").args(["list", "tables"]).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    text.unwrap_or_default()
        .lines()
        .filter(|line| {
            line.split(' ')
                .nth(2)
                .is_some_and(|name| name.starts_with(prefix))
        })
        .map(ToOwned::to_owned)
        .collect()
}
