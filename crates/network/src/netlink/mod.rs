//! A small synchronous netlink client: one request batch out, all answers in.
//!
//! Owns the wire format shared by rtnetlink ([`link`], [`address`]), nfnetlink ([`crate::Firewall`]'s
//! hot path) and sock_diag ([`listener`]). It knows the kernel's messages and nothing of networks,
//! instances or policy. Sources: `include/uapi/linux/{netlink,rtnetlink,if_link,if_addr}.h` and
//! <https://docs.kernel.org/userspace-api/netlink/intro.html>.

pub(crate) mod address;
pub(crate) mod attribute;
pub(crate) mod link;
pub(crate) mod listener;
pub(crate) mod message;
pub(crate) mod socket;

pub(crate) use message::{Batch, Message};
pub use socket::NetlinkError;
pub(crate) use socket::Socket;

/// Reads `data` as the kernel's answers; must not panic. The kernel is trusted, but names and
/// aliases of links in them are anybody's.
pub(crate) fn fuzz(data: &[u8]) {
    for message in attribute::Messages(data) {
        link::parse(message.body);
        listener::parse(message.body);
        address::parse_address(message.body);
        address::parse_destination(message.body);
    }
}
