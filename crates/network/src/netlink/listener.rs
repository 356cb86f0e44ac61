//! Sockets that wait for somebody: listening TCP sockets, and UDP sockets without a peer.
//!
//! Source: `include/uapi/linux/{sock_diag,inet_diag}.h`, sock_diag(7).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::attribute::Attributes;
use super::message::DUMP;
use super::{Message, NetlinkError, Socket};
use crate::Transport;

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const INET_DIAG_SKV6ONLY: u16 = 11;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// `1 << TCP_LISTEN`.
const LISTENING: u32 = 1 << 10;
/// `1 << TCP_CLOSE`: what UDP sockets without a peer are in.
const UNCONNECTED: u32 = 1 << 7;

/// Length of `struct inet_diag_req_v2`.
const REQUEST: usize = 56;
/// Length of `struct inet_diag_msg`.
const ANSWER: usize = 72;
/// Where `struct inet_diag_sockid` lies in the answer: source port, destination port, source address.
const SOURCE_PORT: usize = 4;
const SOURCE: usize = 8;

/// A socket that waits for somebody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Listener {
    /// Where. An IPv4 address in IPv6 clothes is given as the IPv4 address it is.
    pub(crate) address: SocketAddr,
    /// `IPV6_V6ONLY`: `[::]` does not stand for IPv4 addresses.
    pub(crate) only_v6: bool,
}

/// All of a transport, in the network namespace of `socket`.
pub(crate) fn list(
    socket: &mut Socket,
    transport: Transport,
) -> Result<Vec<Listener>, NetlinkError> {
    let states = match transport {
        Transport::Tcp => LISTENING,
        Transport::Udp | Transport::Sctp => UNCONNECTED,
    };
    let mut listeners = Vec::new();
    for family in [AF_INET, AF_INET6] {
        let mut body = [0; REQUEST];
        body[0] = family;
        body[1] = transport.number();
        body[4..8].copy_from_slice(&states.to_ne_bytes());
        let request = Message::new(SOCK_DIAG_BY_FAMILY, DUMP, &body);
        socket.ask("list listening sockets", request, |_, body| {
            listeners.extend(parse(body));
        })?;
    }
    Ok(listeners)
}

pub(super) fn parse(body: &[u8]) -> Option<Listener> {
    let (fixed, attributes) = body.split_at_checked(ANSWER)?;
    let port = u16::from_be_bytes([fixed[SOURCE_PORT], fixed[SOURCE_PORT + 1]]);
    let address: IpAddr = match fixed[0] {
        AF_INET => {
            let octets: [u8; 4] = fixed[SOURCE..SOURCE + 4].try_into().ok()?;
            Ipv4Addr::from(octets).into()
        }
        AF_INET6 => {
            let octets: [u8; 16] = fixed[SOURCE..SOURCE + 16].try_into().ok()?;
            Ipv6Addr::from(octets).to_canonical()
        }
        _ => return None,
    };
    let only_v6 = Attributes(attributes)
        .any(|(kind, value)| kind == INET_DIAG_SKV6ONLY && value.first() == Some(&1));
    Some(Listener {
        address: SocketAddr::new(address, port),
        only_v6,
    })
}
