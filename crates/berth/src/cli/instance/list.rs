//! `list`, `show` and `inspect`.

use api::{Instance, InstanceDetail, Kind};
use clap::Args;

use crate::cli::{
    Context, complete,
    exit::Outcome,
    human,
    instance::cpu_stats,
    output::{self, Column, ListArgs, Row, ShowArgs, column, wide},
    parse::port,
    suggest::{Noun, on_missing},
    table::{Cell, Style},
};

fn status_style(status: &str) -> Style {
    match status {
        "running" => Style::Good,
        "failed" => Style::Bad,
        "stopped" => Style::Dim,
        _ => Style::Busy,
    }
}

/// The status with what matters about it: `running (healthy)`, `stopped (137)`.
fn status(instance: &Instance) -> String {
    match (&instance.health, &instance.exit) {
        (Some(health), _) if instance.status == "running" => {
            format!("{} ({health})", instance.status)
        }
        (_, Some(exit)) if instance.status == "stopped" && exit.oom_killed => {
            "stopped (out of memory)".into()
        }
        (_, Some(exit)) if instance.status == "stopped" => format!("stopped ({})", exit.code),
        _ => instance.status.clone(),
    }
}

fn ports(instance: &Instance) -> String {
    let shown: Vec<_> = instance.ports.iter().map(port::show).collect();
    shown.join(",")
}

fn labels(labels: &std::collections::BTreeMap<String, String>) -> String {
    let shown: Vec<_> = labels
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    shown.join(",")
}

impl Row for Instance {
    const COLUMNS: &'static [Column<Self>] = &[
        column("NAME", |i, _| Cell::from(&i.name)),
        column("STATUS", |i, _| {
            Cell::styled(status(i), status_style(&i.status))
        }),
        column("IMAGE", |i, _| Cell::from(&i.image)),
        column("ADDRESS", |i, _| {
            Cell::from(i.addresses.first().map_or("", String::as_str))
        }),
        column("PORTS", |i, _| Cell::from(ports(i))),
        column("AGE", |i, now| Cell::from(human::age(&i.created_at, now))),
        wide("KIND", |i, _| Cell::from(kind(i))),
        wide("RESTARTS", |i, _| Cell::from(i.restarts.to_string())),
        wide("ADDRESSES", |i, _| Cell::from(i.addresses.join(","))),
        wide("LABELS", |i, _| Cell::from(labels(&i.labels))),
        wide("ID", |i, _| Cell::from(&i.id)),
        wide("MESSAGE", |i, _| {
            Cell::from(i.message.as_deref().unwrap_or(""))
        }),
    ];
    const TOPIC: &'static str = "instance.";

    fn name(&self) -> &str {
        &self.name
    }
}

/// What an instance is, in a word or two.
const fn kind(instance: &Instance) -> &'static str {
    match (instance.kind, instance.machine) {
        (Kind::Application, false) => "application",
        (Kind::System, false) => "system",
        (Kind::Application, true) => "application vm",
        (Kind::System, true) => "system vm",
    }
}

/// Lists instances.
pub async fn list(cx: &Context, args: &ListArgs) -> Outcome {
    output::list(cx, args, async || {
        Ok(cx.client.list_instances(None, None).await?)
    })
    .await
}

/// Flags of `show`.
#[derive(Debug, Args)]
pub struct ShowInstanceArgs {
    #[command(flatten)]
    show: ShowArgs,
    /// Show what the software CPU of a virtual machine counts, such as what it translated and why it
    /// left that; -o wide for each vCPU
    #[arg(long)]
    cpu_stats: bool,
    /// The instance, by name, id, or the beginning of an id
    #[arg(add = complete::instances())]
    name: String,
}

impl ShowInstanceArgs {
    /// Shows one instance.
    pub async fn run(self, cx: &Context) -> Outcome {
        let detail = find(cx, &self.name).await?;
        if self.cpu_stats {
            return cpu_stats::show(cx, self.show, &detail.instance.name).await;
        }
        output::one(cx, self.show, &detail.instance.name, &detail, describe)
    }
}

/// Flags of `inspect`.
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// The instances
    #[arg(required = true, value_name = "NAME", add = complete::instances())]
    names: Vec<String>,
}

impl InspectArgs {
    /// Prints instances as the API gives them: a list, as scripts expect.
    pub async fn run(self, cx: &Context) -> Outcome {
        let mut found = Vec::new();
        for name in &self.names {
            found.push(find(cx, name).await?);
        }
        output::write_json(&mut std::io::stdout().lock(), &found)
    }
}

/// An instance, or a failure with the nearest name there is.
pub async fn find(cx: &Context, name: &str) -> Outcome<InstanceDetail> {
    match cx.client.show_instance(name).await {
        Ok(detail) => Ok(detail),
        Err(error) => Err(on_missing(cx, Noun::Instance, name, error.into()).await),
    }
}

/// The lines for people.
fn describe(detail: &InstanceDetail) -> Vec<(&'static str, String)> {
    let (instance, spec, now) = (&detail.instance, &detail.spec, human::now());
    let ago = |at: &Option<String>| match at {
        Some(at) => format!("{at} ({} ago)", human::age(at, now)),
        None => String::new(),
    };
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let words = |value: &Option<Vec<String>>| human::command(value.as_deref().unwrap_or_default());
    let mounts: Vec<String> = spec
        .mounts
        .iter()
        .map(|mount| {
            let source = mount.source.as_deref().unwrap_or("memory");
            let mode = if mount.read_only { " (read-only)" } else { "" };
            format!("{source} on {}{mode}", mount.target)
        })
        .collect();
    let usage = &detail.usage;
    vec![
        ("Name", instance.name.clone()),
        ("Id", instance.id.clone()),
        ("Kind", kind(instance).to_owned()),
        ("Status", status(instance)),
        ("Message", text(&instance.message)),
        ("Wanted", detail.desired.clone()),
        (
            "Restarts",
            if instance.restarts == 0 {
                String::new()
            } else {
                instance.restarts.to_string()
            },
        ),
        ("Restarts at", text(&detail.restart_at)),
        ("Image", instance.image.clone()),
        ("Digest", text(&detail.image_digest)),
        ("Entrypoint", words(&spec.entrypoint)),
        ("Command", words(&spec.command)),
        ("Created", ago(&Some(instance.created_at.clone()))),
        ("Started", ago(&instance.started_at)),
        (
            "Process",
            detail.pid.map(|pid| pid.to_string()).unwrap_or_default(),
        ),
        ("Addresses", instance.addresses.join("\n")),
        ("Network", text(&spec.network)),
        ("Ports", ports(instance).replace(',', "\n")),
        (
            "CPUs",
            spec.cpus.map(|cpus| cpus.to_string()).unwrap_or_default(),
        ),
        ("Memory", text(&spec.memory)),
        ("Disk limits", disk_limits(&spec.io)),
        ("Network limits", network_limits(&spec.net)),
        (
            "Processes",
            spec.pids.map(|pids| pids.to_string()).unwrap_or_default(),
        ),
        ("Restart", text(&spec.restart)),
        ("Mounts", mounts.join("\n")),
        ("Labels", labels(&instance.labels).replace(',', "\n")),
        (
            "Used so far",
            used(
                usage.cpu_ns,
                usage.memory_peak_bytes,
                usage.read_bytes,
                usage.write_bytes,
            ),
        ),
        ("Directory", detail.directory.clone()),
        ("Generation", detail.generation.to_string()),
    ]
}

/// Rates of a disk, such as `10M read, 500 writes a second`.
fn disk_limits(io: &api::Io) -> String {
    let bytes = |rate: &Option<String>, way| rate.as_ref().map(|rate| format!("{rate} {way}"));
    let often = |rate: Option<u64>, what| rate.map(|rate| format!("{rate} {what}"));
    let all = [
        bytes(&io.read_bps, "read"),
        bytes(&io.write_bps, "written"),
        often(io.read_iops, "reads"),
        often(io.write_iops, "writes"),
    ];
    a_second(all.into_iter().flatten().collect())
}

/// Rates of a network card, such as `10M in (1M at once), 5M out a second`.
fn network_limits(net: &api::Net) -> String {
    let way = |rate: &Option<String>, burst: &Option<String>, way| {
        let burst = burst.as_ref().map(|it| format!(" ({it} at once)"));
        let rate = rate.as_ref()?;
        Some(format!("{rate} {way}{}", burst.unwrap_or_default()))
    };
    let all = [
        way(&net.ingress_bps, &net.ingress_burst, "in"),
        way(&net.egress_bps, &net.egress_burst, "out"),
    ];
    a_second(all.into_iter().flatten().collect())
}

fn a_second(rates: Vec<String>) -> String {
    match rates.len() {
        0 => String::new(),
        _ => format!("{} a second", rates.join(", ")),
    }
}

fn used(cpu_ns: u64, memory: u64, read: u64, written: u64) -> String {
    if cpu_ns == 0 && memory == 0 {
        return String::new();
    }
    format!(
        "{:.1} s processor, {} memory at most, {} read, {} written",
        cpu_ns as f64 / 1e9,
        human::bytes(memory),
        human::bytes(read),
        human::bytes(written)
    )
}
