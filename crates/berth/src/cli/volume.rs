//! `berth volume …`

use api::{Volume, VolumeCreate};
use clap::{Args, Subcommand};

use super::{
    Context, complete,
    exit::Outcome,
    human,
    output::{self, Column, ListArgs, Row, ShowArgs, column, wide},
    parse,
    suggest::{Noun, on_missing},
    table::Cell,
};

/// The verbs of volumes.
#[derive(Debug, Subcommand)]
pub enum VolumeCommand {
    /// List volumes
    #[command(visible_alias = "ls")]
    List(ListArgs),
    /// Show one volume, and what it holds
    Show {
        #[command(flatten)]
        show: ShowArgs,
        /// The volume
        #[arg(add = complete::volumes())]
        name: String,
    },
    /// Make a volume
    Create(CreateArgs),
    /// Delete volumes that nothing uses, with what they hold
    Rm {
        /// The volumes
        #[arg(required = true, value_name = "NAME", add = complete::volumes())]
        names: Vec<String>,
    },
}

/// Flags of `volume create`.
#[derive(Debug, Args)]
pub struct CreateArgs {
    /// Most it may hold, such as 10G; no limit when not given
    #[arg(long, value_name = "SIZE", value_parser = parse::size)]
    size: Option<String>,
    /// Mark it
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = parse::label)]
    label: Vec<(String, String)>,
    /// Its name
    name: String,
}

fn size(volume: &Volume) -> String {
    match volume.size_bytes {
        Some(size) if volume.quota == "unsupported" => {
            format!(
                "{} (a note only: the file system has no quota)",
                human::bytes(size)
            )
        }
        Some(size) => human::bytes(size),
        None => String::new(),
    }
}

impl Row for Volume {
    const COLUMNS: &'static [Column<Self>] = &[
        column("NAME", |v, _| Cell::from(&v.name)),
        column("SIZE", |v, _| {
            Cell::from(v.size_bytes.map(human::bytes).unwrap_or_default())
        }),
        column("QUOTA", |v, _| Cell::from(&v.quota)),
        column("USED BY", |v, _| Cell::from(v.instances.join(","))),
        column("AGE", |v, now| Cell::from(human::age(&v.created_at, now))),
        wide("PATH", |v, _| Cell::from(&v.path)),
    ];
    const TOPIC: &'static str = "volume.";

    fn name(&self) -> &str {
        &self.name
    }
}

fn describe(volume: &Volume) -> Vec<(&'static str, String)> {
    let labels: Vec<_> = volume
        .labels
        .iter()
        .map(|(k, v)| format!("{k}={v}"))
        .collect();
    vec![
        ("Name", volume.name.clone()),
        ("Size", size(volume)),
        (
            "Used",
            volume.used_bytes.map(human::bytes).unwrap_or_default(),
        ),
        ("Used by", volume.instances.join("\n")),
        ("Labels", labels.join("\n")),
        ("Created", volume.created_at.clone()),
        ("Path", volume.path.clone()),
    ]
}

impl VolumeCommand {
    /// Does it.
    pub async fn run(self, cx: &Context) -> Outcome {
        match self {
            Self::List(args) => {
                output::list(cx, &args, async || Ok(cx.client.list_volumes().await?)).await
            }
            Self::Show { show, name } => {
                let volume = cx.client.show_volume(&name).await;
                let volume = missing(cx, &name, volume).await?;
                output::one(cx, show, &volume.name, &volume, describe)
            }
            Self::Create(args) => {
                let request = VolumeCreate {
                    name: args.name,
                    size: args.size,
                    labels: args.label.into_iter().collect(),
                };
                let made = cx.client.create_volume(&request).await?;
                if made.quota == "unsupported" {
                    cx.say("The size is a note only: the file system of the pool has no quota.");
                }
                cx.print(&made.name)
            }
            Self::Rm { names } => {
                for name in names {
                    let deleted = cx.client.delete_volume(&name).await;
                    missing(cx, &name, deleted).await?;
                    cx.print(&name)?;
                }
                Ok(())
            }
        }
    }
}

async fn missing<T>(cx: &Context, name: &str, result: api::client::Result<T>) -> Outcome<T> {
    match result {
        Ok(found) => Ok(found),
        Err(error) => Err(on_missing(cx, Noun::Volume, name, error.into()).await),
    }
}
