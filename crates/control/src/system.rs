//! The daemon itself: what it is, its metrics, and what it follows.

use std::{collections::BTreeMap, fmt::Write as _};

use api::{Info, Problem};
use tokio::sync::broadcast;

use crate::{Control, wire};

/// What a newcomer should know of this host.
fn warnings(checks: &[api::Check]) -> Vec<String> {
    checks
        .iter()
        .filter(|check| check.verdict != api::Verdict::Ok)
        .map(|check| match &check.advice {
            Some(advice) => format!("{}: {}; {advice}", check.name, check.found),
            None => format!("{}: {}", check.name, check.found),
        })
        .collect()
}

impl Control {
    pub(crate) async fn about(&self) -> Result<Info, Problem> {
        let paths = &self.node().parts().paths;
        let identity = &self.inner.identity;
        let uname = rustix::system::uname();
        let memory = rustix::system::sysinfo();
        Ok(Info {
            version: identity.version.clone(),
            api_version: "v1".to_owned(),
            pid: std::process::id(),
            root: paths.root().display().to_string(),
            run_dir: paths.run_dir().display().to_string(),
            prefix: identity.prefix.clone(),
            hostname: uname.nodename().to_string_lossy().into_owned(),
            kernel: uname.release().to_string_lossy().into_owned(),
            cgroups: identity.cgroups.clone(),
            cpus: std::thread::available_parallelism().map_or(1, |count| count.get() as u32),
            memory_bytes: memory.totalram * u64::from(memory.mem_unit),
            instances: self.counts().await?,
            started_at: identity.started_at.to_string(),
            warnings: warnings(&identity.checks),
        })
    }

    async fn counts(&self) -> Result<BTreeMap<String, u64>, Problem> {
        let mut counts = BTreeMap::new();
        for (record, status) in self.all().await? {
            let phase = wire::phase(&record, status.as_deref());
            *counts.entry(phase.to_string()).or_default() += 1;
        }
        Ok(counts)
    }

    /// Metrics in the Prometheus text format 0.0.4.
    pub(crate) async fn metrics_text(&self) -> Result<String, Problem> {
        let mut text = String::new();
        let mut family = |name: &str, kind: &str, help: &str, rows: Vec<(String, f64)>| {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
            for (labels, value) in rows {
                let _ = writeln!(text, "{name}{labels} {value}");
            }
        };
        let counts = self.counts().await?;
        let rows = counts
            .iter()
            .map(|(status, count)| (format!("{{status=\"{status}\"}}"), *count as f64));
        family(
            "berth_instances",
            "gauge",
            "Instances by status.",
            rows.collect(),
        );
        let stats = self.stats_of_all().await?;
        type Value = fn(&api::Stats) -> f64;
        let families: [(&str, &str, &str, Value); 8] = [
            (
                "berth_instance_cpu_seconds_total",
                "counter",
                "Processor time of this run.",
                |s| s.cpu_ns as f64 / 1e9,
            ),
            (
                "berth_instance_memory_bytes",
                "gauge",
                "Memory held.",
                |s| s.memory_bytes as f64,
            ),
            (
                "berth_instance_pids",
                "gauge",
                "Processes and threads.",
                |s| s.pids as f64,
            ),
            (
                "berth_instance_oom_kills_total",
                "counter",
                "Processes ended for want of memory.",
                |s| s.oom_kills as f64,
            ),
            (
                "berth_instance_read_bytes_total",
                "counter",
                "Bytes read from devices.",
                |s| s.read_bytes as f64,
            ),
            (
                "berth_instance_write_bytes_total",
                "counter",
                "Bytes written to devices.",
                |s| s.write_bytes as f64,
            ),
            (
                "berth_instance_receive_bytes_total",
                "counter",
                "Bytes received.",
                |s| s.rx_bytes as f64,
            ),
            (
                "berth_instance_transmit_bytes_total",
                "counter",
                "Bytes sent.",
                |s| s.tx_bytes as f64,
            ),
        ];
        for (name, kind, help, value) in families {
            // Names of instances are DNS labels: nothing to escape.
            let row = |s: &api::Stats| (format!("{{instance=\"{}\"}}", s.name), value(s));
            family(name, kind, help, stats.iter().map(row).collect());
        }
        Ok(text)
    }

    /// Makes events of what node and workflow tell, and removes what goes away with its program.
    pub(crate) fn follow(&self) {
        let (control, mut notices) = (self.clone(), self.node().notices());
        tokio::spawn(async move {
            loop {
                match notices.recv().await {
                    Ok(notice) => control.hear(notice).await,
                    Err(broadcast::error::RecvError::Lagged(_)) => control.reap_all().await,
                    Err(broadcast::error::RecvError::Closed) => return,
                }
            }
        });
        let (control, mut operations) = (self.clone(), self.workflow().events());
        tokio::spawn(async move {
            let mut states = std::collections::HashMap::new();
            loop {
                match operations.recv().await {
                    Ok(operation) => {
                        if states.insert(operation.id, operation.state) != Some(operation.state) {
                            control.hear_operation(&operation);
                        }
                        if operation.state.is_final() {
                            states.remove(&operation.id);
                        }
                    }
                    Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => return,
                }
            }
        });
    }

    async fn hear(&self, notice: node::Notice) {
        let kind = format!("instance.{}", notice.kind);
        let resource = format!("instances/{}", notice.name);
        // Another may have the name by now, or soon.
        let id = [("id", notice.id.to_string())].into_iter();
        let attributes = id
            .chain(notice.attributes)
            .map(|(key, value)| (key.to_owned(), value));
        self.inner
            .events
            .tell(kind, resource, notice.message, attributes);
        if matches!(notice.kind, "exited" | "start_failed") {
            self.reap(notice.id).await;
        }
    }

    fn hear_operation(&self, operation: &workflow::Operation) {
        let shown = wire::operation(operation);
        let state = match serde_json::to_value(shown.state) {
            Ok(serde_json::Value::String(state)) => state,
            _ => return,
        };
        let text = shown
            .error
            .unwrap_or_else(|| format!("{} {state}", shown.kind));
        let attributes = [
            ("operation".to_owned(), shown.id),
            ("kind".to_owned(), shown.kind),
        ];
        self.inner.events.tell(
            format!("operation.{state}"),
            &shown.resource,
            text,
            attributes,
        );
        if operation.state == workflow::State::Succeeded {
            self.succeeded(operation);
        }
    }

    /// What else an operation's success means.
    fn succeeded(&self, operation: &workflow::Operation) {
        let input =
            serde_json::from_value::<crate::operations::InstanceInput>(operation.input.clone());
        if let Ok(input) = input {
            self.node().kick(input.id);
        }
        if operation.kind == model::operation::OperationKind::InstanceDelete.as_str() {
            let resource = operation.resources.first().cloned().unwrap_or_default();
            self.inner
                .events
                .tell("instance.removed", resource, "gone", []);
        }
    }
}
