//! The few messages of rtnetlink that a guest's network needs, encoded by hand.
//!
//! Three requests and their acknowledgement do not pay for a library in the initramfs. See
//! `rtnetlink(7)` and `netlink(7)`.

use std::{io, net::IpAddr, os::fd::OwnedFd};

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with,
};

const REQUEST: u16 = libc::NLM_F_REQUEST as u16;
const ACK: u16 = libc::NLM_F_ACK as u16;
const CREATE: u16 = libc::NLM_F_CREATE as u16;
const REPLACE: u16 = libc::NLM_F_REPLACE as u16;
const APPEND: u16 = libc::NLM_F_APPEND as u16;
/// `RTNH_F_ONLINK` of `linux/rtnetlink.h`: the gateway needs no address of ours to reach it.
const RTNH_F_ONLINK: u32 = 4;
/// Bytes of `struct nlmsghdr`.
const HEADER: usize = 16;

/// A socket to the kernel's network configuration.
pub struct Netlink(OwnedFd);

impl Netlink {
    /// Opens one.
    pub fn open() -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC;
        let family = AddressFamily::NETLINK;
        // No protocol is protocol 0, which is NETLINK_ROUTE.
        Ok(Self(socket_with(family, SocketType::RAW, flags, None)?))
    }

    /// Sets an interface up, with this largest packet size.
    pub fn link_up(&self, index: u32, mtu: Option<u32>) -> io::Result<()> {
        let up = libc::IFF_UP as u32;
        let mut message = Message::new(libc::RTM_NEWLINK, 0);
        // struct ifinfomsg: family, padding, type, index, flags, mask of flags to change.
        message.bytes(&[libc::AF_UNSPEC as u8, 0, 0, 0]);
        for number in [index, up, up] {
            message.bytes(&number.to_ne_bytes());
        }
        if let Some(mtu) = mtu {
            message.attribute(libc::IFLA_MTU, &mtu.to_ne_bytes());
        }
        self.ask(message)
    }

    /// Gives an interface an address.
    pub fn add_address(&self, index: u32, address: IpAddr, prefix: u8) -> io::Result<()> {
        let mut message = Message::new(libc::RTM_NEWADDR, CREATE | REPLACE);
        // struct ifaddrmsg: family, prefix, flags (no duplicate detection: the host gave it), scope, index.
        let flags = if address.is_ipv6() {
            libc::IFA_F_NODAD as u8
        } else {
            0
        };
        message.bytes(&[family(address), prefix, flags, 0]);
        message.bytes(&index.to_ne_bytes());
        let octets = octets(address);
        message.attribute(libc::IFA_LOCAL, &octets);
        message.attribute(libc::IFA_ADDRESS, &octets);
        self.ask(message)
    }

    /// Routes everything else through `gateway`, also one that no address of the interface reaches.
    pub fn add_default_route(&self, index: u32, gateway: IpAddr) -> io::Result<()> {
        let mut message = Message::new(libc::RTM_NEWROUTE, CREATE | APPEND);
        // struct rtmsg: family, destination and source prefix, tos, table, protocol, scope, type, flags.
        message.bytes(&[
            family(gateway),
            0,
            0,
            0,
            libc::RT_TABLE_MAIN,
            libc::RTPROT_STATIC,
            libc::RT_SCOPE_UNIVERSE,
            libc::RTN_UNICAST,
        ]);
        message.bytes(&RTNH_F_ONLINK.to_ne_bytes());
        message.attribute(libc::RTA_GATEWAY, &octets(gateway));
        message.attribute(libc::RTA_OIF, &index.to_ne_bytes());
        self.ask(message)
    }

    /// Sends a request and waits for its acknowledgement.
    fn ask(&self, message: Message) -> io::Result<()> {
        send(&self.0, &message.finish(), SendFlags::empty())?;
        let mut buffer = [0; 4096];
        let (_, length) = recv(&self.0, &mut buffer, RecvFlags::empty())?;
        let answer = &buffer[..length.min(4096)];
        let kind = answer.get(4..6).map(|b| u16::from_ne_bytes([b[0], b[1]]));
        let code = answer.get(HEADER..HEADER + 4);
        match (kind, code) {
            (Some(kind), Some(code)) if i32::from(kind) == libc::NLMSG_ERROR => {
                match i32::from_ne_bytes([code[0], code[1], code[2], code[3]]) {
                    0 => Ok(()),
                    errno => Err(io::Error::from_raw_os_error(errno.wrapping_neg())),
                }
            }
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

/// A request being put together.
struct Message(Vec<u8>);

impl Message {
    fn new(kind: u16, flags: u16) -> Self {
        // struct nlmsghdr: length (filled in at the end), type, flags, sequence, port.
        let mut bytes = vec![0; 4];
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(&(REQUEST | ACK | flags).to_ne_bytes());
        bytes.extend_from_slice(&[0; 8]);
        Self(bytes)
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// A type, a length and bytes, padded to four.
    fn attribute(&mut self, kind: u16, value: &[u8]) {
        let length = u16::try_from(value.len() + 4).expect("our attributes have some bytes");
        self.bytes(&length.to_ne_bytes());
        self.bytes(&kind.to_ne_bytes());
        self.bytes(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        let length = u32::try_from(self.0.len()).expect("our messages have some bytes");
        self.0[..4].copy_from_slice(&length.to_ne_bytes());
        self.0
    }
}

fn family(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => libc::AF_INET as u8,
        IpAddr::V6(_) => libc::AF_INET6 as u8,
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}
