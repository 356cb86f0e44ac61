//! Plausible things out of thin air.

use std::collections::BTreeMap;

use api::{
    CpuCounter, CpuStats, Image, Instance, InstanceDetail, InstanceSpec, Network, Operation,
    OperationState, Progress, Stats, Token, Usage, Volume,
};

/// The one moment at which everything happens.
pub(super) const NOW: &str = "2026-11-20T10:00:00.000Z";

pub(super) fn instance(name: &str, n: u64, spec: InstanceSpec, status: &str) -> InstanceDetail {
    InstanceDetail {
        instance: Instance {
            id: format!("019365d0-0000-7000-8000-{n:012x}"),
            name: name.into(),
            kind: spec.kind,
            machine: spec.machine.is_some(),
            image: spec.image.clone(),
            status: status.into(),
            addresses: vec![format!("10.77.{}.{}", n / 250 % 250, 2 + n % 250)],
            ports: spec.ports.clone(),
            health: None,
            exit: None,
            restarts: 0,
            created_at: NOW.into(),
            started_at: (status == "running").then(|| NOW.into()),
            message: None,
            labels: spec.labels.clone(),
        },
        desired: status.into(),
        generation: 1,
        image_digest: Some(image(&spec.image).digest),
        pid: (status == "running").then_some(4242),
        directory: format!("/var/lib/berth/instances/{name}"),
        restart_at: None,
        usage: Usage::default(),
        notes: Vec::new(),
        spec,
    }
}

pub(super) fn image(reference: &str) -> Image {
    let sum: u64 = reference.bytes().map(u64::from).sum();
    Image {
        reference: reference.into(),
        digest: format!("sha256:{sum:064x}"),
        platform: "linux/amd64".into(),
        size_bytes: 1 << 20,
        created_at: Some(NOW.into()),
        instances: 0,
    }
}

pub(super) fn network(name: &str, subnet: &str, gateway: &str) -> Network {
    Network {
        name: name.into(),
        ipv4: Some(subnet.into()),
        ipv6: None,
        gateways: vec![gateway.into()],
        isolated: false,
        mtu: None,
        bridge: format!("berth-{name}"),
        leases: Vec::new(),
        created_at: NOW.into(),
    }
}

pub(super) fn volume(name: &str, labels: BTreeMap<String, String>) -> Volume {
    Volume {
        name: name.into(),
        path: format!("/var/lib/berth/volumes/{name}"),
        size_bytes: None,
        used_bytes: Some(0),
        quota: "none".into(),
        instances: Vec::new(),
        labels,
        created_at: NOW.into(),
    }
}

pub(super) fn token(name: &str, scope: &str) -> Token {
    Token {
        name: name.into(),
        scope: scope.into(),
        created_at: NOW.into(),
        expires_at: None,
    }
}

pub(super) fn operation(n: u64, kind: &str, resource: String) -> Operation {
    Operation {
        id: format!("op-{n}"),
        kind: kind.into(),
        resource,
        state: OperationState::Succeeded,
        progress: Progress::default(),
        error: None,
        result: None,
        created_at: NOW.into(),
        finished_at: Some(NOW.into()),
    }
}

pub(super) fn cpu_stats(instance: &Instance) -> CpuStats {
    CpuStats {
        id: instance.id.clone(),
        name: instance.name.clone(),
        counters: vec![CpuCounter {
            name: "translations".into(),
            meaning: "Blocks translated.".into(),
            vcpus: vec![7, 8],
        }],
        untranslated: Vec::new(),
    }
}

pub(super) fn stats(instance: &Instance) -> Stats {
    Stats {
        id: instance.id.clone(),
        name: instance.name.clone(),
        at_ms: 1_795_168_800_000,
        cpu_ns: 1_000_000,
        throttled_ns: 0,
        cpu_limit: None,
        memory_bytes: 1 << 20,
        memory_peak_bytes: 2 << 20,
        memory_limit_bytes: None,
        swap_bytes: 0,
        oom_kills: 0,
        pids: 1,
        pids_limit: None,
        read_bytes: 0,
        write_bytes: 0,
        rx_bytes: 0,
        tx_bytes: 0,
    }
}
