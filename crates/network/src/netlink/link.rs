//! Links: bridges, veth pairs, and the list of what exists.
//!
//! Source: `include/uapi/linux/if_link.h`, `drivers/net/veth.c`, `net/core/rtnetlink.c`.

use std::os::fd::{AsRawFd, BorrowedFd};

use super::attribute::{Attributes, text, u32_at};
use super::message::{CREATE, DUMP, EXCL};
use super::{Message, NetlinkError, Socket};
use crate::{IfName, Mac};

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_IFALIAS: u16 = 20;
const IFLA_AF_SPEC: u16 = 26;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_EXT_MASK: u16 = 29;

const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_INFO_SLAVE_KIND: u16 = 4;
const IFLA_INFO_SLAVE_DATA: u16 = 5;
const VETH_INFO_PEER: u16 = 1;

const IFLA_BR_FORWARD_DELAY: u16 = 1;
const IFLA_BR_STP_STATE: u16 = 5;
const IFLA_BR_MCAST_SNOOPING: u16 = 23;

const IFLA_BRPORT_MODE: u16 = 4;
const IFLA_BRPORT_ISOLATED: u16 = 33;

const AF_INET6: u16 = 10;
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
const ADDR_GEN_MODE_NONE: u8 = 1;

/// `RTEXT_FILTER_SKIP_STATS`: leave counters out of a dump.
const SKIP_STATS: u32 = 1 << 3;

const IFF_UP: u32 = 1;

/// Length of `struct ifinfomsg`.
const IFINFOMSG: usize = 16;

/// A link as the kernel lists it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) alias: Option<String>,
    pub(crate) kind: Option<String>,
    pub(crate) master: Option<u32>,
    pub(crate) mtu: u32,
    pub(crate) mac: Option<Mac>,
    pub(crate) up: bool,
}

fn ifinfomsg(index: u32, up: bool) -> [u8; IFINFOMSG] {
    let mut body = [0; IFINFOMSG];
    body[4..8].copy_from_slice(&index.to_ne_bytes());
    if up {
        body[8..12].copy_from_slice(&IFF_UP.to_ne_bytes());
        body[12..16].copy_from_slice(&IFF_UP.to_ne_bytes());
    }
    body
}

/// Makes a bridge, down, without spanning tree or its delay. Multicast is flooded: neighbour
/// discovery must not depend on a querier.
pub(crate) fn add_bridge(name: &IfName, mac: Mac, mtu: Option<u32>) -> Message {
    let mut message = Message::new(RTM_NEWLINK, CREATE | EXCL, &ifinfomsg(0, false));
    message
        .text(IFLA_IFNAME, name.as_str())
        .bytes(IFLA_ADDRESS, &mac.0);
    if let Some(mtu) = mtu {
        message.u32(IFLA_MTU, mtu);
    }
    message.nest(IFLA_LINKINFO, |info| {
        info.text(IFLA_INFO_KIND, "bridge")
            .nest(IFLA_INFO_DATA, |data| {
                data.u32(IFLA_BR_FORWARD_DELAY, 0)
                    .u32(IFLA_BR_STP_STATE, 0)
                    .u8(IFLA_BR_MCAST_SNOOPING, 0);
            });
    });
    message
}

/// The two ends of a veth pair.
pub(crate) struct Veth<'a> {
    pub(crate) host: &'a IfName,
    pub(crate) inside: &'a IfName,
    pub(crate) netns: BorrowedFd<'a>,
    pub(crate) mac: Mac,
    pub(crate) mtu: Option<u32>,
    pub(crate) bridge: u32,
}

/// Makes a veth pair whose far end is born in its namespace, named and with its hardware address;
/// the host end is a port of the bridge. Both are still down.
pub(crate) fn add_veth(veth: &Veth<'_>) -> Message {
    let mut message = Message::new(RTM_NEWLINK, CREATE | EXCL, &ifinfomsg(0, false));
    message
        .text(IFLA_IFNAME, veth.host.as_str())
        .u32(IFLA_MASTER, veth.bridge);
    if let Some(mtu) = veth.mtu {
        message.u32(IFLA_MTU, mtu);
    }
    message.nest(IFLA_LINKINFO, |info| {
        info.text(IFLA_INFO_KIND, "veth")
            .nest(IFLA_INFO_DATA, |data| {
                data.nest(VETH_INFO_PEER, |peer| {
                    // Not up yet: the kernel refuses that before both ends exist.
                    peer.raw(&ifinfomsg(0, false))
                        .text(IFLA_IFNAME, veth.inside.as_str())
                        .bytes(IFLA_ADDRESS, &veth.mac.0)
                        .bytes(IFLA_NET_NS_FD, &veth.netns.as_raw_fd().to_ne_bytes());
                    if let Some(mtu) = veth.mtu {
                        peer.u32(IFLA_MTU, mtu);
                    }
                });
            });
    });
    message
}

/// How the bridge treats a port.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Port {
    pub(crate) hairpin: bool,
    pub(crate) isolated: bool,
    /// Whether the kernel speaks IPv6.
    pub(crate) ipv6: bool,
}

/// Marks the host end with its key, sets how the bridge treats it, and brings it up. It gets no
/// IPv6 address of its own: it is a port, not an interface of the host.
pub(crate) fn set_port(host: &IfName, alias: &str, port: Port) -> Message {
    let mut message = Message::new(RTM_NEWLINK, 0, &ifinfomsg(0, true));
    message
        .text(IFLA_IFNAME, host.as_str())
        .text(IFLA_IFALIAS, alias);
    message.nest(IFLA_LINKINFO, |info| {
        info.text(IFLA_INFO_SLAVE_KIND, "bridge")
            .nest(IFLA_INFO_SLAVE_DATA, |data| {
                data.u8(IFLA_BRPORT_MODE, u8::from(port.hairpin))
                    .u8(IFLA_BRPORT_ISOLATED, u8::from(port.isolated));
            });
    });
    if port.ipv6 {
        no_generated_address(&mut message);
    }
    message
}

/// Keeps the kernel from giving the link a link-local address by itself.
fn no_generated_address(message: &mut Message) {
    message.nest(IFLA_AF_SPEC, |spec| {
        spec.nest(AF_INET6, |inet6| {
            inet6.u8(IFLA_INET6_ADDR_GEN_MODE, ADDR_GEN_MODE_NONE);
        });
    });
}

/// Brings the link up, and sets its MTU if given.
pub(crate) fn set_up(index: u32, mtu: Option<u32>) -> Message {
    let mut message = Message::new(RTM_NEWLINK, 0, &ifinfomsg(index, true));
    if let Some(mtu) = mtu {
        message.u32(IFLA_MTU, mtu);
    }
    message
}

/// Marks a bridge with its network. It gets no link-local address by itself either: such a one
/// is unusable for its first second, and with it the bridge for IPv6.
pub(crate) fn set_bridge(name: &IfName, alias: &str, ipv6: bool) -> Message {
    let mut message = Message::new(RTM_NEWLINK, 0, &ifinfomsg(0, false));
    message
        .text(IFLA_IFNAME, name.as_str())
        .text(IFLA_IFALIAS, alias);
    if ipv6 {
        no_generated_address(&mut message);
    }
    message
}

/// Removes a link, and with it its peer, its addresses and its routes.
pub(crate) fn delete(name: &IfName) -> Message {
    let mut message = Message::new(RTM_DELLINK, 0, &ifinfomsg(0, false));
    message.text(IFLA_IFNAME, name.as_str());
    message
}

/// The link called `name`; `None` if there is none.
pub(crate) fn find(socket: &mut Socket, name: &IfName) -> Result<Option<Link>, NetlinkError> {
    let mut request = Message::new(RTM_GETLINK, 0, &ifinfomsg(0, false));
    request
        .u32(IFLA_EXT_MASK, SKIP_STATS)
        .text(IFLA_IFNAME, name.as_str());
    let mut found = None;
    match socket.ask(&format!("look up link {name}"), request, |_, body| {
        found = parse(body)
    }) {
        Ok(()) => Ok(found),
        Err(error) if error.errno == rustix::io::Errno::NODEV => Ok(None),
        Err(error) => Err(error),
    }
}

/// Every link of the namespace.
pub(crate) fn list(socket: &mut Socket) -> Result<Vec<Link>, NetlinkError> {
    let mut request = Message::new(RTM_GETLINK, DUMP, &ifinfomsg(0, false));
    request.u32(IFLA_EXT_MASK, SKIP_STATS);
    let mut links = Vec::new();
    socket.ask("list links", request, |_, body| links.extend(parse(body)))?;
    Ok(links)
}

pub(super) fn parse(body: &[u8]) -> Option<Link> {
    let mut link = Link {
        index: u32_at(body, 4)?,
        up: u32_at(body, 8)? & IFF_UP != 0,
        ..Link::default()
    };
    for (kind, value) in Attributes(body.get(IFINFOMSG..)?) {
        match kind {
            IFLA_IFNAME => link.name = text(value),
            IFLA_IFALIAS => link.alias = Some(text(value)),
            IFLA_MASTER => link.master = u32_at(value, 0),
            IFLA_MTU => link.mtu = u32_at(value, 0).unwrap_or(0),
            IFLA_ADDRESS => link.mac = value.try_into().ok().map(Mac),
            IFLA_LINKINFO => {
                link.kind = Attributes(value)
                    .find(|(kind, _)| *kind == IFLA_INFO_KIND)
                    .map(|(_, value)| text(value));
            }
            _ => {}
        }
    }
    Some(link)
}
