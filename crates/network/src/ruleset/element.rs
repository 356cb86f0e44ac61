//! Members of the sets: as nftables text and as the kernel's bytes.
//!
//! A concatenated key is its parts one after the other, each padded to four bytes, numbers in
//! network order (`net/netfilter/nf_tables_api.c`, libnftnl's `set_elem.c`).

use std::net::{IpAddr, Ipv6Addr};

use super::Transport;
use crate::{IfName, Mac};

/// The kernel's number of a table's family (`NFPROTO_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    /// IPv4 and IPv6.
    Inet = 1,
    /// Frames between a bridge's ports.
    Bridge = 7,
}

/// A member of one of the tables' sets.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Element {
    /// A port of the host leads to a port of an instance.
    Publish {
        host: Option<IpAddr>,
        transport: Transport,
        port: u16,
        target: IpAddr,
        target_port: u16,
    },
    /// The one hardware address behind a port.
    Sender { port: IfName, mac: Mac },
    /// An address that may be used behind a port.
    Lease {
        port: IfName,
        mac: Mac,
        address: IpAddr,
    },
    /// An address that neighbour advertisements from behind a port may be about.
    Target {
        port: IfName,
        mac: Mac,
        address: Ipv6Addr,
    },
}

impl Element {
    /// The set's family, and its name.
    pub(crate) fn set(&self) -> (Family, &'static str) {
        match self {
            Self::Publish {
                host: None,
                target: IpAddr::V4(_),
                ..
            } => (Family::Inet, "publish4"),
            Self::Publish { host: None, .. } => (Family::Inet, "publish6"),
            Self::Publish {
                target: IpAddr::V4(_),
                ..
            } => (Family::Inet, "publish4_at"),
            Self::Publish { .. } => (Family::Inet, "publish6_at"),
            Self::Sender { .. } => (Family::Bridge, "senders"),
            Self::Lease {
                address: IpAddr::V4(_),
                ..
            } => (Family::Bridge, "leases4"),
            Self::Lease { .. } => (Family::Bridge, "leases6"),
            Self::Target { .. } => (Family::Bridge, "targets6"),
        }
    }

    /// The element as nftables text.
    pub(crate) fn text(&self) -> String {
        match self {
            Self::Publish {
                host,
                transport,
                port,
                target,
                target_port,
            } => {
                let host = host.map_or_else(String::new, |host| format!("{host} . "));
                let transport = transport.name();
                format!("{host}{transport} . {port} : {target} . {target_port}")
            }
            Self::Sender { port, mac } => format!("\"{port}\" . {mac}"),
            Self::Lease { port, mac, address } => format!("\"{port}\" . {mac} . {address}"),
            // nftables of Debian 12 has no name for this field: its bits are a number there.
            Self::Target { port, mac, address } => {
                format!("\"{port}\" . {mac} . {:#034x}", address.to_bits())
            }
        }
    }

    /// The key as the kernel stores it.
    pub(crate) fn key(&self) -> Vec<u8> {
        let mut key = Vec::with_capacity(48);
        match self {
            Self::Publish {
                host,
                transport,
                port,
                ..
            } => {
                if let Some(host) = host {
                    push_address(&mut key, *host);
                }
                push(&mut key, &[transport.number()]);
                push(&mut key, &port.to_be_bytes());
            }
            Self::Sender { port, mac } => push_sender(&mut key, port, *mac),
            Self::Lease { port, mac, address } => {
                push_sender(&mut key, port, *mac);
                push_address(&mut key, *address);
            }
            Self::Target { port, mac, address } => {
                push_sender(&mut key, port, *mac);
                push(&mut key, &address.octets());
            }
        }
        key
    }

    /// The value as the kernel stores it; `None` for members of plain sets.
    pub(crate) fn data(&self) -> Option<Vec<u8>> {
        let Self::Publish {
            target,
            target_port,
            ..
        } = self
        else {
            return None;
        };
        let mut data = Vec::with_capacity(20);
        push_address(&mut data, *target);
        push(&mut data, &target_port.to_be_bytes());
        Some(data)
    }
}

fn push(key: &mut Vec<u8>, part: &[u8]) {
    key.extend_from_slice(part);
    key.resize(key.len().next_multiple_of(4), 0);
}

fn push_sender(key: &mut Vec<u8>, port: &IfName, mac: Mac) {
    let mut name = [0; 16];
    name[..port.as_str().len()].copy_from_slice(port.as_str().as_bytes());
    push(key, &name);
    push(key, &mac.0);
}

fn push_address(key: &mut Vec<u8>, address: IpAddr) {
    match address {
        IpAddr::V4(address) => push(key, &address.octets()),
        IpAddr::V6(address) => push(key, &address.octets()),
    }
}
