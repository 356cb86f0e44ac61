//! Parsers of what the kernel says. Defensive: a container in a nested host, or a fake file
//! system over `/sys`, can put anything there. Nothing here panics or trusts a count.

use std::path::PathBuf;

use crate::controller::ControllerSet;
use crate::layout::{Hierarchy, Layout};

/// A decimal number on its own, surrounded by white space at most.
pub(crate) fn number(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

/// A number, or `max` which is `None` inside.
pub(crate) fn number_or_max(text: &str) -> Option<Option<u64>> {
    match text.trim() {
        "max" => Some(None),
        text => text.parse().ok().map(Some),
    }
}

/// The `key value` lines of a flat keyed file.
pub(crate) fn flat_keyed(text: &str) -> impl Iterator<Item = (&str, u64)> {
    text.lines().filter_map(|line| {
        let (key, value) = line.split_once(' ')?;
        Some((key, number(value)?))
    })
}

/// The `major:minor key=value …` lines of a nested keyed file such as `io.stat`.
pub(crate) fn nested_device_keyed(
    text: &str,
) -> impl Iterator<Item = ((u32, u32), impl Iterator<Item = (&str, u64)>)> {
    text.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        let device = device(words.next()?)?;
        let pairs = words.filter_map(|word| {
            let (key, value) = word.split_once('=')?;
            Some((key, number(value)?))
        });
        Some((device, pairs))
    })
}

/// A device number `major:minor`.
pub(crate) fn device(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// Process ids, one a line; 0 (a process outside our pid namespace) and junk are left out.
pub(crate) fn pids(text: &str) -> impl Iterator<Item = i32> {
    text.lines()
        .filter_map(|line| line.trim().parse().ok())
        .filter(|&pid: &i32| pid > 0)
}

/// The control group mounts of a `/proc/self/mountinfo`; the v2 controllers are not in it.
pub(crate) fn mountinfo(text: &str) -> Layout {
    let mut layout = Layout {
        v1: Vec::new(),
        v2: None,
    };
    for line in text.lines() {
        let Some((front, back)) = line.split_once(" - ") else {
            continue;
        };
        let Some(mount) = front.split(' ').nth(4) else {
            continue;
        };
        let mut back = back.split(' ');
        let (kind, options) = (back.next().unwrap_or(""), back.nth(1).unwrap_or(""));
        let mount = PathBuf::from(unescape(mount));
        match kind {
            "cgroup2" if layout.v2.is_none() => {
                layout.v2 = Some(Hierarchy {
                    mount,
                    controllers: ControllerSet::EMPTY,
                });
            }
            "cgroup" => {
                let controllers = ControllerSet::parse(options, ',');
                let seen = layout.v1.iter().any(|h| {
                    !controllers.is_empty() && h.controllers == controllers || h.mount == mount
                });
                if !seen {
                    layout.v1.push(Hierarchy { mount, controllers });
                }
            }
            _ => {}
        }
    }
    layout
}

/// Undoes mountinfo's octal escapes (`\040` for a space).
fn unescape(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let octal = bytes
            .get(i + 1..i + 4)
            .filter(|_| bytes[i] == b'\\')
            .and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        out.push(octal.unwrap_or(bytes[i]));
        i += if octal.is_some() { 4 } else { 1 };
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo_of_a_host_with_joined_controllers() {
        let text = "30 20 0:26 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
                    31 20 0:27 / /a\\040b rw shared:3 - cgroup cgroup rw,name=systemd\n\
                    32 20 0:28 / /u rw - cgroup2 cgroup2 rw\nrubbish\n - \n";
        let layout = mountinfo(text);
        assert_eq!(layout.v1.len(), 2);
        assert_eq!(layout.v1[0].controllers.to_string(), "cpu, cpuacct");
        assert_eq!(layout.v1[1].mount, PathBuf::from("/a b"));
        assert_eq!(layout.v2.map(|v| v.mount), Some(PathBuf::from("/u")));
    }

    #[test]
    fn junk_lines_are_left_out() {
        let io = "8:0 rbytes=1 wbytes=x rios=3\nfoo\n8:z rbytes=1\n18446744073709551616:0 a=1\n";
        let got: Vec<_> = nested_device_keyed(io)
            .map(|(d, p)| (d, p.collect::<Vec<_>>()))
            .collect();
        assert_eq!(got, [((8, 0), vec![("rbytes", 1), ("rios", 3)])]);
        assert_eq!(
            pids("1\n0\n-4\n99999999999\n7\n").collect::<Vec<_>>(),
            [1, 7]
        );
    }
}
