//! Forgetting flows whose translation has changed.
//!
//! The kernel decides once for each flow where it leads. A UDP client that goes on sending from
//! the same port keeps its flow, and so keeps missing a port published since, or keeps sending to
//! an instance that is gone. (TCP clients notice, and connect anew.) Source:
//! `include/uapi/linux/netfilter/nfnetlink_conntrack.h`; filters need Linux 5.8, older ones
//! refuse the request.

use std::net::IpAddr;

use crate::netlink::{Batch, Message, NetlinkError, Socket};
use crate::ruleset::{Element, Transport};

const IPCTNL_MSG_CT_DELETE: u16 = 1 << 8 | 2;

const CTA_TUPLE_ORIG: u16 = 1;
const CTA_FILTER: u16 = 25;
const CTA_FILTER_ORIG_FLAGS: u16 = 1;
const CTA_FILTER_REPLY_FLAGS: u16 = 2;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4_DST: u16 = 2;
const CTA_IP_V6_DST: u16 = 4;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_DST_PORT: u16 = 3;

const FILTER_IP_DST: u32 = 1 << 1;
const FILTER_PROTO_NUM: u32 = 1 << 3;
const FILTER_DST_PORT: u32 = 1 << 5;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// Forgets the UDP flows to each published port among `changed`.
pub(super) fn forget<'a>(
    socket: &mut Socket,
    changed: impl Iterator<Item = &'a Element>,
) -> Result<(), NetlinkError> {
    let mut batch = Batch::default();
    for element in changed {
        if let Element::Publish {
            host,
            transport: Transport::Udp,
            port,
            target,
            ..
        } = element
        {
            let what = format!("forget flows to port {port}/udp");
            batch.push(what, deletion(*host, *port, target.is_ipv4()));
        }
    }
    socket.run(&batch)
}

fn deletion(host: Option<IpAddr>, port: u16, v4: bool) -> Message {
    let family = if v4 { AF_INET } else { AF_INET6 };
    let mut message = Message::new(IPCTNL_MSG_CT_DELETE, 0, &[family, 0, 0, 0]);
    message.nest(CTA_TUPLE_ORIG, |tuple| {
        match host {
            Some(IpAddr::V4(host)) => {
                tuple.nest(CTA_TUPLE_IP, |ip| {
                    ip.bytes(CTA_IP_V4_DST, &host.octets());
                });
            }
            Some(IpAddr::V6(host)) => {
                tuple.nest(CTA_TUPLE_IP, |ip| {
                    ip.bytes(CTA_IP_V6_DST, &host.octets());
                });
            }
            None => {}
        }
        tuple.nest(CTA_TUPLE_PROTO, |proto| {
            proto
                .u8(CTA_PROTO_NUM, Transport::Udp.number())
                .bytes(CTA_PROTO_DST_PORT, &port.to_be_bytes());
        });
    });
    let address = if host.is_some() { FILTER_IP_DST } else { 0 };
    message.nest(CTA_FILTER, |filter| {
        filter
            .u32(
                CTA_FILTER_ORIG_FLAGS,
                address | FILTER_PROTO_NUM | FILTER_DST_PORT,
            )
            .u32(CTA_FILTER_REPLY_FLAGS, 0);
    });
    message
}
