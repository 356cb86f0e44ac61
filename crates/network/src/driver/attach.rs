//! Joining an instance's namespace to a network: the start path, so every system call counts.
//!
//! Outside, one request makes the pair and one batch configures it; inside, one batch sets
//! addresses and routes. The inner one needs a socket opened in the instance's namespace, hence a short-lived
//! thread ([`crate::netns`]).

use std::os::fd::BorrowedFd;
use std::sync::atomic::Ordering;

use ipnetwork::IpNetwork;
use rustix::io::Errno;

use super::Driver;
use crate::netlink::{Batch, NetlinkError, Socket, address, link};
use crate::{Attachment, IfName, netns};

/// Index of the loopback interface in every namespace.
const LOOPBACK: u32 = 1;

/// What an attachment became.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attached {
    /// The link on the host's side.
    pub host_ifname: IfName,
    /// The index of the link inside the instance's namespace.
    pub inside_index: u32,
}

/// Why an instance could not be joined to a network. Nothing is left behind.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The network's bridge does not exist.
    #[error("{key}: network {network:?} is not set up on this host: its bridge {bridge} is gone")]
    NoNetwork {
        /// The attachment.
        key: String,
        /// The network.
        network: String,
        /// The missing bridge.
        bridge: IfName,
    },
    /// Another attachment's link has the name.
    #[error("{key}: the link name {ifname} is taken by {holder:?}")]
    Taken {
        /// The attachment.
        key: String,
        /// The contested name.
        ifname: IfName,
        /// The alias of the link that has it.
        holder: String,
    },
    /// The kernel refused.
    #[error("{key} could not be joined to network {network:?}")]
    Netlink {
        /// The attachment.
        key: String,
        /// The network.
        network: String,
        /// What was refused.
        #[source]
        source: NetlinkError,
    },
}

/// Why an attachment could not be removed.
#[derive(Debug, thiserror::Error)]
#[error("{key} could not be detached from its network")]
pub struct DetachError {
    /// The attachment.
    pub key: String,
    /// What was refused.
    #[source]
    pub source: NetlinkError,
}

impl Driver {
    /// The name of the host's end of attachment `key`.
    #[must_use]
    pub fn host_ifname(&self, key: &str) -> IfName {
        self.prefix.link(key)
    }

    /// Joins the instance's namespace to the network. A link that an earlier attempt with the same
    /// key left behind is replaced.
    ///
    /// Blocks for about as long as the kernel needs to make a pair of links; call it off the async
    /// threads. Many may run at once.
    ///
    /// # Errors
    /// See [`AttachError`].
    pub fn attach(&self, attachment: &Attachment<'_>) -> Result<Attached, AttachError> {
        let netlink = |source| AttachError::Netlink {
            key: attachment.key.to_owned(),
            network: attachment.network.to_owned(),
            source,
        };
        let host_ifname = self.host_ifname(attachment.key);
        self.make_pair(attachment, &host_ifname)?;
        match configure_inside(attachment) {
            Ok(inside_index) => Ok(Attached {
                host_ifname,
                inside_index,
            }),
            Err(source) => {
                self.delete_quietly(&host_ifname);
                Err(netlink(source))
            }
        }
    }

    /// Removes attachment `key`. The kernel removes it by itself some time after the instance's
    /// namespace has gone, so nothing needs to wait for this. Says whether there was one.
    ///
    /// # Errors
    /// See [`DetachError`].
    pub fn detach(&self, key: &str) -> Result<bool, DetachError> {
        let failed = |source| DetachError {
            key: key.to_owned(),
            source,
        };
        let ifname = self.host_ifname(key);
        let mut socket = self.socket();
        match link::find(&mut socket, &ifname).map_err(failed)? {
            Some(found) if found.alias.as_deref().is_none_or(|alias| alias == key) => {}
            _ => return Ok(false),
        }
        let mut batch = Batch::default();
        batch.push(format!("remove link {ifname}"), link::delete(&ifname));
        match socket.run(&batch) {
            Ok(()) => Ok(true),
            Err(error) if error.errno == Errno::NODEV => Ok(false),
            Err(error) => Err(failed(error)),
        }
    }

    fn make_pair(
        &self,
        attachment: &Attachment<'_>,
        host_ifname: &IfName,
    ) -> Result<(), AttachError> {
        let key = attachment.key;
        let netlink = |source| AttachError::Netlink {
            key: key.to_owned(),
            network: attachment.network.to_owned(),
            source,
        };
        let bridge_name = self.prefix.bridge(attachment.network);
        let mut socket = self.socket();
        let Some(bridge) = link::find(&mut socket, &bridge_name).map_err(netlink)? else {
            return Err(AttachError::NoNetwork {
                key: key.to_owned(),
                network: attachment.network.to_owned(),
                bridge: bridge_name,
            });
        };
        let veth = link::Veth {
            host: host_ifname,
            inside: &attachment.ifname,
            netns: attachment.netns,
            mac: attachment.mac,
            mtu: Some(attachment.mtu.unwrap_or(bridge.mtu)),
            bridge: bridge.index,
        };
        create(&mut socket, &veth, key, netlink)?;
        let configured = socket.run(&self.configuration(attachment, host_ifname, bridge.index));
        configured.map_err(|error| {
            // What cannot be removed now is swept later; the first failure is what matters.
            let _ = socket.run(&deletion(host_ifname));
            netlink(error)
        })
    }

    /// What is still to be done on the host's side once the pair exists.
    fn configuration(
        &self,
        attachment: &Attachment<'_>,
        host_ifname: &IfName,
        bridge_index: u32,
    ) -> Batch {
        // Where bridged packets pass the rules for routed ones, a port published by the instance
        // that asks for it is rewritten on the bridge, and must go back the way it came.
        let port = link::Port {
            hairpin: attachment.hairpin || self.bridged_filtering.load(Ordering::Relaxed),
            isolated: attachment.isolated,
            ipv6: self.ipv6,
        };
        let mut batch = Batch::default();
        let set_port = link::set_port(host_ifname, attachment.key, port);
        batch.push(format!("configure link {host_ifname}"), set_port);
        for address in attachment.addresses.iter().map(IpNetwork::ip) {
            // The host may remember a former owner of the address, and would for seconds.
            let neighbour = address::set_neighbour(bridge_index, address, attachment.mac);
            batch.push(format!("announce {address} to the host"), neighbour);
        }
        batch
    }

    fn delete_quietly(&self, ifname: &IfName) {
        if let Err(error) = self.socket().run(&deletion(ifname)) {
            tracing::warn!(%ifname, %error, "a link is left for the next sweep");
        }
    }
}

/// Makes the pair, in place of one that an earlier attempt left. On its own, and not in a batch
/// with what follows: that must never reach a link somebody else has under this name.
fn create(
    socket: &mut Socket,
    veth: &link::Veth<'_>,
    key: &str,
    netlink: impl Fn(NetlinkError) -> AttachError + Copy,
) -> Result<(), AttachError> {
    let mut batch = Batch::default();
    let what = format!("make link {} with {} inside", veth.host, veth.inside);
    batch.push(what, link::add_veth(veth));
    match socket.run(&batch) {
        Err(error) if error.errno == Errno::EXIST => {
            remove_leftover(socket, veth.host, key, netlink)?;
            socket.run(&batch).map_err(netlink)
        }
        outcome => outcome.map_err(netlink),
    }
}

fn deletion(ifname: &IfName) -> Batch {
    let mut batch = Batch::default();
    batch.push(format!("remove link {ifname}"), link::delete(ifname));
    batch
}

/// Removes the link in the way if it is this attachment's own. If no link is in the way, the name
/// inside is taken, and trying once more says so.
fn remove_leftover(
    socket: &mut Socket,
    ifname: &IfName,
    key: &str,
    netlink: impl Fn(NetlinkError) -> AttachError,
) -> Result<(), AttachError> {
    match link::find(socket, ifname).map_err(&netlink)? {
        None => Ok(()),
        Some(found) => match found.alias {
            Some(alias) if alias != key => Err(AttachError::Taken {
                key: key.to_owned(),
                ifname: ifname.clone(),
                holder: alias,
            }),
            _ => socket.run(&deletion(ifname)).map_err(netlink),
        },
    }
}

/// Sets loopback, addresses and routes from inside; returns the link's index there.
fn configure_inside(attachment: &Attachment<'_>) -> Result<u32, NetlinkError> {
    let enter = |errno| NetlinkError::new("enter the instance's network namespace", errno);
    let netns: BorrowedFd<'_> = attachment.netns;
    netns::within(netns, || {
        let mut socket = Socket::route()?;
        let ifname = &attachment.ifname;
        let missing = || NetlinkError::new(format!("find {ifname} inside"), Errno::NODEV);
        let inside = link::find(&mut socket, ifname)?.ok_or_else(missing)?;
        let mut batch = Batch::default();
        batch.push("bring loopback up", link::set_up(LOOPBACK, None));
        batch.push(
            format!("bring {ifname} up inside"),
            link::set_up(inside.index, None),
        );
        for address in &attachment.addresses {
            batch.push(
                format!("set address {address}"),
                address::add(inside.index, address),
            );
        }
        for gateway in &attachment.gateways {
            let route = address::add_default_route(inside.index, *gateway);
            batch.push(format!("set the default route by {gateway}"), route);
        }
        match socket.run(&batch) {
            Err(error) if error.errno == Errno::ACCESS => {
                // IPv6 is switched off by default here, but this interface was given an address.
                switch_on_ipv6(ifname);
                socket.run(&batch)?;
            }
            outcome => outcome?,
        }
        Ok(inside.index)
    })
    .map_err(enter)?
}

/// Lets the interface have IPv6 addresses; runs inside. If it cannot, setting them says so.
fn switch_on_ipv6(ifname: &IfName) {
    let path = format!("/proc/sys/net/ipv6/conf/{ifname}/disable_ipv6");
    if let Err(error) = std::fs::write(&path, "0") {
        tracing::warn!(%path, %error, "IPv6 stays switched off");
    }
}
