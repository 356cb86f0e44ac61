//! `berth network …`

use api::{Network, NetworkCreate};
use clap::{Args, Subcommand};

use super::{
    Context, complete,
    exit::Outcome,
    human,
    output::{self, Column, ListArgs, Row, ShowArgs, column, wide},
    suggest::{Noun, on_missing},
    table::Cell,
};

/// The verbs of networks.
#[derive(Debug, Subcommand)]
pub enum NetworkCommand {
    /// List networks
    #[command(visible_alias = "ls")]
    List(ListArgs),
    /// Show one network, and who holds which address
    Show {
        #[command(flatten)]
        show: ShowArgs,
        /// The network
        #[arg(add = complete::networks())]
        name: String,
    },
    /// Make a network
    Create(CreateArgs),
    /// Delete networks that nothing uses
    Rm {
        /// The networks
        #[arg(required = true, value_name = "NAME", add = complete::networks())]
        names: Vec<String>,
    },
}

/// Flags of `network create`.
#[derive(Debug, Args)]
pub struct CreateArgs {
    /// IPv4 subnet, such as 10.80.0.0/24; a free one when neither is given
    #[arg(long, value_name = "SUBNET")]
    ipv4: Option<String>,
    /// IPv6 subnet, such as fd80::/64; a free one when neither is given
    #[arg(long, value_name = "SUBNET")]
    ipv6: Option<String>,
    /// Keep instances from the world outside
    #[arg(long)]
    isolated: bool,
    /// Largest packet
    #[arg(long, value_name = "BYTES")]
    mtu: Option<u32>,
    /// Its name
    name: String,
}

fn yes(set: bool) -> &'static str {
    if set { "yes" } else { "no" }
}

impl Row for Network {
    const COLUMNS: &'static [Column<Self>] = &[
        column("NAME", |n, _| Cell::from(&n.name)),
        column("IPV4", |n, _| Cell::from(n.ipv4.as_deref().unwrap_or(""))),
        column("IPV6", |n, _| Cell::from(n.ipv6.as_deref().unwrap_or(""))),
        column("ISOLATED", |n, _| Cell::from(yes(n.isolated))),
        column("IN USE", |n, _| Cell::from(n.leases.len().to_string())),
        column("AGE", |n, now| Cell::from(human::age(&n.created_at, now))),
        wide("BRIDGE", |n, _| Cell::from(&n.bridge)),
        wide("GATEWAYS", |n, _| Cell::from(n.gateways.join(","))),
        wide("MTU", |n, _| {
            Cell::from(n.mtu.map(|mtu| mtu.to_string()).unwrap_or_default())
        }),
    ];
    const TOPIC: &'static str = "network.";

    fn name(&self) -> &str {
        &self.name
    }
}

fn describe(network: &Network) -> Vec<(&'static str, String)> {
    let leases: Vec<_> = network
        .leases
        .iter()
        .map(|lease| format!("{} {}", lease.address, lease.instance))
        .collect();
    vec![
        ("Name", network.name.clone()),
        ("IPv4", network.ipv4.clone().unwrap_or_default()),
        ("IPv6", network.ipv6.clone().unwrap_or_default()),
        ("Gateways", network.gateways.join("\n")),
        ("Isolated", yes(network.isolated).to_owned()),
        (
            "MTU",
            network.mtu.map(|mtu| mtu.to_string()).unwrap_or_default(),
        ),
        ("Bridge", network.bridge.clone()),
        ("Created", network.created_at.clone()),
        ("Addresses", leases.join("\n")),
    ]
}

impl NetworkCommand {
    /// Does it.
    pub async fn run(self, cx: &Context) -> Outcome {
        match self {
            Self::List(args) => {
                output::list(cx, &args, async || Ok(cx.client.list_networks().await?)).await
            }
            Self::Show { show, name } => {
                let network = cx.client.show_network(&name).await;
                let network = missing(cx, &name, network).await?;
                output::one(cx, show, &network.name, &network, describe)
            }
            Self::Create(args) => {
                let request = NetworkCreate {
                    name: args.name,
                    ipv4: args.ipv4,
                    ipv6: args.ipv6,
                    isolated: args.isolated,
                    mtu: args.mtu,
                };
                let made = cx.client.create_network(&request).await?;
                let subnets: Vec<_> = made.ipv4.iter().chain(&made.ipv6).cloned().collect();
                cx.note(&human::clean(&subnets.join(" ")));
                cx.print(&made.name)
            }
            Self::Rm { names } => {
                for name in names {
                    let deleted = cx.client.delete_network(&name).await;
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
        Err(error) => Err(on_missing(cx, Noun::Network, name, error.into()).await),
    }
}
