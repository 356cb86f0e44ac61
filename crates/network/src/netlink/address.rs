//! Addresses, routes and neighbours.
//!
//! Source: `include/uapi/linux/{if_addr,rtnetlink,neighbour}.h`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;

use super::attribute::{Attributes, u32_at};
use super::message::{APPEND, CREATE, DUMP, REPLACE};
use super::{Message, NetlinkError, Socket};
use crate::Mac;

const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_GETADDR: u16 = 22;
const RTM_NEWROUTE: u16 = 24;
const RTM_GETROUTE: u16 = 26;

const RTM_NEWNEIGH: u16 = 28;

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;
const IFA_FLAGS: u16 = 8;
/// `IFA_F_NODAD`: usable at once. Our own address management guarantees it is unique.
const NODAD: u32 = 0x02;

const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;

const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const NUD_REACHABLE: u16 = 2;

const AF_UNSPEC: u8 = 0;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const RT_TABLE_MAIN: u8 = 254;
const RT_TABLE_LOCAL: u8 = 255;
const RTPROT_BOOT: u8 = 3;
const RTN_UNICAST: u8 = 1;
const RTN_LOCAL: u8 = 2;

/// Length of `struct ifaddrmsg`.
const IFADDRMSG: usize = 8;
/// Length of `struct rtmsg`.
const RTMSG: usize = 12;

/// Length of `struct ndmsg`.
const NDMSG: usize = 12;

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

fn family(address: IpAddr) -> u8 {
    if address.is_ipv4() { AF_INET } else { AF_INET6 }
}

fn ifaddrmsg(address: &IpNetwork, index: u32) -> [u8; IFADDRMSG] {
    let [a, b, c, d] = index.to_ne_bytes();
    [family(address.ip()), address.prefix(), 0, 0, a, b, c, d]
}

/// Gives link `index` the address, replacing an equal one.
pub(crate) fn add(index: u32, address: &IpNetwork) -> Message {
    let body = ifaddrmsg(address, index);
    let mut message = Message::new(RTM_NEWADDR, CREATE | REPLACE, &body);
    let bytes = octets(address.ip());
    message.bytes(IFA_LOCAL, &bytes).bytes(IFA_ADDRESS, &bytes);
    match address {
        IpNetwork::V4(v4) if v4.prefix() < 31 => {
            message.bytes(IFA_BROADCAST, &v4.broadcast().octets());
        }
        IpNetwork::V4(_) => {}
        IpNetwork::V6(_) => {
            message.u32(IFA_FLAGS, NODAD);
        }
    }
    message
}

/// Takes the address from link `index`.
pub(crate) fn remove(index: u32, address: &IpNetwork) -> Message {
    let mut message = Message::new(RTM_DELADDR, 0, &ifaddrmsg(address, index));
    message.bytes(IFA_LOCAL, &octets(address.ip()));
    message
}

/// The addresses of all links, as `(link index, address with its subnet's length)`.
pub(crate) fn list(socket: &mut Socket) -> Result<Vec<(u32, IpNetwork)>, NetlinkError> {
    let mut body = [0; IFADDRMSG];
    body[0] = AF_UNSPEC;
    let mut addresses = Vec::new();
    socket.ask(
        "list addresses",
        Message::new(RTM_GETADDR, DUMP, &body),
        |_, body| {
            addresses.extend(parse_address(body));
        },
    )?;
    Ok(addresses)
}

pub(super) fn parse_address(body: &[u8]) -> Option<(u32, IpNetwork)> {
    let (prefix, index) = (*body.get(1)?, u32_at(body, 4)?);
    let attributes = || Attributes(body.get(IFADDRMSG..).unwrap_or(&[]));
    // On a point-to-point link IFA_ADDRESS is the other side; IFA_LOCAL, if given, is ours.
    let local = attributes().find(|(kind, _)| *kind == IFA_LOCAL);
    let (_, value) = local.or_else(|| attributes().find(|(kind, _)| *kind == IFA_ADDRESS))?;
    Some((index, IpNetwork::new(address(value)?, prefix).ok()?))
}

/// Makes `gateway` on link `index` the default route of its family.
pub(crate) fn add_default_route(index: u32, gateway: IpAddr) -> Message {
    let mut body = [0; RTMSG];
    body[0] = family(gateway);
    body[4] = RT_TABLE_MAIN;
    body[5] = RTPROT_BOOT;
    body[7] = RTN_UNICAST;
    let mut message = Message::new(RTM_NEWROUTE, CREATE | REPLACE, &body);
    message
        .bytes(RTA_GATEWAY, &octets(gateway))
        .u32(RTA_OIF, index);
    message
}

/// Lets what arrives by link `index` for `::1` be the host's own: for each link the kernel looks up
/// loopback addresses strictly (`rt6_need_strict`, `net/ipv6/route.c`), so the route of `lo` is none.
/// Refused with `EEXIST` if it is there already.
pub(crate) fn add_loopback_route(index: u32) -> Message {
    let mut body = [0; RTMSG];
    body[0] = AF_INET6;
    body[1] = 128;
    body[4] = RT_TABLE_LOCAL;
    body[5] = RTPROT_BOOT;
    body[7] = RTN_LOCAL;
    // Not REPLACE: that would take the route of `lo` away.
    let mut message = Message::new(RTM_NEWROUTE, CREATE | APPEND, &body);
    message
        .bytes(RTA_DST, &Ipv6Addr::LOCALHOST.octets())
        .u32(RTA_OIF, index);
    message
}

/// Tells link `index` which neighbour has the address, whoever had it before.
pub(crate) fn set_neighbour(index: u32, address: IpAddr, mac: Mac) -> Message {
    let mut body = [0; NDMSG];
    body[0] = family(address);
    body[4..8].copy_from_slice(&index.to_ne_bytes());
    body[8..10].copy_from_slice(&NUD_REACHABLE.to_ne_bytes());
    let mut message = Message::new(RTM_NEWNEIGH, CREATE | REPLACE, &body);
    message
        .bytes(NDA_DST, &octets(address))
        .bytes(NDA_LLADDR, &mac.0);
    message
}

/// The destinations of all unicast routes, default routes left out, each with its link's index
/// (0 for none).
pub(crate) fn destinations(socket: &mut Socket) -> Result<Vec<(u32, IpNetwork)>, NetlinkError> {
    let mut found = Vec::new();
    let request = Message::new(RTM_GETROUTE, DUMP, &[0; RTMSG]);
    socket.ask("list routes", request, |_, body| {
        found.extend(parse_destination(body))
    })?;
    Ok(found)
}

pub(super) fn parse_destination(body: &[u8]) -> Option<(u32, IpNetwork)> {
    if *body.get(7)? != RTN_UNICAST {
        return None;
    }
    let find = |wanted| Attributes(body.get(RTMSG..)?).find(|(kind, _)| *kind == wanted);
    let index = find(RTA_OIF)
        .and_then(|(_, value)| u32_at(value, 0))
        .unwrap_or(0);
    let (_, value) = find(RTA_DST)?;
    Some((index, IpNetwork::new(address(value)?, *body.get(1)?).ok()?))
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).into()),
        16 => Some(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).into()),
        _ => None,
    }
}
