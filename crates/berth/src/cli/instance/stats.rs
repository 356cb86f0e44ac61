//! `stats` and `top`: what instances use now.

use std::{collections::BTreeMap, io::Write, time::Duration};

use api::{Stats, TopRow};
use clap::Args;

use crate::cli::{
    Context, complete,
    exit::Outcome,
    human,
    output::{self, Column, Format, ListArgs, Row, column, wide},
    suggest::{Noun, on_missing},
    table::Cell,
};

/// Time between two looks; processor use is what happened between them.
const INTERVAL: Duration = Duration::from_millis(500);

/// Time between two looks of `--watch`.
const WATCH_INTERVAL: Duration = Duration::from_secs(2);

/// Flags of `stats`.
#[derive(Debug, Args)]
pub struct StatsArgs {
    #[command(flatten)]
    list: ListArgs,
    /// The instances; every running one when none is named
    #[arg(value_name = "NAME", add = complete::instances())]
    names: Vec<String>,
}

/// Flags of `top`.
#[derive(Debug, Args)]
pub struct TopArgs {
    #[command(flatten)]
    list: ListArgs,
    /// The instance
    #[arg(add = complete::instances())]
    name: String,
}

/// What an instance uses, with its processor use since the last look.
#[derive(Debug, Clone, serde::Serialize)]
struct Use {
    #[serde(flatten)]
    stats: Stats,
    /// Percent of one CPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu_percent: Option<f64>,
}

fn of_limit(used: u64, limit: Option<u64>, show: fn(u64) -> String) -> String {
    match limit {
        Some(limit) => format!("{} / {}", show(used), show(limit)),
        None => show(used),
    }
}

impl Row for Use {
    const COLUMNS: &'static [Column<Self>] = &[
        column("NAME", |u, _| Cell::from(&u.stats.name)),
        column("CPU", |u, _| {
            Cell::from(
                u.cpu_percent
                    .map(|percent| format!("{percent:.1}%"))
                    .unwrap_or_default(),
            )
        }),
        column("MEMORY", |u, _| {
            Cell::from(of_limit(
                u.stats.memory_bytes,
                u.stats.memory_limit_bytes,
                human::bytes,
            ))
        }),
        column("PIDS", |u, _| {
            Cell::from(of_limit(u.stats.pids, u.stats.pids_limit, |n| {
                n.to_string()
            }))
        }),
        column("NET IN", |u, _| Cell::from(human::bytes(u.stats.rx_bytes))),
        column("NET OUT", |u, _| Cell::from(human::bytes(u.stats.tx_bytes))),
        column("READ", |u, _| Cell::from(human::bytes(u.stats.read_bytes))),
        column("WRITTEN", |u, _| {
            Cell::from(human::bytes(u.stats.write_bytes))
        }),
        wide("MEMORY PEAK", |u, _| {
            Cell::from(human::bytes(u.stats.memory_peak_bytes))
        }),
        wide("SWAP", |u, _| Cell::from(human::bytes(u.stats.swap_bytes))),
        wide("THROTTLED", |u, _| {
            Cell::from(format!("{:.1}s", u.stats.throttled_ns as f64 / 1e9))
        }),
        wide("OOM KILLS", |u, _| {
            Cell::from(u.stats.oom_kills.to_string())
        }),
    ];
    const TOPIC: &'static str = "instance.";

    fn name(&self) -> &str {
        &self.stats.name
    }
}

impl StatsArgs {
    /// Prints what instances use; with `--watch` again and again.
    pub async fn run(self, cx: &Context) -> Outcome {
        let mut before = by_id(self.look(cx).await?);
        if before.is_empty() {
            cx.note("Nothing runs.");
        }
        let mut wait = INTERVAL;
        loop {
            if !before.is_empty() || self.list.watch {
                tokio::time::sleep(wait).await;
            }
            let now = self.look(cx).await?;
            let rows = now
                .iter()
                .map(|stats| measure(stats, before.get(&stats.id)))
                .collect();
            let rows = crate::cli::filter::apply(rows, &self.list.filter)?;
            if self.list.watch && self.list.show.output == Format::Json {
                for row in &rows {
                    output::write_json_line(&mut std::io::stdout().lock(), row)?;
                }
            } else {
                redraw(cx, self.list.watch)?;
                output::rows(cx, &self.list, &rows, true)?;
            }
            if !self.list.watch {
                return Ok(());
            }
            before = by_id(now);
            wait = WATCH_INTERVAL;
        }
    }

    async fn look(&self, cx: &Context) -> Outcome<Vec<Stats>> {
        if self.names.is_empty() {
            return Ok(cx.client.all_stats().await?);
        }
        let mut found = Vec::new();
        for name in &self.names {
            match cx.client.instance_stats(name).await {
                Ok(stats) => found.push(stats),
                Err(error) => {
                    return Err(on_missing(cx, Noun::Instance, name, error.into()).await);
                }
            }
        }
        Ok(found)
    }
}

fn by_id(stats: Vec<Stats>) -> BTreeMap<String, Stats> {
    stats
        .into_iter()
        .map(|stats| (stats.id.clone(), stats))
        .collect()
}

fn measure(now: &Stats, before: Option<&Stats>) -> Use {
    let cpu_percent = before.and_then(|before| {
        let elapsed_ms = now.at_ms.checked_sub(before.at_ms).filter(|ms| *ms > 0)?;
        let used_ns = now.cpu_ns.checked_sub(before.cpu_ns)?;
        Some((used_ns as f64 / (elapsed_ms as f64 * 1e6) * 1000.0).round() / 10.0)
    });
    Use {
        stats: now.clone(),
        cpu_percent,
    }
}

/// Starts the picture over on a terminal.
fn redraw(cx: &Context, watch: bool) -> Outcome {
    if watch && cx.out_is_terminal {
        write!(std::io::stdout().lock(), "\x1b[H\x1b[2J")?;
    }
    Ok(())
}

impl Row for TopRow {
    const COLUMNS: &'static [Column<Self>] = &[
        column("PID", |p, _| Cell::from(p.inner_pid.to_string())),
        column("HOST PID", |p, _| Cell::from(p.pid.to_string())),
        column("UID", |p, _| Cell::from(p.uid.to_string())),
        column("STATE", |p, _| Cell::from(&p.state)),
        column("CPU TIME", |p, _| {
            Cell::from(format!("{:.1}s", p.cpu_ms as f64 / 1e3))
        }),
        column("MEMORY", |p, _| Cell::from(human::bytes(p.rss_bytes))),
        column("COMMAND", |p, _| Cell::from(&p.command)),
    ];
    const TOPIC: &'static str = "instance.";

    fn name(&self) -> &str {
        &self.command
    }
}

impl TopArgs {
    /// Prints the processes inside; with `--watch` again and again.
    pub async fn run(self, cx: &Context) -> Outcome {
        loop {
            let rows = match cx.client.instance_top(&self.name).await {
                Ok(rows) => crate::cli::filter::apply(rows, &self.list.filter)?,
                Err(error) => {
                    return Err(on_missing(cx, Noun::Instance, &self.name, error.into()).await);
                }
            };
            redraw(cx, self.list.watch)?;
            output::rows(cx, &self.list, &rows, true)?;
            if !self.list.watch {
                return Ok(());
            }
            tokio::time::sleep(WATCH_INTERVAL).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_use_is_what_happened_between_two_looks() {
        let stats = |at_ms, cpu_ns| -> Stats {
            serde_json::from_value(serde_json::json!({
                "id": "1", "name": "web", "at_ms": at_ms, "cpu_ns": cpu_ns, "throttled_ns": 0,
                "memory_bytes": 0, "memory_peak_bytes": 0, "swap_bytes": 0, "oom_kills": 0,
                "pids": 1, "read_bytes": 0, "write_bytes": 0, "rx_bytes": 0, "tx_bytes": 0,
            }))
            .unwrap()
        };
        let percent =
            |now: Stats, before: Option<Stats>| measure(&now, before.as_ref()).cpu_percent;
        let (first, later) = (stats(1000, 0), stats(1500, 750_000_000));
        assert_eq!(percent(later.clone(), Some(first.clone())), Some(150.0));
        assert_eq!(percent(first.clone(), None), None);
        // The same moment, or a restart in between: nothing can be said.
        assert_eq!(percent(first.clone(), Some(first)), None);
        assert_eq!(percent(stats(2000, 1), Some(later)), None);
    }
}
