//! Each decision as a table, and a pretended engine that follows them all.

use model::{
    Phase,
    instance::{InstanceSpec, Kind, Limits, LogSpec, NetworkMode, ProcessSpec, Security},
    record::RecordState,
};
use proptest::prelude::*;

use super::*;

const NOW: Timestamp = Timestamp::from_millis(1_000_000);

fn record(desired: PowerState, restart: RestartPolicy) -> InstanceRecord {
    InstanceRecord {
        id: "0192f0c1-7d3e-7aa2-9c41-5b6f2a10c3d4".parse().unwrap(),
        name: "web".parse().unwrap(),
        generation: 1,
        spec: InstanceSpec {
            kind: Kind::Application,
            machine: None,
            image: "debian".to_owned(),
            process: ProcessSpec::default(),
            limits: Limits::default(),
            security: Security::default(),
            mounts: Vec::new(),
            network: NetworkMode::None,
            ports: Vec::new(),
            restart,
            health: None,
            labels: Default::default(),
            hostname: None,
            log: LogSpec::default(),
            root_size: None,
            remove_on_exit: false,
        },
        desired,
        stop_now: false,
        run: 1,
        state: RecordState::Ready,
        image_digest: None,
        lease: None,
        idmap: None,
        created_at: NOW,
    }
}

fn status(phase: Phase, run: u64) -> InstanceStatus {
    InstanceStatus {
        phase,
        run,
        ..InstanceStatus::new(1)
    }
}

fn seen(state: GuestState) -> Observed {
    Observed {
        state,
        ..Observed::absent(record(PowerState::Stopped, RestartPolicy::No).id)
    }
}

fn exited(code: i32) -> Observed {
    let exit = Exit {
        code,
        signal: None,
        oom_killed: false,
        at: NOW,
    };
    Observed {
        exit: Some(exit),
        ..seen(GuestState::Exited)
    }
}

#[test]
fn a_new_instance_is_prepared_and_started() {
    let record = record(PowerState::Running, RestartPolicy::No);
    let fresh = status(Phase::Stopped, 0);
    assert_eq!(
        next(&record, &fresh, &seen(GuestState::Absent), NOW),
        Step::Prepare
    );
    let prepared = status(Phase::Prepared, 1);
    assert_eq!(
        next(&record, &prepared, &seen(GuestState::Prepared), NOW),
        Step::Start
    );
    let running = status(Phase::Running, 1);
    let rest = Step::Rest { until: None };
    assert_eq!(
        next(&record, &running, &seen(GuestState::Running), NOW),
        rest
    );
}

#[test]
fn what_only_had_to_be_prepared_waits() {
    let record = record(PowerState::Prepared, RestartPolicy::No);
    let prepared = status(Phase::Prepared, 1);
    let rest = Step::Rest { until: None };
    assert_eq!(
        next(&record, &prepared, &seen(GuestState::Prepared), NOW),
        rest
    );
}

#[test]
fn a_stop_asks_waits_and_then_ends() {
    let record = record(PowerState::Stopped, RestartPolicy::Always);
    let mut running = status(Phase::Running, 1);
    let observed = seen(GuestState::Running);
    assert_eq!(
        next(&record, &running, &observed, NOW),
        Step::AskToEnd { signal: 15 }
    );
    running.stopping_since = Some(NOW);
    let due = Timestamp::from_millis(NOW.as_millis() + 10_000);
    assert_eq!(
        next(&record, &running, &observed, NOW),
        Step::Rest { until: Some(due) }
    );
    assert_eq!(next(&record, &running, &observed, due), Step::End);
    let mut forced = record.clone();
    forced.stop_now = true;
    assert_eq!(next(&forced, &running, &observed, NOW), Step::End);
    assert_eq!(
        next(&record, &running, &seen(GuestState::Paused), NOW),
        Step::Resume
    );
}

#[test]
fn a_stopped_instance_is_never_restarted_by_policy() {
    let record = record(PowerState::Stopped, RestartPolicy::Always);
    let Step::Settle(settlement) = next(&record, &status(Phase::Stopping, 1), &exited(143), NOW)
    else {
        panic!("an exit is settled");
    };
    assert_eq!((settlement.restart_at, settlement.restarts), (None, 0));
}

#[test]
fn the_restart_policy_decides() {
    for (policy, code, again) in [
        (RestartPolicy::No, 1, false),
        (RestartPolicy::OnFailure { max_retries: None }, 0, false),
        (RestartPolicy::OnFailure { max_retries: None }, 1, true),
        (
            RestartPolicy::OnFailure {
                max_retries: Some(0),
            },
            1,
            false,
        ),
        (RestartPolicy::Always, 0, true),
        (RestartPolicy::UnlessStopped, 0, true),
    ] {
        let record = record(PowerState::Running, policy);
        let Step::Settle(settlement) =
            next(&record, &status(Phase::Running, 1), &exited(code), NOW)
        else {
            panic!("an exit is settled");
        };
        assert_eq!(
            settlement.restart_at.is_some(),
            again,
            "{policy:?} after {code}"
        );
    }
}

#[test]
fn restarts_back_off_and_a_steady_run_forgives() {
    let record = record(PowerState::Running, RestartPolicy::Always);
    let mut status = status(Phase::Running, 1);
    let mut pauses = Vec::new();
    for _ in 0..12 {
        status.started_at = Some(NOW);
        let Step::Settle(settlement) = next(&record, &status, &exited(1), NOW) else {
            panic!("an exit is settled");
        };
        pauses.push(settlement.restart_at.unwrap().millis_since(NOW));
        status.restarts = settlement.restarts;
    }
    assert_eq!(&pauses[..4], [100, 200, 400, 800]);
    assert_eq!(pauses[11], MAX_BACKOFF_MS);
    status.started_at = Some(Timestamp::from_millis(NOW.as_millis() - STEADY_MS));
    let Step::Settle(settlement) = next(&record, &status, &exited(1), NOW) else {
        panic!("an exit is settled");
    };
    assert_eq!(
        settlement.restart_at.unwrap().millis_since(NOW),
        FIRST_BACKOFF_MS
    );
}

#[test]
fn what_ended_for_good_waits_for_a_user() {
    let mut record = record(PowerState::Running, RestartPolicy::No);
    let over = InstanceStatus {
        run_over: true,
        ..status(Phase::Stopped, 1)
    };
    let rest = Step::Rest { until: None };
    assert_eq!(next(&record, &over, &seen(GuestState::Absent), NOW), rest);
    record.run = 2;
    assert_eq!(
        next(&record, &over, &seen(GuestState::Absent), NOW),
        Step::Prepare
    );
}

#[test]
fn a_restart_ends_the_old_run_first() {
    let mut record = record(PowerState::Running, RestartPolicy::No);
    record.run = 2;
    let running = status(Phase::Running, 1);
    let asked = next(&record, &running, &seen(GuestState::Running), NOW);
    assert_eq!(asked, Step::AskToEnd { signal: 15 });
}

#[test]
fn what_is_found_gone_is_settled_once() {
    let record = record(PowerState::Running, RestartPolicy::UnlessStopped);
    let lost = status(Phase::Running, 1);
    let Step::Settle(settlement) = next(&record, &lost, &seen(GuestState::Absent), NOW) else {
        panic!("a loss is settled");
    };
    assert!(settlement.exit.is_none() && settlement.restart_at.is_some());
}

proptest! {
    /// A pretended engine that does each step: whatever is wanted is reached in a few steps.
    #[test]
    fn every_state_leads_to_the_wanted_one(
        desired in prop::sample::select(vec![
            PowerState::Stopped, PowerState::Prepared, PowerState::Running, PowerState::Paused,
        ]),
        start in prop::sample::select(vec![
            GuestState::Absent, GuestState::Prepared, GuestState::Running, GuestState::Paused,
            GuestState::Exited,
        ]),
        old_run in any::<bool>(),
        forced in any::<bool>(),
    ) {
        let mut record = record(desired, RestartPolicy::Always);
        record.stop_now = forced;
        let mut status = status(Phase::Stopped, u64::from(!old_run));
        let mut observed = seen(start);
        let mut now = NOW;
        for _ in 0..20 {
            match next(&record, &status, &observed, now) {
                Step::Rest { until: None } => break,
                Step::Rest { until: Some(due) } => now = due,
                Step::Prepare => {
                    observed = seen(GuestState::Prepared);
                    status.run = record.run;
                    status.restart_at = None;
                    status.stopping_since = None;
                }
                Step::Start | Step::Resume => observed = seen(GuestState::Running),
                Step::Pause => observed = seen(GuestState::Paused),
                Step::AskToEnd { .. } => status.stopping_since = Some(now),
                Step::End => observed = exited(137),
                Step::Settle(settlement) => {
                    observed = seen(GuestState::Absent);
                    status.phase = Phase::Stopped;
                    status.restart_at = settlement.restart_at;
                    status.restarts = settlement.restarts;
                }
            }
        }
        let wanted = match desired {
            PowerState::Stopped => vec![GuestState::Absent],
            PowerState::Prepared => vec![GuestState::Prepared, GuestState::Running, GuestState::Paused],
            PowerState::Running => vec![GuestState::Running],
            PowerState::Paused => vec![GuestState::Paused],
        };
        prop_assert!(wanted.contains(&observed.state), "{:?}", observed.state);
    }
}
