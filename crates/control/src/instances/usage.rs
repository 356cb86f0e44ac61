//! What instances use now, and their processes.

use api::{CpuCounter, CpuStats, ErrorCode, Problem, Stats, TopRow, Untranslated};
use engine::EngineError;
use model::{InstanceStatus, Phase, record::InstanceRecord};

use crate::{Control, error::from_engine, wire};

impl Control {
    pub(crate) async fn stats(&self, name: &str) -> Result<Stats, Problem> {
        let record = self.find(name).await?.value;
        let stats = self.stats_of(&record).await?;
        let not_running = || from_engine(name, EngineError::NotRunning { id: record.id });
        stats.ok_or_else(not_running)
    }

    pub(crate) async fn stats_of_all(&self) -> Result<Vec<Stats>, Problem> {
        let live = |status: &Option<std::sync::Arc<InstanceStatus>>, record: &InstanceRecord| {
            wire::phase(record, status.as_deref()).is_live()
        };
        let mut all = Vec::new();
        for (record, status) in self.all().await? {
            if live(&status, &record) {
                all.extend(self.stats_of(&record).await?);
            }
        }
        all.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(all)
    }

    async fn stats_of(&self, record: &InstanceRecord) -> Result<Option<Stats>, Problem> {
        let name = record.name.as_str();
        let seen = self.engine().stats(record.id).await;
        let Some(seen) = seen.map_err(|error| from_engine(name, error))? else {
            return Ok(None);
        };
        let limits = &record.spec.limits;
        let (rx_bytes, tx_bytes) = self.traffic(record);
        Ok(Some(Stats {
            id: record.id.to_string(),
            name: name.to_owned(),
            at_ms: node::clock::now().as_millis(),
            cpu_ns: seen.cpu_ns,
            throttled_ns: seen.throttled_ns,
            cpu_limit: limits.cpus.map(|cpus| f64::from(cpus.0) / 1000.0),
            memory_bytes: seen.memory_bytes,
            memory_peak_bytes: seen.memory_peak_bytes,
            memory_limit_bytes: limits.memory.map(|size| size.0),
            swap_bytes: seen.swap_bytes,
            oom_kills: seen.oom_kills,
            pids: seen.pids,
            pids_limit: limits.pids.map(u64::from),
            read_bytes: seen.read_bytes,
            write_bytes: seen.write_bytes,
            rx_bytes,
            tx_bytes,
        }))
    }

    pub(crate) async fn cpu_stats(&self, name: &str) -> Result<CpuStats, Problem> {
        let record = self.find(name).await?.value;
        let name = record.name.as_str();
        if record.spec.machine.is_none() {
            let text = format!(
                "instance {name:?} is a container: the host's processor executes it, and nothing is counted"
            );
            return Err(Problem::new(ErrorCode::Unsupported, text)
                .hint("only virtual machines have a software CPU: berth run --vm --accel soft"));
        }
        let status = self.status(record.id).await?;
        if wire::phase(&record, status.as_ref()) == Phase::Paused {
            let text = format!("instance {name:?} is paused and cannot be asked");
            return Err(
                Problem::new(ErrorCode::Conflict, text).hint(format!("berth resume {name}"))
            );
        }
        let seen = self.engine().cpu_stats(record.id).await;
        let seen = seen.map_err(|error| match error {
            // It does not run on the software CPU.
            EngineError::Refused { message } => {
                let text = format!("instance {name:?}: {message}");
                Problem::new(ErrorCode::Unsupported, text)
                    .hint("--accel soft at its creation chooses the software CPU")
            }
            error => from_engine(name, error),
        })?;
        let counter = |it: engine::CpuCounter| CpuCounter {
            name: it.name,
            meaning: it.meaning,
            vcpus: it.vcpus,
        };
        let form = |it: engine::Untranslated| Untranslated {
            form: it.form,
            count: it.count,
        };
        Ok(CpuStats {
            id: record.id.to_string(),
            name: name.to_owned(),
            counters: seen.counters.into_iter().map(counter).collect(),
            untranslated: seen.untranslated.into_iter().map(form).collect(),
        })
    }

    /// Bytes received and sent by an instance: what the host's end of its link sent and received.
    fn traffic(&self, record: &InstanceRecord) -> (u64, u64) {
        if record.lease.is_none() {
            return (0, 0);
        }
        let link = self.node().parts().wiring.host_link(record.id);
        let counter = |name: &str| {
            let path = format!("/sys/class/net/{link}/statistics/{name}");
            std::fs::read_to_string(path)
                .ok()
                .and_then(|text| text.trim().parse().ok())
        };
        (
            counter("tx_bytes").unwrap_or(0),
            counter("rx_bytes").unwrap_or(0),
        )
    }

    pub(crate) async fn top(&self, name: &str) -> Result<Vec<TopRow>, Problem> {
        let record = self.find(name).await?.value;
        let inside = self.engine().processes(record.id).await;
        let inside = inside.map_err(|error| from_engine(name, error))?;
        let row = |process: engine::GuestProcessInfo| TopRow {
            pid: process.pid,
            inner_pid: process.inner_pid,
            uid: process.uid,
            cpu_ms: process.cpu_ms,
            rss_bytes: process.rss_bytes,
            state: process.state.to_string(),
            command: process.command,
        };
        Ok(inside.into_iter().map(row).collect())
    }
}
