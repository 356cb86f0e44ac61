//! Networks of one host: links, addresses, packet rules and names for instances.
//!
//! | module | owns |
//! |---|---|
//! | [`Driver`] | bridges and veth pairs, by its own netlink socket |
//! | [`Firewall`], [`Rules`] | the daemon's nftables tables: NAT, published ports, isolation |
//! | [`ports`] | which ports of the host its own programs have |
//! | [`ipam`] | which address next, which subnet by default; pure |
//! | [`Loopback`] | published ports on `::1`, where the kernel cannot |
//! | [`dns`] | names of instances, and forwarding of all others |
//! | [`files`] | an instance's `resolv.conf`, `hosts` and `hostname`; pure |
//!
//! Called by the node and its engine adapters. It knows no instances, only opaque keys; it stores
//! nothing: all state is the kernel's, recognized by the daemon's [`Prefix`]. It never touches a
//! link, table or rule without that prefix, and never execs a tool on the path of an attach.
#![forbid(unsafe_code)]

mod config;
pub mod dns;
mod driver;
pub mod files;
mod firewall;
#[doc(hidden)]
pub mod fuzzing;
pub mod ipam;
mod loopback;
mod mac;
mod name;
mod netlink;
mod netns;
pub mod ports;
pub mod ruleset;

pub use config::{Attachment, NetworkConfig, Outside};
pub use driver::{
    AttachError, Attached, DetachError, Driver, EnsureError, Observed, ObservedAttachment,
    ObservedNetwork, RemoveError, Swept,
};
pub use firewall::{Applied, Firewall, FirewallError};
pub use loopback::Loopback;
pub use mac::{Mac, MacError};
pub use name::{IFNAME_MAX, IfName, NameError, Prefix};
pub use netlink::NetlinkError;
pub use ruleset::{Guarded, Limited, Published, Rate, Rules, RulesError, Transport};
