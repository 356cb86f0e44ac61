//! Specs: what is accepted, and that what is wrong is named by its field.

use super::*;
use crate::instance::limits::{NetLimits, cpu_list};

fn spec() -> InstanceSpec {
    InstanceSpec {
        kind: Kind::Application,
        machine: None,
        image: "debian".to_owned(),
        process: ProcessSpec::default(),
        limits: Limits::default(),
        security: Security::default(),
        mounts: Vec::new(),
        network: NetworkMode::Network {
            name: "default".parse().unwrap(),
            address: None,
        },
        ports: Vec::new(),
        restart: RestartPolicy::No,
        health: None,
        labels: BTreeMap::new(),
        hostname: None,
        log: LogSpec::default(),
        root_size: None,
        remove_on_exit: false,
    }
}

fn wrong_fields(change: impl FnOnce(&mut InstanceSpec)) -> Vec<String> {
    let mut spec = spec();
    change(&mut spec);
    spec.validate()
        .unwrap_err()
        .fields
        .into_iter()
        .map(|error| error.field)
        .collect()
}

#[test]
fn a_plain_spec_is_valid_and_shut_in() {
    assert_eq!(spec().validate(), Ok(()));
    assert!(spec().security.user_namespace && spec().security.seccomp);
}

#[test]
fn all_wrong_fields_are_named_at_once() {
    let fields = wrong_fields(|spec| {
        spec.image.clear();
        spec.process.workdir = Some("tmp".to_owned());
        spec.limits.memory = Some(ByteSize(1));
        spec.security.cap_add = vec!["NET_ADMIN".to_owned(), "FLY".to_owned()];
    });
    assert_eq!(
        fields,
        [
            "image",
            "process.workdir",
            "limits.memory",
            "security.cap_add[1]"
        ]
    );
}

#[test]
fn rates_limit_what_there_is() {
    let machine = |spec: &mut InstanceSpec| {
        spec.machine = Some(MachineSpec::default());
        spec.limits.net = NetLimits {
            ingress_bps: Some(1 << 20),
            ingress_burst: Some(1 << 16),
            ..NetLimits::default()
        };
    };
    let mut good = spec();
    machine(&mut good);
    assert_eq!(good.validate(), Ok(()));
    let fields = wrong_fields(|spec| {
        machine(spec);
        spec.limits.io.read_iops = Some(0);
        spec.limits.net.egress_burst = Some(1);
    });
    assert_eq!(fields, ["limits.io.read_iops", "limits.net.egress_burst"]);
    let fields = wrong_fields(|spec| {
        machine(spec);
        spec.network = NetworkMode::None;
    });
    assert_eq!(fields, ["limits.net"]);
    let mut container = good;
    container.machine = None;
    assert_eq!(container.validate(), Ok(()));
}

#[test]
fn lists_of_cpus_are_sets() {
    let cpus = |text: &str| cpu_list(text).map(|it| it.into_iter().collect::<Vec<_>>());
    assert_eq!(cpus("4,0-2,1"), Some(vec![0, 1, 2, 4]));
    for wrong in ["", "2-1", "0-", "a", "65536", "0,,1"] {
        assert_eq!(cpus(wrong), None, "{wrong}");
    }
}

#[test]
fn mounts_cannot_climb_or_collide() {
    let mount = |target: &str| Mount {
        source: MountSource::Tmpfs { size: None },
        target: target.to_owned(),
        read_only: false,
    };
    let fields = wrong_fields(|spec| {
        spec.mounts = vec![mount("/a/../b"), mount("/c"), mount("/c"), mount("/")]
    });
    assert_eq!(
        fields,
        ["mounts[0].target", "mounts[2].target", "mounts[3].target"]
    );
}

#[test]
fn sysctls_of_the_host_are_refused() {
    for key in [
        "kernel.panic",
        "vm.swappiness",
        "net../../kernel/panic",
        "kernel.hostname",
    ] {
        let fields = wrong_fields(|spec| {
            spec.security.sysctls.insert(key.to_owned(), "1".to_owned());
        });
        assert_eq!(fields.len(), 1, "{key}");
    }
}

#[test]
fn signals_have_names_and_numbers() {
    for (text, number) in [("15", 15), ("term", 15), ("SIGKILL", 9), ("SIGRTMIN+3", 37)] {
        assert_eq!(signal_number(text), Some(number), "{text}");
    }
    for text in ["0", "65", "SIGNOPE", "RTMIN+31", ""] {
        assert_eq!(signal_number(text), None, "{text}");
    }
}
