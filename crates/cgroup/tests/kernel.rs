//! The real kernel: child groups of our own in whatever hierarchies this host has.
//!
//! Every test works below a `/berth-test-<pid>-<test>` of its own and removes that also when it fails. Needs root and
//! writable hierarchies; skips loudly otherwise.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "tests fail by panicking and skip loudly"
)]

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use cgroup::*;

struct Scratch {
    layout: Layout,
    group: Cgroup,
    parent: CgroupPath,
    children: Vec<Child>,
}

impl Scratch {
    fn new(test: &str) -> Option<Scratch> {
        let layout = Layout::detect().unwrap();
        let parent = format!("/berth-test-{}-{test}", std::process::id());
        let parent = CgroupPath::parse(&parent).unwrap();
        let group = Cgroup::create(&layout, &parent.join("group").unwrap()).unwrap();
        if group.controllers().is_empty() {
            eprintln!(
                "SKIP {test}: no control group may be made here: {:?}",
                group.refused()
            );
            return None;
        }
        Some(Scratch {
            layout,
            group,
            parent,
            children: Vec::new(),
        })
    }

    /// A process that is in the group before it runs `script`.
    fn spawn(&mut self, script: &str) -> i32 {
        let wait = format!("read _; {script}");
        let mut command = Command::new("/bin/sh");
        let mut child = command
            .args(["-c", &wait])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let pid = child.id() as i32;
        self.group.add(pid).unwrap();
        drop(child.stdin.take());
        self.children.push(child);
        pid
    }

    fn has(&self, controller: Controller, test: &str) -> bool {
        let has = self.group.controllers().contains(controller);
        if !has {
            eprintln!("SKIP {test}: the host has no {controller} controller");
        }
        has
    }

    fn read(&self, names: &[&str]) -> String {
        self.group
            .directories()
            .flat_map(|(_, dir)| names.iter().map(move |name| dir.join(name)))
            .find_map(|path| fs::read_to_string(path).ok())
            .unwrap()
            .trim()
            .to_owned()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
        }
        let _ = self.group.thaw();
        let _ = self.group.kill();
        for child in &mut self.children {
            let _ = child.wait();
        }
        let _ = Cgroup::open(&self.layout, &self.parent).map(|parent| parent.delete());
    }
}

#[test]
fn a_process_enters_is_listed_and_leaves_nothing() {
    let Some(mut s) = Scratch::new("enter") else {
        return;
    };
    let pid = s.spawn("exec sleep 1000");
    assert_eq!(s.group.pids().unwrap(), [pid]);
    let membership = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let path = s.group.path().to_string();
    let inside = membership
        .lines()
        .filter(|line| line.ends_with(&path))
        .count();
    assert_eq!(inside, s.group.directories().count(), "{membership}");
    assert!(matches!(
        Cgroup::open(&s.layout, &CgroupPath::parse("/berth-none").unwrap()),
        Err(CreateError::Missing { .. })
    ));

    s.group.kill().unwrap();
    s.children[0].wait().unwrap();
    s.group.delete().unwrap();
    s.group.delete().unwrap();
    assert!(s.group.directories().all(|(_, dir)| !dir.exists()));
}

#[test]
fn limits_reach_the_kernel_and_change_up_and_down() {
    let Some(s) = Scratch::new("limits") else {
        return;
    };
    let limits = |memory: u64, swap: u64, quota: u64| Resources {
        cpu: Cpu {
            quota_us: Some(Limit::At(quota)),
            period_us: Some(50_000),
            burst_us: Some(quota / 2),
            weight: Some(CpuWeight::Shares(512)),
            cpus: Some("0".into()),
            ..Cpu::default()
        },
        memory: Memory {
            max_bytes: Some(Limit::At(memory)),
            memory_and_swap_bytes: Some(Limit::At(swap)),
            ..Memory::default()
        },
        pids_max: Some(Limit::At(17)),
        ..Resources::default()
    };
    for c in [
        Controller::Cpu,
        Controller::Memory,
        Controller::Pids,
        Controller::Cpuset,
    ] {
        if !s.has(c, "limits") {
            return;
        }
    }
    // Each step would fail in a fixed order of writes: up, down, up again.
    for (memory, swap, quota) in [
        (64, 64, 20_000),
        (256, 512, 40_000),
        (32, 32, 5_000),
        (99, 99, 30_000),
    ] {
        s.group
            .apply(&limits(memory << 20, swap << 20, quota))
            .unwrap();
        let got = s.read(&["memory.limit_in_bytes", "memory.max"]);
        assert_eq!(got, (memory << 20).to_string());
        let got = s.read(&["cpu.cfs_quota_us", "cpu.max"]);
        assert_eq!(got.split(' ').next(), Some(quota.to_string().as_str()));
    }
    assert_eq!(s.read(&["pids.max"]), "17");
    assert_eq!(s.read(&["cpuset.cpus"]), "0");
    let stats = s.group.stats().unwrap();
    assert_eq!(stats.pids.unwrap().limit, Some(17));
    assert_eq!(stats.memory.unwrap().limit_bytes, Some(99 << 20));
    let off = Resources {
        memory: Memory {
            max_bytes: Some(Limit::Max),
            ..Memory::default()
        },
        pids_max: Some(Limit::Max),
        ..Resources::default()
    };
    s.group.apply(&off).unwrap();
    assert_eq!(s.group.stats().unwrap().memory.unwrap().limit_bytes, None);
}

#[test]
fn a_limit_without_its_controller_names_both() {
    let Some(s) = Scratch::new("missing") else {
        return;
    };
    if s.layout.controllers().contains(Controller::NetPrio) {
        return eprintln!("SKIP missing: this host has net_prio");
    }
    let priority = InterfacePriority {
        interface: "lo".into(),
        priority: 1,
    };
    let network = Network {
        priorities: vec![priority],
        ..Network::default()
    };
    let error = s
        .group
        .apply(&Resources {
            network,
            ..Resources::default()
        })
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("network.priorities") && error.contains("net_prio"),
        "{error}"
    );
}

#[test]
fn pids_limit_stops_a_fork_bomb() {
    let Some(mut s) = Scratch::new("bomb") else {
        return;
    };
    if !s.has(Controller::Pids, "bomb") {
        return;
    }
    s.group
        .apply(&Resources {
            pids_max: Some(Limit::At(5)),
            ..Resources::default()
        })
        .unwrap();
    s.spawn("while :; do sleep 1000 & done");
    std::thread::sleep(Duration::from_millis(200));
    assert!(s.group.pids().unwrap().len() <= 5);
    assert_eq!(s.group.stats().unwrap().pids.unwrap().limit, Some(5));
    s.group.kill().unwrap();
}

#[test]
fn a_frozen_group_stands_still_and_can_be_killed() {
    let Some(mut s) = Scratch::new("freeze") else {
        return;
    };
    let pid = s.spawn("while :; do :; done");
    s.group.freeze().unwrap();
    assert!(s.group.is_frozen().unwrap());
    let ticks = || {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        stat.rsplit(')')
            .next()
            .unwrap()
            .split(' ')
            .nth(12)
            .unwrap()
            .to_owned()
    };
    let before = ticks();
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(ticks(), before, "a frozen loop uses no time");
    s.group.thaw().unwrap();
    assert!(!s.group.is_frozen().unwrap());
    while ticks() == before {
        std::thread::sleep(Duration::from_millis(5));
    }
    s.group.freeze().unwrap();
    s.group.kill().unwrap();
    s.children[0].wait().unwrap();
    assert!(s.group.pids().unwrap().is_empty());
}

#[test]
fn kill_reaches_child_groups_and_stats_count_time() {
    let Some(mut s) = Scratch::new("tree") else {
        return;
    };
    let inner = Cgroup::create(&s.layout, &s.group.path().join("inner").unwrap()).unwrap();
    let pid =
        s.spawn("setsid sh -c 'trap \"\" TERM HUP INT; while :; do :; done' & while :; do :; done");
    inner.add(pid).unwrap();
    std::thread::sleep(Duration::from_millis(100));
    assert!(s.group.pids().unwrap().contains(&pid));
    if let Some(cpu) = s.group.stats().unwrap().cpu {
        assert!(cpu.usage_ns > 1_000_000, "{cpu:?}");
    }
    s.group.kill().unwrap();
    s.children[0].wait().unwrap();
    assert!(s.group.pids().unwrap().is_empty());
    s.group.delete().unwrap();
    assert!(
        inner.directories().all(|(_, dir)| !dir.exists()),
        "children are removed too"
    );
}

#[test]
fn an_oom_kill_is_noticed_and_counted() {
    let Some(mut s) = Scratch::new("oom") else {
        return;
    };
    if !s.has(Controller::Memory, "oom") {
        return;
    }
    let limit = Some(Limit::At(8 << 20));
    let memory = Memory {
        max_bytes: limit,
        memory_and_swap_bytes: limit,
        ..Memory::default()
    };
    s.group
        .apply(&Resources {
            memory,
            ..Resources::default()
        })
        .unwrap();
    let mut watch = s.group.watch_oom().unwrap();
    assert_eq!(watch.read().unwrap(), 0);
    s.spawn("exec dd if=/dev/zero of=/dev/null bs=64M count=1");
    s.children[0].wait().unwrap();
    let mut fds = [rustix::event::PollFd::new(
        &watch,
        rustix::event::PollFlags::IN,
    )];
    let patience = rustix::event::Timespec {
        tv_sec: 5,
        tv_nsec: 0,
    };
    assert_eq!(
        rustix::event::poll(&mut fds, Some(&patience)),
        Ok(1),
        "no notice came"
    );
    assert!(watch.read().unwrap() >= 1);
    assert!(s.group.oom_kills().unwrap() >= 1);
    assert!(s.group.stats().unwrap().memory.unwrap().oom_kills >= 1);
}

fn device(allow: bool, minor: u32, access: &str) -> DeviceRule {
    DeviceRule {
        allow,
        kind: DeviceKind::Char,
        major: Some(1),
        minor: Some(minor),
        access: Access::parse(access).unwrap(),
    }
}

/// `/dev/null` (1:3) is open, `/dev/zero` (1:5) is closed, and an update turns it round.
fn devices_hold(s: &mut Scratch) {
    let dir = tempfile::tempdir().unwrap();
    for minor in [3, 5] {
        let rules = vec![DeviceRule::DENY_ALL, device(true, minor, "rw")];
        s.group
            .apply(&Resources {
                devices: Some(rules),
                ..Resources::default()
            })
            .unwrap();
        let result = dir.path().join(minor.to_string());
        let path = result.display();
        s.spawn(&format!(
            "r=; (: </dev/null) && r=${{r}}null; (: </dev/zero) && r=${{r}}zero; printf %s \"$r\" >{path}"
        ));
        s.children.last_mut().unwrap().wait().unwrap();
        let got = fs::read_to_string(&result).unwrap();
        assert_eq!(got, if minor == 3 { "null" } else { "zero" });
    }
}

#[test]
fn device_rules_are_enforced() {
    let Some(mut s) = Scratch::new("devices") else {
        return;
    };
    devices_hold(&mut s);
}

#[test]
fn device_rules_are_enforced_by_the_v2_program() {
    let Some(s) = Scratch::new("ebpf") else {
        return;
    };
    let Some(v2) = s.layout.v2().cloned() else {
        return eprintln!("SKIP ebpf: no v2 tree");
    };
    let layout = Layout::from_parts(Vec::new(), Some(v2));
    let path = s.parent.join("ebpf-v2").unwrap();
    let group = Cgroup::create(&layout, &path).unwrap();
    let mut s = Scratch {
        layout,
        group,
        parent: s.parent.clone(),
        children: Vec::new(),
    };
    let probe = vec![DeviceRule {
        allow: true,
        ..DeviceRule::DENY_ALL
    }];
    if let Err(error) = s.group.apply(&Resources {
        devices: Some(probe),
        ..Resources::default()
    }) {
        return eprintln!(
            "SKIP ebpf: {error}: {:?}",
            std::error::Error::source(&error)
        );
    }
    devices_hold(&mut s);
}

#[test]
fn v2_controllers_are_enabled_when_a_limit_needs_them() {
    let Some(s) = Scratch::new("lazy") else {
        return;
    };
    let in_v2 = s
        .layout
        .v2()
        .is_some_and(|v2| v2.controllers.contains(Controller::Hugetlb));
    let page = fs::read_dir("/sys/kernel/mm/hugepages").is_ok_and(|d| {
        d.flatten()
            .any(|e| e.file_name().to_str() == Some("hugepages-2048kB"))
    });
    if !in_v2 || !page {
        return eprintln!("SKIP lazy: hugetlb with 2MB pages is not in a v2 tree here");
    }
    let huge_pages = vec![HugePages {
        page_size: "2MB".into(),
        max_bytes: Limit::At(4 << 20),
    }];
    s.group
        .apply(&Resources {
            huge_pages,
            ..Resources::default()
        })
        .unwrap();
    assert_eq!(s.read(&["hugetlb.2MB.max"]), (4 << 20).to_string());
    assert_eq!(
        s.group
            .stats()
            .unwrap()
            .huge_pages
            .iter()
            .filter(|h| h.page_size == "2MB")
            .count(),
        1
    );

    // And now the group is an inner one: it may hold no process, and says so.
    let inner = Cgroup::create(&s.layout, &s.group.path().join("leaf").unwrap()).unwrap();
    let huge_pages = vec![HugePages {
        page_size: "2MB".into(),
        max_bytes: Limit::Max,
    }];
    inner
        .apply(&Resources {
            huge_pages,
            ..Resources::default()
        })
        .unwrap();
    let error = s.group.add(0).unwrap_err();
    assert!(matches!(error, JoinError::NotALeaf { .. }), "{error}");
}

#[test]
fn without_permission_the_group_reports_instead_of_failing() {
    let Some(s) = Scratch::new("rootless") else {
        return;
    };
    // A read-only hierarchy answers as an unprivileged user's would.
    let sys = Hierarchy {
        mount: "/sys/kernel".into(),
        controllers: ControllerSet::of(&[Controller::Pids]),
    };
    let layout = Layout::from_parts(vec![sys], None);
    let group = Cgroup::create(&layout, s.group.path()).unwrap();
    assert_eq!(group.refused().len(), 1, "{group:?}");
    group.add(0).unwrap();
    let error = group
        .apply(&Resources {
            pids_max: Some(Limit::At(1)),
            ..Resources::default()
        })
        .unwrap_err();
    assert!(
        error.to_string().contains("pids.limit") && error.to_string().contains("/sys/kernel"),
        "{error}"
    );
}
