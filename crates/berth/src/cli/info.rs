//! `info` and `version`.

use api::{Check, Info, Verdict};
use clap::Args;

use super::{
    Context,
    exit::Outcome,
    human,
    output::{self, Column, ListArgs, Row, ShowArgs, column},
    table::Cell,
};

/// Flags of `info`.
#[derive(Debug, Args)]
pub struct InfoArgs {
    #[command(flatten)]
    show: ShowArgs,
}

impl InfoArgs {
    /// Shows the daemon and its host.
    pub async fn run(self, cx: &Context) -> Outcome {
        let info = cx.client.info().await?;
        output::one(cx, self.show, &info.hostname, &info, |info| {
            describe(cx, info)
        })
    }
}

fn describe(cx: &Context, info: &Info) -> Vec<(&'static str, String)> {
    let instances: Vec<_> = info
        .instances
        .iter()
        .map(|(status, count)| format!("{count} {status}"))
        .collect();
    let instances = if instances.is_empty() {
        "none".to_owned()
    } else {
        instances.join(", ")
    };
    vec![
        (
            "Daemon",
            format!(
                "{} (API {}), process {}",
                info.version, info.api_version, info.pid
            ),
        ),
        ("Address", cx.client.address().to_string()),
        ("Since", info.started_at.clone()),
        ("Host", format!("{}, Linux {}", info.hostname, info.kernel)),
        ("CPUs", info.cpus.to_string()),
        ("Memory", human::bytes(info.memory_bytes)),
        ("Control groups", info.cgroups.clone()),
        ("Root", info.root.clone()),
        ("Run directory", info.run_dir.clone()),
        ("Prefix", info.prefix.clone()),
        ("Instances", instances),
        ("Warnings", info.warnings.join("\n")),
    ]
}

impl Row for Check {
    const COLUMNS: &'static [Column<Self>] = &[
        column("CHECK", |c, _| Cell::from(&c.name)),
        column("VERDICT", |c, _| {
            Cell::from(match c.verdict {
                Verdict::Ok => "ok",
                Verdict::Limited => "limited",
                Verdict::Missing => "missing",
            })
        }),
        column("FOUND", |c, _| Cell::from(&c.found)),
        column("ADVICE", |c, _| {
            Cell::from(c.advice.as_deref().unwrap_or(""))
        }),
    ];
    const TOPIC: &'static str = "daemon.";

    fn name(&self) -> &str {
        &self.name
    }
}

/// Shows what the daemon's host can and cannot do.
pub async fn doctor(cx: &Context, args: &ListArgs) -> Outcome {
    output::list(cx, args, async || Ok(cx.client.doctor().await?)).await
}

/// Flags of `version`.
#[derive(Debug, Args)]
pub struct VersionArgs {
    #[command(flatten)]
    show: ShowArgs,
}

/// Both versions.
#[derive(Debug, serde::Serialize)]
struct Versions {
    client: &'static str,
    daemon: Option<String>,
}

impl VersionArgs {
    /// Shows the version of this command and of the daemon, if one answers.
    pub async fn run(self, cx: &Context) -> Outcome {
        let versions = Versions {
            client: env!("CARGO_PKG_VERSION"),
            daemon: cx.client.info().await.ok().map(|info| info.version),
        };
        output::one(cx, self.show, versions.client, &versions, |versions| {
            vec![
                ("berth", versions.client.to_owned()),
                (
                    "daemon",
                    versions
                        .daemon
                        .clone()
                        .unwrap_or_else(|| "not reachable".into()),
                ),
            ]
        })
    }
}
