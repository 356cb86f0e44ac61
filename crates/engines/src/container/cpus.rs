//! The CPUs of a guest for which none are chosen any more: those of the control group above it.

use std::{fs, path::Path};

use cgroup::{Cgroup, CgroupPath, Layout};

/// What was chosen for a group, in versions 1 and 2.
const CHOSEN: &str = "cpuset.cpus";
/// What a group has, in versions 1 and 2.
const EFFECTIVE: [&str; 2] = ["cpuset.effective_cpus", "cpuset.cpus.effective"];

/// The list of CPUs to give the control group `group` so that it has all of the group above it;
/// `None` where it has. Version 1 cannot take a choice back, it has to be told another.
pub(super) fn to_give_back(group: &str) -> Option<String> {
    let layout = Layout::detect().ok()?;
    let group = Cgroup::open(&layout, &CgroupPath::parse(group).ok()?).ok()?;
    let mut directories = group.directories().map(|(_, directory)| directory);
    directories.find_map(differing)
}

fn differing(directory: &Path) -> Option<String> {
    let chosen = read(&directory.join(CHOSEN))?;
    let above = directory.parent()?;
    let all = EFFECTIVE.iter().find_map(|file| read(&above.join(file)))?;
    (chosen != all).then_some(all)
}

/// What a file says; `None` where it says nothing.
fn read(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    Some(text.trim().to_owned()).filter(|text| !text.is_empty())
}
