//! Networks: made on request, the default one at first use.

use api::{ErrorCode, Lease, Network, NetworkCreate, Problem};
use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use model::{
    Name,
    network::{NetworkSpec, Outside},
    record::NetworkRecord,
};
use network::ipam;
use node::{clock, tables};
use store::{CommitError, Entry, Txn};

use crate::{
    Control,
    error::{chain, internal, invalid, wrong_field},
    wire,
};

/// Name of the network that is made at first use.
const DEFAULT: &str = "default";
/// Attempts to commit against others that make networks.
const ATTEMPTS: u32 = 8;

impl Control {
    pub(crate) async fn networks(&self) -> Result<Vec<Network>, Problem> {
        let all = tables::NETWORKS
            .list(self.store())
            .await
            .map_err(internal)?;
        let mut shown = Vec::new();
        for entry in all.entries {
            shown.push(self.shown(&entry.value).await?);
        }
        Ok(shown)
    }

    pub(crate) async fn network(&self, name: &str) -> Result<Network, Problem> {
        self.shown(&self.network_entry(name).await?.value).await
    }

    async fn network_entry(&self, name: &str) -> Result<Entry<NetworkRecord>, Problem> {
        let found = match name.parse::<Name>() {
            Ok(name) => tables::NETWORKS
                .get(self.store(), name.as_str())
                .await
                .map_err(internal)?,
            Err(_) => None,
        };
        found.ok_or_else(|| {
            Problem::not_found("network", name).hint("berth network list shows what there is")
        })
    }

    /// The network of a name, and what to tell its user when it was made just now: the default one
    /// is, at its first use.
    pub(crate) async fn network_or_default(
        &self,
        name: &Name,
    ) -> Result<(NetworkRecord, Option<String>), Problem> {
        if name.as_str() == DEFAULT {
            let found = tables::NETWORKS
                .get(self.store(), DEFAULT)
                .await
                .map_err(internal)?;
            if found.is_none() {
                let request = NetworkCreate {
                    name: DEFAULT.to_owned(),
                    ..Default::default()
                };
                match self.make_network(request).await {
                    Ok(record) => {
                        let note = first_use(&record);
                        return Ok((record, Some(note)));
                    }
                    // Somebody else's first use came first.
                    Err(problem) if problem.code == ErrorCode::Conflict => {}
                    Err(problem) => return Err(problem),
                }
            }
        }
        Ok((self.network_entry(name.as_str()).await?.value, None))
    }

    pub(crate) async fn new_network(&self, request: NetworkCreate) -> Result<Network, Problem> {
        let record = self.make_network(request).await?;
        self.shown(&record).await
    }

    async fn make_network(&self, request: NetworkCreate) -> Result<NetworkRecord, Problem> {
        let name: Name = request
            .name
            .parse()
            .map_err(|error: model::name::InvalidName| wrong_field("name", error.to_string()))?;
        if ["none", "host"].contains(&name.as_str()) {
            let text = format!("{name:?} has a meaning of its own and cannot name a network");
            return Err(wrong_field("name", text));
        }
        for _ in 0..ATTEMPTS {
            let all = tables::NETWORKS
                .list(self.store())
                .await
                .map_err(internal)?;
            let others: Vec<NetworkRecord> =
                all.entries.into_iter().map(|entry| entry.value).collect();
            let spec = self.network_spec(&request, &name, &others)?;
            let index = (1..)
                .find(|index| others.iter().all(|other| other.index != *index))
                .unwrap_or(1);
            let record = NetworkRecord {
                name: name.clone(),
                spec,
                index,
                created_at: clock::now(),
            };
            match self.commit_network(&record).await? {
                Outcome::Made => {}
                Outcome::Taken => {
                    let text = format!("there is already a network {name:?}");
                    return Err(Problem::new(ErrorCode::Conflict, text));
                }
                Outcome::Again => continue,
            }
            if let Err(error) = self.node().parts().wiring.ensure_network(&record).await {
                self.forget_network(name.as_str()).await;
                let text = format!("network {name:?} cannot be made: {}", error.chain());
                return Err(Problem::new(ErrorCode::Failed, text));
            }
            let resource = format!("networks/{name}");
            self.inner
                .events
                .tell("network.created", resource, "made", []);
            return Ok(record);
        }
        Err(Problem::new(
            ErrorCode::Conflict,
            "others make networks all the time; try again",
        ))
    }

    async fn commit_network(&self, record: &NetworkRecord) -> Result<Outcome, Problem> {
        let mut txn = Txn::new();
        tables::NETWORKS
            .insert(&mut txn, record.name.as_str(), record)
            .map_err(internal)?;
        // The index is claimed too: two networks made at once see the same free one.
        let index = format!("network_indexes/{}", record.index);
        txn.expect_absent(index.clone())
            .put(index.clone(), record.name.to_string());
        match self.store().commit(txn).await {
            Ok(_) => Ok(Outcome::Made),
            Err(CommitError::Conflict { key, .. }) if key == index => Ok(Outcome::Again),
            Err(CommitError::Conflict { .. }) => Ok(Outcome::Taken),
            Err(error) => Err(internal(error)),
        }
    }

    async fn forget_network(&self, name: &str) {
        let Ok(entry) = self.network_entry(name).await else {
            return;
        };
        let mut txn = Txn::new();
        tables::NETWORKS.delete(&mut txn, name, entry.revision);
        txn.delete(format!("network_indexes/{}", entry.value.index));
        if let Err(error) = self.store().commit(txn).await {
            tracing::error!(network = name, error = %chain(&error), "a network stays recorded");
        }
    }

    fn network_spec(
        &self,
        request: &NetworkCreate,
        name: &Name,
        others: &[NetworkRecord],
    ) -> Result<NetworkSpec, Problem> {
        let mut used: Vec<IpNetwork> = others.iter().flat_map(subnets).collect();
        let host = self.node().parts().wiring.host_subnets();
        // The default route covers everything and so says nothing of what is taken.
        used.extend(
            host.map_err(internal)?
                .into_iter()
                .filter(|subnet| subnet.prefix() > 0),
        );
        let chosen = request.ipv4.is_none() && request.ipv6.is_none();
        let none_left = |error: ipam::IpamError| {
            Problem::new(ErrorCode::Failed, error.to_string()).hint("name a subnet: --ipv4")
        };
        let ipv4 = match &request.ipv4 {
            Some(text) => Some(subnet::<Ipv4Network>(text, "ipv4")?),
            None if chosen => Some(ipam::choose_subnet4(&used).map_err(none_left)?),
            None => None,
        };
        let ipv6 = match &request.ipv6 {
            Some(text) => Some(subnet::<Ipv6Network>(text, "ipv6")?),
            None if chosen => {
                let seed = format!("{}/{name}", self.node().parts().paths.root().display());
                Some(ipam::choose_subnet6(&seed, &used).map_err(none_left)?)
            }
            None => None,
        };
        let spec = NetworkSpec {
            ipv4: ipv4.and_then(|net| Ipv4Network::new(net.network(), net.prefix()).ok()),
            ipv6: ipv6.and_then(|net| Ipv6Network::new(net.network(), net.prefix()).ok()),
            outside: if request.isolated {
                Outside::Isolated
            } else {
                Outside::Nat
            },
            mtu: request.mtu,
        };
        spec.validate()
            .map_err(|wrong| invalid("the network", wrong))?;
        let mine = spec
            .ipv4
            .map(IpNetwork::V4)
            .into_iter()
            .chain(spec.ipv6.map(IpNetwork::V6));
        for subnet in mine {
            if let Some(other) = used.iter().find(|other| ipam::overlap(&subnet, other)) {
                let field = if subnet.is_ipv4() { "ipv4" } else { "ipv6" };
                let text = format!("{subnet} overlaps {other}, which is in use on this host");
                return Err(wrong_field(field, text));
            }
        }
        Ok(spec)
    }

    pub(crate) async fn remove_network(&self, name: &str) -> Result<(), Problem> {
        let entry = self.network_entry(name).await?;
        let leases = self.leases(name).await?;
        if let Some(lease) = leases.first() {
            let text = format!("network {name:?} is used by instance {:?}", lease.instance);
            return Err(Problem::new(ErrorCode::Conflict, text)
                .hint("delete the instances on it first; berth network show lists them"));
        }
        let mut txn = Txn::new();
        tables::NETWORKS.delete(&mut txn, name, entry.revision);
        txn.delete(format!("network_indexes/{}", entry.value.index));
        for family in ["v4", "v6"] {
            tables::LAST_ADDRESSES.remove(&mut txn, &format!("{name}/{family}"));
        }
        match self.store().commit(txn).await {
            Ok(_) => {}
            Err(CommitError::Conflict { .. }) => {
                return Err(Problem::new(
                    ErrorCode::Conflict,
                    "the network was changed meanwhile",
                ));
            }
            Err(error) => return Err(internal(error)),
        }
        // Recorded as gone: what cannot be removed now is swept at the next start.
        if let Err(error) = self.node().parts().wiring.remove_network(name).await {
            tracing::error!(network = name, error = %error.chain(), "a bridge stays");
        }
        self.inner
            .events
            .tell("network.removed", format!("networks/{name}"), "removed", []);
        Ok(())
    }

    async fn shown(&self, record: &NetworkRecord) -> Result<Network, Problem> {
        let bridge = self
            .node()
            .parts()
            .wiring
            .bridge(record.name.as_str())
            .to_string();
        Ok(wire::network(
            record,
            bridge,
            self.leases(record.name.as_str()).await?,
        ))
    }

    /// Addresses held on a network, with the names of their holders.
    async fn leases(&self, network: &str) -> Result<Vec<Lease>, Problem> {
        let here = |record: &model::record::InstanceRecord| {
            record
                .lease
                .clone()
                .filter(|lease| lease.network.as_str() == network)
        };
        let mut leases = Vec::new();
        for (record, _) in self.all().await? {
            for address in here(&record).iter().flat_map(|lease| &lease.addresses) {
                let (address, instance) = (address.to_string(), record.name.to_string());
                leases.push(Lease { address, instance });
            }
        }
        Ok(leases)
    }
}

fn first_use(record: &NetworkRecord) -> String {
    let subnets: Vec<String> = subnets(record).iter().map(ToString::to_string).collect();
    format!(
        "First use: made the network {:?} ({}, NAT).",
        record.name,
        subnets.join(" and ")
    )
}

enum Outcome {
    Made,
    Taken,
    Again,
}

fn subnets(record: &NetworkRecord) -> Vec<IpNetwork> {
    let v4 = record.spec.ipv4.map(IpNetwork::V4);
    let v6 = record.spec.ipv6.map(IpNetwork::V6);
    v4.into_iter().chain(v6).collect()
}

fn subnet<T: std::str::FromStr>(text: &str, field: &str) -> Result<T, Problem> {
    let example = if field == "ipv4" {
        "10.80.0.0/24"
    } else {
        "fd80::/64"
    };
    text.parse()
        .map_err(|_| wrong_field(field, format!("{text:?} is not a subnet such as {example}")))
}
