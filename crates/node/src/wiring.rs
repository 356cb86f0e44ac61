//! Networks of this host brought in line with the records: bridges, links, rules and names.
//!
//! The kernel's links follow the guests one by one; rules and names are recomputed as a whole
//! from what is attached, so nothing is ever left over from an earlier state.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, Ipv6Addr, SocketAddr},
    os::fd::AsFd,
    sync::Arc,
};

use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use model::{
    InstanceId,
    instance::{PortSpec, Protocol},
    record::{InstanceRecord, NetworkRecord},
};
use network::{
    Attachment, Driver, Firewall, Guarded, IfName, Limited, Loopback, Mac, NetworkConfig, Outside,
    Prefix, Published, Rate, Rules, Transport,
    dns::{Served, Zone},
    ports::HostPort,
};

/// The domain names of instances stand in.
pub const DOMAIN: &str = "berth.internal";

/// Where the name servers of networks listen, at their gateways.
const DNS: u16 = 53;

/// The interface inside.
const INSIDE: &str = "eth0";

/// Why a network could not be brought in line.
#[derive(Debug, thiserror::Error)]
pub enum WiringError {
    /// A bridge could not be made or removed.
    #[error("the network {network:?} cannot be {action}")]
    Network {
        /// The network.
        network: String,
        /// What was being done.
        action: &'static str,
        /// Why it failed.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// An instance could not be attached or detached.
    #[error("instance {id} cannot be {action}")]
    Link {
        /// The instance.
        id: InstanceId,
        /// What was being done.
        action: &'static str,
        /// Why it failed.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The packet rules could not be replaced.
    #[error("the packet rules cannot be brought in line")]
    Rules(#[source] network::FirewallError),
    /// The kernel's links could not be listed.
    #[error("the network links of this host cannot be looked at")]
    Links(#[from] network::NetlinkError),
    /// The kernel's sockets could not be listed.
    #[error("it cannot be found out which programs of this host listen on which ports")]
    Sockets(#[source] network::NetlinkError),
    /// The network of an instance is not there.
    #[error("there is no network {0:?} any more")]
    Missing(String),
}

impl WiringError {
    /// The error and its causes on one line.
    #[must_use]
    pub fn chain(&self) -> String {
        crate::error::chain(self)
    }
}

/// What one attached instance adds to rules and names.
#[derive(Debug, Clone)]
struct Attached {
    network: String,
    name: String,
    guarded: Guarded,
    published: Vec<Published>,
    limited: Option<Limited>,
}

#[derive(Debug, Default)]
struct State {
    networks: BTreeMap<String, NetworkRecord>,
    attached: BTreeMap<InstanceId, Attached>,
    /// Names of instances, by network.
    zones: BTreeMap<String, Zone>,
    version: u64,
}

struct Inner {
    driver: Driver,
    state: std::sync::Mutex<State>,
    names: network::dns::Server,
    /// Stands in where the kernel cannot lead from `::1` to instances.
    loopback: Loopback,
    /// The rules in force, and the version of the state they were made from.
    firewall: Arc<tokio::sync::Mutex<(Firewall, u64)>>,
}

/// Networks of this host. Cheap to clone.
#[derive(Clone)]
pub struct Wiring {
    inner: Arc<Inner>,
}

impl Wiring {
    /// Opens the networks of the calling thread's network namespace under `prefix`, the mark of
    /// everything this daemon makes.
    ///
    /// # Errors
    /// When the kernel's interfaces cannot be opened.
    pub fn open(prefix: &Prefix) -> Result<Self, WiringError> {
        let driver = Driver::open(prefix.clone())?;
        let firewall = Firewall::open(prefix.clone()).map_err(WiringError::Rules)?;
        Ok(Self {
            inner: Arc::new(Inner {
                driver,
                names: network::dns::Server::new(network::dns::Config::default()),
                loopback: Loopback::default(),
                state: std::sync::Mutex::default(),
                firewall: Arc::new(tokio::sync::Mutex::new((firewall, 0))),
            }),
        })
    }

    /// Subnets the host uses, which new networks have to avoid.
    ///
    /// # Errors
    /// When the kernel's links cannot be listed.
    pub fn host_subnets(&self) -> Result<Vec<IpNetwork>, WiringError> {
        Ok(self.inner.driver.host_subnets()?)
    }

    /// The bridge of a network.
    #[must_use]
    pub fn bridge(&self, network: &str) -> IfName {
        self.inner.driver.prefix().bridge(network)
    }

    /// The first of `ports` that a program of the host itself has, and where it listens. What this
    /// daemon listens at itself is not looked for: ask the records first.
    ///
    /// # Errors
    /// When the kernel's sockets cannot be listed.
    pub async fn port_in_use(
        &self,
        ports: &[PortSpec],
    ) -> Result<Option<(PortSpec, SocketAddr)>, WiringError> {
        let name_servers: Vec<SocketAddr> = {
            let state = crate::lock(&self.inner.state);
            let addresses = state.networks.values().flat_map(gateways);
            addresses
                .map(|address| SocketAddr::new(address, DNS))
                .collect()
        };
        let ports = ports.to_vec();
        self.blocking(move |_| {
            let wanted: Vec<HostPort> = ports.iter().map(host_port).collect();
            let found =
                network::ports::in_use(&wanted, &name_servers).map_err(WiringError::Sockets)?;
            Ok(found.and_then(|(port, holder)| {
                let at = wanted.iter().position(|one| *one == port)?;
                Some((ports[at].clone(), holder))
            }))
        })
        .await
    }

    /// Makes, or completes, a network.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn ensure_network(&self, record: &NetworkRecord) -> Result<(), WiringError> {
        let config = config(record);
        self.blocking(move |inner| {
            inner
                .driver
                .ensure_network(&config)
                .map_err(|source| WiringError::Network {
                    network: config.name.clone(),
                    action: "made",
                    source: source.into(),
                })
        })
        .await?;
        let zone = Zone::new(DOMAIN).expect("the domain is a constant that a test serves");
        self.change(|state| {
            let name = record.name.to_string();
            state.zones.entry(name.clone()).or_insert(zone);
            state.networks.insert(name, record.clone());
            self.inner.names.serve(served(state));
        });
        self.apply().await
    }

    /// Brings the rules in line with what the host decides without telling anybody: whether the kernel
    /// can lead from `::1` to instances.
    pub(crate) async fn notice_host(&self) -> Result<(), WiringError> {
        let changed = self
            .blocking(|inner| Ok(inner.driver.notice_filtering()?))
            .await?;
        if !changed {
            return Ok(());
        }
        tracing::debug!("bridged packets pass other rules of the host than before");
        self.change(|_| {});
        self.apply().await
    }

    /// Removes a network that nothing is attached to. Idempotent.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn remove_network(&self, name: &str) -> Result<(), WiringError> {
        self.change(|state| {
            state.networks.remove(name);
            state.zones.remove(name);
            self.inner.names.serve(served(state));
        });
        self.apply().await?;
        let network = name.to_owned();
        self.blocking(move |inner| {
            inner
                .driver
                .remove_network(&network)
                .map(drop)
                .map_err(|source| WiringError::Network {
                    network,
                    action: "removed",
                    source: source.into(),
                })
        })
        .await
    }

    /// Takes back what runs, and sweeps away links of instances that do not.
    pub(crate) async fn adopt(&self, live: &[InstanceRecord]) -> Result<(), WiringError> {
        self.change(|state| {
            for record in live {
                if let Some(attached) = self.attached(state, record) {
                    state.attached.insert(record.id, attached);
                }
            }
        });
        let (networks, keys) = {
            let state = crate::lock(&self.inner.state);
            let networks: BTreeSet<String> = state.networks.keys().cloned().collect();
            let keys: BTreeSet<String> = state.attached.keys().map(InstanceId::to_string).collect();
            (networks, keys)
        };
        let swept = self
            .blocking(move |inner| Ok(inner.driver.sweep(&networks, &keys)?))
            .await?;
        if !swept.links.is_empty() || !swept.bridges.is_empty() {
            tracing::warn!(?swept, "removed network links that no record names");
        }
        self.apply().await
    }

    /// Joins the network namespace of process `pid` to the record's network. Idempotent.
    pub(crate) async fn attach(
        &self,
        record: &InstanceRecord,
        pid: u32,
    ) -> Result<(), WiringError> {
        let Some(lease) = record.lease.clone() else {
            return Ok(());
        };
        let id = record.id;
        let network = lease.network.to_string();
        let added = {
            let mut state = crate::lock(&self.inner.state);
            let attached = self
                .attached(&state, record)
                .ok_or_else(|| WiringError::Missing(network.clone()))?;
            state.attached.insert(id, attached);
            state.version += 1;
            state.networks[&network].clone()
        };
        // The process of a virtual machine only carries its frames: the addresses are the guest's.
        let addresses = match record.spec.machine {
            Some(_) => None,
            None => Some(lease.addresses),
        };
        let joined = self
            .blocking(move |inner| {
                inner
                    .join(id, pid, &added, addresses.as_deref(), Mac(lease.mac))
                    .map_err(|source| WiringError::Link {
                        id,
                        action: "joined to its network",
                        source,
                    })
            })
            .await;
        if joined.is_err() {
            self.change(|state| {
                state.attached.remove(&id);
            });
        }
        joined?;
        self.apply().await
    }

    /// Has an instance that is attached keep to other limits.
    pub(crate) async fn set_limits(&self, record: &InstanceRecord) -> Result<(), WiringError> {
        let limited = self.limited(record);
        {
            let mut state = crate::lock(&self.inner.state);
            match state.attached.get_mut(&record.id) {
                Some(attached) if attached.limited != limited => attached.limited = limited,
                _ => return Ok(()),
            }
            state.version += 1;
        }
        self.apply().await
    }

    /// Takes an instance's rules and name away, and its link soon after. Idempotent.
    pub(crate) async fn detach(&self, id: InstanceId) -> Result<(), WiringError> {
        let had = {
            let mut state = crate::lock(&self.inner.state);
            state.version += 1;
            state.attached.remove(&id).is_some()
        };
        if !had {
            return Ok(());
        }
        // Not waited for: the kernel takes its time, and removes the link with its namespace anyway.
        let inner = Arc::clone(&self.inner);
        tokio::task::spawn_blocking(move || {
            if let Err(error) = inner.driver.detach(&id.to_string()) {
                let error = crate::error::chain(&error);
                tracing::warn!(%id, error, "a network link is left to the next sweep");
            }
        });
        self.apply().await
    }

    /// The host's end of an instance's link.
    #[must_use]
    pub fn host_link(&self, id: InstanceId) -> IfName {
        self.inner.driver.host_ifname(&id.to_string())
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = crate::lock(&self.inner.state);
        change(&mut state);
        state.version += 1;
    }

    /// What `record` adds to rules and names; `None` when it has no network here.
    fn attached(&self, state: &State, record: &InstanceRecord) -> Option<Attached> {
        let lease = record.lease.as_ref()?;
        let network = lease.network.to_string();
        state.networks.get(&network)?;
        let guarded = Guarded {
            port: self.host_link(record.id),
            mac: Mac(lease.mac),
            addresses: lease.addresses.clone(),
        };
        let published = published(record, &lease.addresses);
        Some(Attached {
            network,
            name: record.name.to_string(),
            guarded,
            published,
            limited: self.limited(record),
        })
    }

    /// What the kernel polices for an instance. The process of a virtual machine does so itself.
    fn limited(&self, record: &InstanceRecord) -> Option<Limited> {
        if record.spec.machine.is_some() {
            return None;
        }
        let net = &record.spec.limits.net;
        let rate = |bytes: Option<u64>, burst: Option<u64>| {
            bytes.map(|bytes| Rate {
                bytes,
                burst: burst.unwrap_or(0),
            })
        };
        let limited = Limited {
            port: self.host_link(record.id),
            receive: rate(net.ingress_bps, net.ingress_burst),
            send: rate(net.egress_bps, net.egress_burst),
        };
        (limited.receive.is_some() || limited.send.is_some()).then_some(limited)
    }

    /// Brings rules and names in line with the state. Calls that wait for one another share one
    /// change.
    async fn apply(&self) -> Result<(), WiringError> {
        let wanted = crate::lock(&self.inner.state).version;
        let mut firewall = Arc::clone(&self.inner.firewall).lock_owned().await;
        if firewall.1 >= wanted {
            return Ok(());
        }
        let (rules, version) = {
            let state = crate::lock(&self.inner.state);
            name_instances(&state);
            (rules(&state, &self.inner.driver), state.version)
        };
        let on_loopback = match rules.loopback6 {
            true => HashMap::new(),
            false => on_loopback(&rules.published),
        };
        let applied = self.blocking(move |_| {
            // Without networks there is nothing to guard, and nothing is left behind.
            let changed = if rules.networks.is_empty() {
                firewall.0.remove()
            } else {
                firewall.0.apply(&rules).map(drop)
            };
            changed.map_err(WiringError::Rules)?;
            firewall.1 = version;
            Ok(firewall)
        });
        // In the order of the rules: the next change waits for this one.
        let _in_turn = applied.await?;
        self.inner.loopback.serve(on_loopback).await;
        Ok(())
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner) -> Result<T, WiringError> + Send + 'static,
    ) -> Result<T, WiringError> {
        let inner = Arc::clone(&self.inner);
        tokio::task::spawn_blocking(move || work(&inner))
            .await
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
    }
}

impl Inner {
    fn join(
        &self,
        id: InstanceId,
        pid: u32,
        network: &NetworkRecord,
        addresses: Option<&[IpAddr]>,
        mac: Mac,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let netns = std::fs::File::open(format!("/proc/{pid}/ns/net"))?;
        let spec = &network.spec;
        let owns_addresses = addresses.is_some();
        let addresses: Vec<IpNetwork> = addresses
            .unwrap_or_default()
            .iter()
            .map(|address| IpNetwork::new(*address, prefix_of(network, address)))
            .collect::<Result<_, _>>()?;
        let isolated = network.spec.outside == model::network::Outside::Isolated;
        let gateways = if isolated || !owns_addresses {
            Vec::new()
        } else {
            gateways(network)
        };
        self.driver.attach(&Attachment {
            key: &id.to_string(),
            network: network.name.as_str(),
            netns: netns.as_fd(),
            ifname: IfName::parse(INSIDE)?,
            mac,
            addresses,
            gateways,
            mtu: spec.mtu,
            hairpin: false,
            isolated: false,
        })?;
        Ok(())
    }
}

/// Length of the subnet an address of a network lies in.
pub(crate) fn prefix_of(network: &NetworkRecord, address: &IpAddr) -> u8 {
    let spec = &network.spec;
    match address {
        IpAddr::V4(_) => spec.ipv4.map_or(32, |subnet| subnet.prefix()),
        IpAddr::V6(_) => spec.ipv6.map_or(128, |subnet| subnet.prefix()),
    }
}

/// The host's own addresses on a network.
#[must_use]
pub fn gateways(network: &NetworkRecord) -> Vec<IpAddr> {
    let spec = &network.spec;
    let v4 = spec.gateway_v4().map(IpAddr::V4);
    let v6 = spec.gateway_v6().map(IpAddr::V6);
    v4.into_iter().chain(v6).collect()
}

fn config(record: &NetworkRecord) -> NetworkConfig {
    let spec = &record.spec;
    let v4 = spec.gateway_v4().zip(spec.ipv4);
    let v6 = spec.gateway_v6().zip(spec.ipv6);
    NetworkConfig {
        name: record.name.to_string(),
        gateway4: v4.and_then(|(address, net)| Ipv4Network::new(address, net.prefix()).ok()),
        gateway6: v6.and_then(|(address, net)| Ipv6Network::new(address, net.prefix()).ok()),
        mtu: spec.mtu,
        outside: match spec.outside {
            model::network::Outside::Nat => Outside::Nat,
            model::network::Outside::Isolated => Outside::Internal,
        },
        reaches: Vec::new(),
    }
}

fn transport(protocol: Protocol) -> Transport {
    match protocol {
        Protocol::Tcp => Transport::Tcp,
        Protocol::Udp => Transport::Udp,
    }
}

fn host_port(port: &PortSpec) -> HostPort {
    HostPort {
        transport: transport(port.protocol),
        address: port.host_address,
        port: port.host_port,
    }
}

/// The published ports of a record: one entry for each address family it can be reached by.
fn published(record: &InstanceRecord, addresses: &[IpAddr]) -> Vec<Published> {
    let mut published = Vec::new();
    for port in &record.spec.ports {
        let same_family = |target: &&IpAddr| {
            port.host_address
                .is_none_or(|host| host.is_ipv4() == target.is_ipv4())
        };
        for target in addresses.iter().filter(same_family) {
            published.push(Published {
                transport: transport(port.protocol),
                host: port.host_address,
                host_port: port.host_port,
                count: 1,
                target: *target,
                target_port: port.port,
            });
        }
    }
    published
}

fn rules(state: &State, driver: &Driver) -> Rules {
    Rules {
        networks: state.networks.values().map(config).collect(),
        published: state
            .attached
            .values()
            .flat_map(|one| one.published.clone())
            .collect(),
        guarded: state
            .attached
            .values()
            .map(|one| one.guarded.clone())
            .collect(),
        limited: state
            .attached
            .values()
            .filter_map(|one| one.limited.clone())
            .collect(),
        loopback6: driver.answers_on_loopback6(),
    }
}

/// Where the ports of `::1` lead: to the instance's IPv6 address if it has one, and else to its other.
fn on_loopback(published: &[Published]) -> HashMap<u16, Vec<SocketAddr>> {
    let everywhere = |host: IpAddr| host.is_unspecified() && host.is_ipv6();
    let mut ports: HashMap<u16, Vec<SocketAddr>> = HashMap::new();
    for one in published {
        let here = one
            .host
            .is_none_or(|host| host == Ipv6Addr::LOCALHOST || everywhere(host));
        if here && one.transport == Transport::Tcp {
            let target = SocketAddr::new(one.target, one.target_port);
            ports.entry(one.host_port).or_default().push(target);
        }
    }
    for targets in ports.values_mut() {
        targets.sort_by_key(SocketAddr::is_ipv4);
    }
    ports
}

fn served(state: &State) -> Vec<Served> {
    let one = |(name, record): (&String, &NetworkRecord)| {
        let spec = &record.spec;
        let v4 = spec.ipv4.map(IpNetwork::V4);
        let v6 = spec.ipv6.map(IpNetwork::V6);
        Some(Served {
            listen: gateways(record),
            clients: v4.into_iter().chain(v6).collect(),
            zone: state.zones.get(name)?.clone(),
            forward: spec.outside == model::network::Outside::Nat,
        })
    };
    state.networks.iter().filter_map(one).collect()
}

/// Gives every network the names of what is attached to it.
fn name_instances(state: &State) {
    for (network, zone) in &state.zones {
        let here = state
            .attached
            .values()
            .filter(|one| one.network == *network);
        let names = here.map(|one| (&one.name, one.guarded.addresses.clone()));
        if let Err(error) = zone.replace(names) {
            // Names of instances are DNS labels by construction.
            tracing::error!(%error, network, "an instance has a name that cannot be served");
        }
    }
}
