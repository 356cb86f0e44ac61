//! What a daemon and its guests have on the host: the proof that nothing leaks.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use crate::Netns;

/// How deep the group of a daemon may be below a hierarchy's root.
const MAX_DEPTH: usize = 3;

/// Everything of one daemon that is not its own durable data: processes whose command line names
/// its directory or that are in its control groups, mounts below the directory, groups below that of
/// the prefix, in the namespace all links but loopback and all nftables tables, files in the run
/// directory but the daemon's own, and directories of instances. Sorted, for people to read.
///
/// The groups of the prefix itself stay while the host runs, empty.
#[must_use]
pub fn leftovers(directory: &Path, prefix: &str, netns: &Netns) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let text = directory.to_string_lossy();
    found.extend(processes(&text, prefix));
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    // A test may have mounted a disk of its own there.
    let root = format!("{text}/root");
    let mounts = mounts.lines().filter_map(|line| line.split(' ').nth(4));
    found.extend(
        mounts
            .filter(|point| point.starts_with(&*text) && **point != root)
            .map(|point| format!("mount {point}")),
    );
    for top in groups(prefix) {
        let below = directories(&top);
        found.extend(
            below
                .iter()
                .map(|path| format!("cgroup {}", path.display())),
        );
    }
    found.extend(links(netns));
    found.extend(tables(netns));
    found.extend(files(directory));
    found
}

/// The groups of a prefix in each hierarchy: that of its guests, that of its shims.
pub(crate) fn groups(prefix: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let names = [prefix.to_owned(), format!("{prefix}-shims")];
    search(Path::new("/sys/fs/cgroup"), &names, 0, &mut found);
    found
}

fn search(below: &Path, names: &[String], depth: usize, found: &mut Vec<PathBuf>) {
    for path in directories(below) {
        if path
            .file_name()
            .is_some_and(|name| names.iter().any(|one| name == one.as_str()))
        {
            found.push(path);
        } else if depth < MAX_DEPTH {
            search(&path, names, depth + 1, found);
        }
    }
}

pub(crate) fn directories(below: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(below).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

fn processes(directory: &str, prefix: &str) -> Vec<String> {
    let group = format!("/{prefix}/");
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let pid = entry.file_name().into_string().ok()?;
            pid.parse::<u32>().ok()?;
            let words = fs::read(entry.path().join("cmdline")).ok()?;
            let line = String::from_utf8_lossy(&words).replace('\0', " ");
            let groups = fs::read_to_string(entry.path().join("cgroup")).ok()?;
            let ours = line.contains(directory) || groups.contains(&group);
            // What has ended and waits for its parent holds nothing.
            (ours && !line.is_empty()).then(|| format!("process {pid}: {line}"))
        })
        .collect()
}

fn links(netns: &Netns) -> Vec<String> {
    let output = netns.command("ip").args(["-o", "link"]).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    text.unwrap_or_default()
        .lines()
        .filter_map(|line| line.split(": ").nth(1))
        .filter(|name| *name != "lo")
        .map(|name| format!("link {name}"))
        .collect()
}

fn tables(netns: &Netns) -> Vec<String> {
    let output = netns.command("nft").args(["list", "tables"]).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    text.unwrap_or_default()
        .lines()
        .map(ToOwned::to_owned)
        .collect()
}

/// What should go with the instances: their directories, and what guests have in the run directory.
fn files(directory: &Path) -> Vec<String> {
    let places = [
        "root/instances",
        "root/trash",
        "root/uploads",
        "run/guests",
        "run/guests/.oci",
    ];
    let entries = |place: &str| fs::read_dir(directory.join(place)).into_iter().flatten();
    places
        .into_iter()
        .flat_map(entries)
        .flatten()
        .filter(|entry| entry.file_name() != ".oci")
        .map(|entry| format!("file {}", entry.path().display()))
        .collect()
}
