//! The v2 writes against a fake tree in a temporary directory: this is about files and values;
//! the real kernel is asked in `tests/`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use super::ApplyError;
use crate::resources::*;
use crate::{Cgroup, CgroupPath, Layout};

/// A fake v2 tree with a group that has `files`.
fn fake(controllers: &str, files: &[&str]) -> (tempfile::TempDir, Cgroup) {
    let root = tempfile::tempdir().unwrap();
    fs::write(root.path().join("cgroup.controllers"), controllers).unwrap();
    fs::write(root.path().join("cgroup.subtree_control"), "").unwrap();
    let dir = root.path().join("t");
    fs::create_dir(&dir).unwrap();
    for file in files.iter().chain(&["cgroup.controllers", "cgroup.procs"]) {
        fs::write(dir.join(file), "").unwrap();
    }
    fs::write(dir.join("cgroup.controllers"), controllers).unwrap();
    let layout = Layout::unified(root.path());
    let group = Cgroup::create(&layout, &CgroupPath::parse("/t").unwrap()).unwrap();
    (root, group)
}

fn content(root: &Path, file: &str) -> String {
    fs::read_to_string(root.join("t").join(file)).unwrap()
}

#[test]
fn v2_takes_v1_values_converted() {
    let files = [
        "cpu.weight",
        "cpu.max",
        "cpu.max.burst",
        "cpuset.cpus",
        "memory.max",
        "memory.low",
        "memory.swap.max",
        "memory.high",
        "pids.max",
        "io.weight",
        "io.max",
        "hugetlb.2MB.max",
    ];
    let (root, group) = fake("cpuset cpu io memory hugetlb pids", &files);
    let resources = Resources {
        cpu: Cpu {
            weight: Some(CpuWeight::Shares(1024)),
            quota_us: Some(Limit::At(50_000)),
            period_us: Some(100_000),
            burst_us: Some(1000),
            cpus: Some("0-1".into()),
            ..Cpu::default()
        },
        memory: Memory {
            max_bytes: Some(Limit::At(100 << 20)),
            memory_and_swap_bytes: Some(Limit::At(150 << 20)),
            reservation_bytes: Some(Limit::At(7)),
            high_bytes: Some(Limit::Max),
            ..Memory::default()
        },
        pids_max: Some(Limit::Max),
        block_io: BlockIo {
            weight: Some(1000),
            read_bps: vec![DeviceRate {
                major: 8,
                minor: 0,
                rate: 4096,
            }],
            ..BlockIo::default()
        },
        huge_pages: vec![HugePages {
            page_size: "2MB".into(),
            max_bytes: Limit::At(4 << 20),
        }],
        ..Resources::default()
    };
    group.apply(&resources).unwrap();
    for (file, value) in [
        ("cpu.weight", "100"),
        ("cpu.max", "50000 100000"),
        ("cpu.max.burst", "1000"),
        ("cpuset.cpus", "0-1"),
        ("memory.max", "104857600"),
        ("memory.swap.max", "52428800"),
        ("memory.low", "7"),
        ("memory.high", "max"),
        ("pids.max", "max"),
        ("io.weight", "10000"),
        ("io.max", "8:0 rbps=4096"),
        ("hugetlb.2MB.max", "4194304"),
    ] {
        assert_eq!(content(root.path(), file), value, "{file}");
    }
}

#[test]
fn a_period_alone_keeps_the_quota() {
    let (root, group) = fake("cpu", &["cpu.max"]);
    fs::write(root.path().join("t/cpu.max"), "20000 100000\n").unwrap();
    let cpu = Cpu {
        period_us: Some(50_000),
        ..Cpu::default()
    };
    group
        .apply(&Resources {
            cpu,
            ..Resources::default()
        })
        .unwrap();
    assert!(content(root.path(), "cpu.max").starts_with("20000 50000"));
}

#[test]
fn what_the_host_cannot_give_is_named_before_anything_is_written() {
    let (root, group) = fake("pids", &["pids.max"]);
    let both = Resources {
        pids_max: Some(Limit::At(5)),
        cpu: Cpu {
            quota_us: Some(Limit::At(1)),
            ..Cpu::default()
        },
        ..Resources::default()
    };
    let error = group.apply(&both).unwrap_err();
    assert!(
        matches!(&error, ApplyError::Unavailable { limit, .. } if limit == "cpu.quota"),
        "{error}"
    );
    assert!(error.to_string().contains("controller cpu "), "{error}");
    assert_eq!(content(root.path(), "pids.max"), "", "nothing was written");

    let network = Network {
        class_id: Some(1),
        ..Network::default()
    };
    let error = group
        .apply(&Resources {
            network,
            ..Resources::default()
        })
        .unwrap_err();
    assert!(error.to_string().contains("net_cls"), "{error}");
}

#[test]
fn hostile_values_do_not_reach_a_file() {
    let (_root, group) = fake("cpuset memory hugetlb rdma io pids cpu", &["memory.max"]);
    let unified = |file: &str, value: &str| Resources {
        unified: BTreeMap::from([(file.to_owned(), value.to_owned())]),
        ..Resources::default()
    };
    let bad = [
        unified("../../etc/passwd", "x"),
        unified("memory.max/../x", "1"),
        unified("cgroup.kill", "1"),
        unified("nodots", "1"),
        unified("memory.max", &"9".repeat(5000)),
        Resources {
            cpu: Cpu {
                cpus: Some("0\n+x".into()),
                ..Cpu::default()
            },
            ..Resources::default()
        },
        Resources {
            huge_pages: vec![HugePages {
                page_size: "../2MB".into(),
                max_bytes: Limit::Max,
            }],
            ..Resources::default()
        },
        Resources {
            memory: Memory {
                memory_and_swap_bytes: Some(Limit::At(5)),
                ..Memory::default()
            },
            ..Resources::default()
        },
    ];
    for resources in bad {
        let error = group.apply(&resources).unwrap_err();
        assert!(
            matches!(error, ApplyError::Invalid { .. }),
            "{error} for {resources:?}"
        );
    }
}
