//! Records as shown.

use std::path::Path;

use model::{
    InstanceStatus, Phase,
    instance::{
        PowerState,
        status::{Exit, Health, Usage},
    },
    record::{InstanceRecord, NetworkRecord, RecordState, TokenRecord},
};

use super::spec::{to_wire, wire_kind, wire_port};

/// An instance in a list.
pub(crate) fn instance(record: &InstanceRecord, status: Option<&InstanceStatus>) -> api::Instance {
    let message = match &record.state {
        RecordState::Failed { message } => Some(message.clone()),
        _ => status.and_then(|status| status.message.clone()),
    };
    let addresses = record.lease.iter().flat_map(|lease| &lease.addresses);
    api::Instance {
        id: record.id.to_string(),
        name: record.name.to_string(),
        kind: wire_kind(record.spec.kind),
        machine: record.spec.machine.is_some(),
        image: record.spec.image.clone(),
        status: phase(record, status).to_string(),
        addresses: addresses.map(ToString::to_string).collect(),
        ports: record.spec.ports.iter().map(wire_port).collect(),
        health: status
            .and_then(|status| status.health)
            .map(|health| word(health).to_owned()),
        exit: status.and_then(|status| status.exit.as_ref()).map(exit),
        restarts: status.map_or(0, |status| status.restarts),
        created_at: record.created_at.to_string(),
        started_at: status
            .and_then(|status| status.started_at)
            .map(|at| at.to_string()),
        message,
        labels: record.spec.labels.clone(),
    }
}

/// Where an instance stands: what operations do to it, else what the node sees.
pub(crate) fn phase(record: &InstanceRecord, status: Option<&InstanceStatus>) -> Phase {
    match record.state {
        RecordState::Creating => Phase::Creating,
        RecordState::Failed { .. } => Phase::Failed,
        RecordState::Deleting => Phase::Deleting,
        RecordState::Ready => match status.map(|status| status.phase) {
            None | Some(Phase::Creating) => Phase::Stopped,
            Some(phase) => phase,
        },
    }
}

/// One instance, whole.
pub(crate) fn detail(
    record: &InstanceRecord,
    status: Option<&InstanceStatus>,
    directory: &Path,
) -> api::InstanceDetail {
    api::InstanceDetail {
        instance: instance(record, status),
        spec: to_wire(&record.spec),
        desired: desired(record.desired).to_owned(),
        generation: record.generation,
        image_digest: record.image_digest.clone(),
        pid: status.and_then(|status| status.pid),
        directory: directory.display().to_string(),
        restart_at: status
            .and_then(|status| status.restart_at)
            .map(|at| at.to_string()),
        usage: usage(status.map(|status| status.usage).unwrap_or_default()),
        notes: Vec::new(),
    }
}

const fn desired(state: PowerState) -> &'static str {
    match state {
        PowerState::Stopped => "stopped",
        PowerState::Prepared => "prepared",
        PowerState::Running => "running",
        PowerState::Paused => "paused",
    }
}

const fn word(health: Health) -> &'static str {
    match health {
        Health::Starting => "starting",
        Health::Healthy => "healthy",
        Health::Unhealthy => "unhealthy",
    }
}

fn exit(exit: &Exit) -> api::Exit {
    api::Exit {
        code: exit.code,
        signal: exit.signal,
        oom_killed: exit.oom_killed,
        at: exit.at.to_string(),
    }
}

const fn usage(usage: Usage) -> api::Usage {
    api::Usage {
        cpu_ns: usage.cpu_ns,
        read_bytes: usage.read_bytes,
        write_bytes: usage.write_bytes,
        memory_peak_bytes: usage.memory_peak_bytes,
    }
}

/// An operation.
pub(crate) fn operation(operation: &workflow::Operation) -> api::Operation {
    use api::OperationState;
    use workflow::State;
    let failure = operation.stuck.as_ref().or(operation.error.as_ref());
    api::Operation {
        id: operation.id.to_string(),
        kind: operation.kind.clone(),
        resource: operation.resources.first().cloned().unwrap_or_default(),
        state: match operation.state {
            State::Pending => OperationState::Pending,
            State::Running => OperationState::Running,
            State::Succeeded => OperationState::Succeeded,
            State::Failed | State::Undone => OperationState::Failed,
            State::Undoing => OperationState::Undoing,
            State::Cancelled => OperationState::Cancelled,
            State::Stuck => OperationState::Stuck,
        },
        progress: api::Progress {
            message: operation.progress.message.clone(),
            done: operation.progress.done,
            total: operation.progress.total,
            unit: operation.progress.unit.clone(),
        },
        error: failure.map(|failure| failure.message.clone()),
        result: operation.result.clone(),
        created_at: operation.created_at.to_string(),
        finished_at: operation.finished_at.map(|at| at.to_string()),
    }
}

/// A network with its leases.
pub(crate) fn network(
    record: &NetworkRecord,
    bridge: String,
    leases: Vec<api::Lease>,
) -> api::Network {
    let spec = &record.spec;
    api::Network {
        name: record.name.to_string(),
        ipv4: spec.ipv4.map(|subnet| subnet.to_string()),
        ipv6: spec.ipv6.map(|subnet| subnet.to_string()),
        gateways: node::gateways(record)
            .iter()
            .map(ToString::to_string)
            .collect(),
        isolated: spec.outside == model::network::Outside::Isolated,
        mtu: spec.mtu,
        bridge,
        leases,
        created_at: record.created_at.to_string(),
    }
}

/// A token, without its hash.
pub(crate) fn token(record: &TokenRecord) -> api::Token {
    api::Token {
        name: record.name.to_string(),
        scope: record.scope.as_str().to_owned(),
        created_at: record.created_at.to_string(),
        expires_at: record.expires_at.map(|at| at.to_string()),
    }
}
