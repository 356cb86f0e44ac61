//! What packets may do: a pure function from the wanted state to nftables text.
//!
//! Two tables, both named after the daemon's prefix and replaced in one transaction: `inet` for
//! address translation, published ports and isolation, and `bridge` for guarding each port
//! against forged senders. The chains accept by default and only ever drop more: a packet another
//! table drops stays dropped, since in nftables no table can overrule another's drop.
//!
//! Chains and network sets change seldom (a program's skeleton); published ports and ports of
//! instances come and go and are elements of sets, which [`crate::Firewall`] adds and deletes
//! one by one. Source: nft(8), <https://wiki.nftables.org>.
//!
//! | packet | rule |
//! |---|---|
//! | instance → same network | bridged, guarded only |
//! | instance → other network | dropped unless one of both names the other |
//! | instance → outside | under the host's address (NAT), its own (routed), dropped (internal) |
//! | outside → instance | published ports only; anything if routed; nothing if internal |
//! | instance → the host's other addresses | as the host's own rules say; nothing if internal |
//! | anyone → a gateway's address | only from that network and the host itself |
//! | faster than its instance may | lost |

mod element;
mod text;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

pub(crate) use element::{Element, Family};
pub(crate) use text::table;

use crate::{IfName, Mac, NetworkConfig, Prefix};

/// Most ports one daemon may publish: each is an element the kernel keeps in memory.
pub const PUBLISHED_MAX: usize = 65_536;

/// A transport protocol that ports belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Transport {
    /// The protocol's number (IANA).
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }

    /// The protocol's name as nftables and users write it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }
}

/// A run of ports of the host that lead to an instance. One per target address: an instance with
/// IPv4 and IPv6 needs two.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Published {
    /// The protocol.
    pub transport: Transport,
    /// Only this address of the host; all of the target's family if absent. `::1` cannot be
    /// served this way (the kernel routes nothing from it); clients fall back to `127.0.0.1`.
    pub host: Option<IpAddr>,
    /// First port on the host.
    pub host_port: u16,
    /// How many ports in a row, at least 1.
    pub count: u16,
    /// The instance's address.
    pub target: IpAddr,
    /// First port of the instance.
    pub target_port: u16,
}

/// The only senders that may be behind a port of a bridge.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Guarded {
    /// The attachment's host end ([`crate::Driver::host_ifname`]).
    pub port: IfName,
    /// Its hardware address.
    pub mac: Mac,
    /// Its addresses. Link-local IPv6 is always allowed.
    pub addresses: Vec<IpAddr>,
}

/// How fast bytes may go: policed, so that what comes faster is lost and its sender slows down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rate {
    /// Bytes a second.
    pub bytes: u64,
    /// Bytes that may go at once after a pause, beside a second's worth, which always may.
    pub burst: u64,
}

/// A port of a bridge whose instance may not go as fast as it can.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Limited {
    /// The attachment's host end ([`crate::Driver::host_ifname`]).
    pub port: IfName,
    /// What the instance may receive.
    pub receive: Option<Rate>,
    /// What the instance may send.
    pub send: Option<Rate>,
}

/// The wanted state.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rules {
    /// Networks of this host.
    pub networks: Vec<NetworkConfig>,
    /// Published ports.
    pub published: Vec<Published>,
    /// Attachments. A port that is missing here passes nothing.
    pub guarded: Vec<Guarded>,
    /// Attachments that are limited.
    pub limited: Vec<Limited>,
    /// Whether published ports answer on `::1` too: where [`crate::Driver::answers_on_loopback6`]. Else
    /// connections to it are left to the host's own programs.
    pub loopback6: bool,
}

/// Why a wanted state cannot be expressed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RulesError {
    /// Two publications claim one port.
    #[error(
        "port {port}/{transport} on {host} is published to both {first} and {second}; \
         choose another host port for one of them"
    )]
    PortTaken {
        /// The protocol's name.
        transport: &'static str,
        /// The host's address, or `all addresses`.
        host: String,
        /// The contested port.
        port: u16,
        /// One target.
        first: String,
        /// The other target.
        second: String,
    },
    /// A run of ports is empty or goes past 65535.
    #[error(
        "{count} ports from {port} on are no valid range; a range has at least one port and \
         ends at 65535"
    )]
    PortRange {
        /// First port.
        port: u16,
        /// Ports asked for.
        count: u16,
    },
    /// The host's address and the target's are of different families.
    #[error("port {port} on {host} cannot lead to {target}: one is IPv4, the other IPv6")]
    Families {
        /// First port.
        port: u16,
        /// The host's address.
        host: IpAddr,
        /// The target.
        target: IpAddr,
    },
    /// More than [`PUBLISHED_MAX`] ports.
    #[error("more than {PUBLISHED_MAX} published ports; publish smaller ranges")]
    TooMany,
}

/// The wanted state, compiled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Program {
    /// The tables with all but the elements; the same text means the same chains.
    pub(crate) skeleton: text::Skeleton,
    /// Members of the sets.
    pub(crate) elements: BTreeSet<Element>,
}

impl Program {
    /// The whole as input for `nft -f -`: replaces both tables in one transaction.
    pub(crate) fn text(&self) -> String {
        self.skeleton.render(&self.elements)
    }
}

/// Compiles the wanted state.
pub(crate) fn compile(prefix: &Prefix, rules: &Rules) -> Result<Program, RulesError> {
    let mut elements = BTreeSet::new();
    publish(&rules.published, &mut elements)?;
    for guarded in &rules.guarded {
        let (port, mac) = (guarded.port.clone(), guarded.mac);
        elements.insert(Element::Sender {
            port: port.clone(),
            mac,
        });
        for address in &guarded.addresses {
            if let IpAddr::V6(address) = *address {
                let port = port.clone();
                elements.insert(Element::Target { port, mac, address });
            }
            elements.insert(Element::Lease {
                port: port.clone(),
                mac,
                address: *address,
            });
        }
    }
    Ok(Program {
        skeleton: text::Skeleton::new(prefix, rules),
        elements,
    })
}

/// The nftables text for `rules`, as [`crate::Firewall`] applies it; for people to read.
///
/// # Errors
/// See [`RulesError`].
pub fn render(prefix: &Prefix, rules: &Rules) -> Result<String, RulesError> {
    Ok(compile(prefix, rules)?.text())
}

/// Checks `rules` without applying them.
///
/// # Errors
/// See [`RulesError`].
pub fn check(rules: &Rules) -> Result<(), RulesError> {
    publish(&rules.published, &mut BTreeSet::new())
}

fn publish(published: &[Published], elements: &mut BTreeSet<Element>) -> Result<(), RulesError> {
    let mut claimed = BTreeMap::new();
    for entry in published {
        let (port, count) = (entry.host_port, entry.count);
        let last = |first: u16| {
            count
                .checked_sub(1)
                .and_then(|more| first.checked_add(more))
        };
        if port == 0 || entry.target_port == 0 || last(port).and(last(entry.target_port)).is_none()
        {
            return Err(RulesError::PortRange { port, count });
        }
        let host = entry.host.filter(|host| !host.is_unspecified());
        if let Some(host) = entry.host
            && host.is_ipv4() != entry.target.is_ipv4()
        {
            return Err(RulesError::Families {
                port,
                host,
                target: entry.target,
            });
        }
        for offset in 0..count {
            let target = (entry.target, entry.target_port + offset);
            let key = (host, entry.target.is_ipv4(), entry.transport, port + offset);
            if let Some(other) = claimed.insert(key, target)
                && other != target
            {
                return Err(RulesError::PortTaken {
                    transport: entry.transport.name(),
                    host: host.map_or_else(|| "all addresses".to_owned(), |h| h.to_string()),
                    port: port + offset,
                    first: std::net::SocketAddr::from(other).to_string(),
                    second: std::net::SocketAddr::from(target).to_string(),
                });
            }
            if claimed.len() > PUBLISHED_MAX {
                return Err(RulesError::TooMany);
            }
            elements.insert(Element::Publish {
                host,
                transport: entry.transport,
                port: port + offset,
                target: target.0,
                target_port: target.1,
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
