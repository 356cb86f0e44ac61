//! What callers ask for: networks and attachments. Plain data, no I/O.
//!
//! These are internal specs, not wire types and not stored records; the daemon converts.

use std::net::IpAddr;
use std::os::fd::BorrowedFd;

use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};

use crate::{IfName, Mac};

/// How a network meets the world beyond its bridge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Outside {
    /// Instances reach out under the host's address; only published ports lead in.
    #[default]
    Nat,
    /// Instances' own addresses are routed both ways; the surrounding network knows the route.
    Routed,
    /// Nothing out, nothing in: instances, and the network's own gateway for DNS.
    Internal,
}

/// One network of one host: a bridge, its gateway addresses, and what may reach what.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct NetworkConfig {
    /// The network's name (or any stable id); with the prefix it makes the bridge's name.
    pub name: String,
    /// The host's own IPv4 address on the bridge with the subnet's length, as `10.77.0.1/24`.
    pub gateway4: Option<Ipv4Network>,
    /// The host's own IPv6 address on the bridge with the subnet's length, as `fd00::1/64`.
    pub gateway6: Option<Ipv6Network>,
    /// Largest packet in bytes; the kernel's default of 1500 if absent.
    pub mtu: Option<u32>,
    /// Way to the outside.
    pub outside: Outside,
    /// Names of further networks whose instances this network's instances may open connections
    /// to, and the other way round. Networks not named here or there cannot reach each other.
    pub reaches: Vec<String>,
}

impl NetworkConfig {
    /// The host's own addresses on the bridge, each with the subnet's length: gateway and DNS
    /// server of the network's instances.
    #[must_use]
    pub fn gateways(&self) -> Vec<IpNetwork> {
        let v4 = self.gateway4.map(IpNetwork::V4);
        v4.into_iter()
            .chain(self.gateway6.map(IpNetwork::V6))
            .collect()
    }
}

/// One interface of one instance.
#[derive(Debug, Clone)]
pub struct Attachment<'a> {
    /// Opaque and stable: the instance's id and the interface's number. Names the host end, and
    /// is kept in the link's alias.
    pub key: &'a str,
    /// The network to join; [`crate::Driver::ensure_network`] must have made it.
    pub network: &'a str,
    /// The instance's network namespace (`/proc/PID/ns/net` or a bind mount of it).
    pub netns: BorrowedFd<'a>,
    /// The interface's name inside, as `eth0`.
    pub ifname: IfName,
    /// The interface's address inside.
    pub mac: Mac,
    /// Addresses inside, each with the subnet's length.
    pub addresses: Vec<IpNetwork>,
    /// Default routes inside, at most one of each family.
    pub gateways: Vec<IpAddr>,
    /// Largest packet in bytes; the network's if absent.
    pub mtu: Option<u32>,
    /// Let packets return through the port they came from (the instance talking to itself by way
    /// of something bridged). Published ports do not need it.
    pub hairpin: bool,
    /// Keep this port from the network's other isolated ports; the gateway stays reachable.
    pub isolated: bool,
}
