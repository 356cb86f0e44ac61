//! Health checks: one task for each running instance that asks for them. What a check finds goes
//! into the status; nothing is restarted for it.

use std::time::Duration;

use engine::{GuestProcess, Input, Output, Session, SessionEnd};
use model::{
    InstanceId, Phase,
    instance::{HealthCheck, status::Health},
    record::InstanceRecord,
};
use store::Durability;

use crate::{Node, lock, pass, tables};

/// `SIGKILL`.
const KILL: i32 = 9;

impl Node {
    /// Begins the checks of a running instance, if it asks for any and none are under way.
    pub(crate) fn start_health(&self, record: &InstanceRecord) {
        let Some(check) = record.spec.health.clone() else {
            return;
        };
        let mut tasks = lock(&self.inner.health);
        if tasks
            .get(&record.id)
            .is_some_and(|task| !task.is_finished())
        {
            return;
        }
        let (node, id) = (self.clone(), record.id);
        let task = tokio::spawn(async move { node.check_on(id, &check).await });
        tasks.insert(record.id, task.abort_handle());
    }

    /// Ends the checks of an instance.
    pub(crate) fn stop_health(&self, id: InstanceId) {
        if let Some(task) = lock(&self.inner.health).remove(&id) {
            task.abort();
        }
    }

    async fn check_on(&self, id: InstanceId, check: &HealthCheck) {
        let begun = tokio::time::Instant::now();
        let grace = Duration::from_millis(check.start_period_ms);
        let mut failures = 0;
        loop {
            tokio::time::sleep(Duration::from_millis(check.interval_ms)).await;
            let passed = self.check_once(id, check).await;
            let health = if passed {
                failures = 0;
                Health::Healthy
            } else if begun.elapsed() < grace {
                continue;
            } else {
                failures += 1;
                if failures < check.retries.max(1) {
                    continue;
                }
                Health::Unhealthy
            };
            if !self.record_health(id, health).await {
                return;
            }
        }
    }

    async fn check_once(&self, id: InstanceId, check: &HealthCheck) -> bool {
        let process = GuestProcess {
            args: check.command.clone(),
            cwd: "/".to_owned(),
            ..GuestProcess::default()
        };
        let Ok(mut session) = self.engine().exec(id, &process).await else {
            return false;
        };
        let patience = Duration::from_millis(check.timeout_ms);
        match tokio::time::timeout(patience, exit_code(&mut session)).await {
            Ok(code) => code == Some(0),
            Err(_too_long) => {
                // It may have ended by itself just now.
                let _ = session.input.send(Input::Signal(KILL)).await;
                false
            }
        }
    }

    /// Writes the health of an instance that runs; whether to go on checking.
    async fn record_health(&self, id: InstanceId, health: Health) -> bool {
        let _turn = self.turn(id).await;
        let (store, key) = (&self.parts().store, id.to_string());
        let Ok(Some(record)) = tables::INSTANCES.get(store, &key).await else {
            return false;
        };
        let Ok(Some(status)) = tables::STATUSES.get(store, &key).await else {
            return false;
        };
        let mut status = status.value;
        if status.phase != Phase::Running && status.phase != Phase::Paused {
            return false;
        }
        if status.health == Some(health) {
            return true;
        }
        status.health = Some(health);
        if let Err(error) = self
            .write(&record.value, &status, Durability::Relaxed)
            .await
        {
            tracing::error!(%id, error = %error.chain(), "health is not recorded");
            return true;
        }
        let kind = if health == Health::Healthy {
            "healthy"
        } else {
            "unhealthy"
        };
        let text = format!("{} is {kind}", record.value.name);
        self.notify(pass::notice(&record.value, kind, text));
        true
    }
}

async fn exit_code(session: &mut Session) -> Option<i32> {
    loop {
        match session.output.recv().await {
            Some(Output::End(SessionEnd::Exited { code })) => return Some(code),
            Some(Output::End(SessionEnd::Lost(_))) | None => return None,
            Some(Output::Stdout(_) | Output::Stderr(_)) => {}
        }
    }
}
