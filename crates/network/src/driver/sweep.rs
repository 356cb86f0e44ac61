//! What exists, and removal of what should not.

use std::collections::BTreeSet;

use ipnetwork::IpNetwork;
use rustix::io::Errno;

use super::Driver;
use crate::IfName;
use crate::netlink::link::Link;
use crate::netlink::{Batch, NetlinkError, address, link};

/// Links removed in one system call.
const SWEEP_BATCH: usize = 64;

/// A bridge of this daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedNetwork {
    /// The network's name; `None` if a crash left the bridge unmarked.
    pub name: Option<String>,
    /// The bridge.
    pub bridge: IfName,
    /// Whether it is up.
    pub up: bool,
    /// Its addresses.
    pub addresses: Vec<IpNetwork>,
}

/// An attachment of this daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedAttachment {
    /// The attachment's key; `None` if a crash left the link unmarked.
    pub key: Option<String>,
    /// The host's end.
    pub ifname: IfName,
    /// The network it is a port of; `None` if its bridge has gone.
    pub network: Option<String>,
    /// Whether it is up.
    pub up: bool,
}

/// Everything of this daemon that exists in its namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observed {
    /// Bridges.
    pub networks: Vec<ObservedNetwork>,
    /// Host ends of attachments.
    pub attachments: Vec<ObservedAttachment>,
}

/// What a sweep removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Swept {
    /// Bridges.
    pub bridges: Vec<IfName>,
    /// Host ends of attachments.
    pub links: Vec<IfName>,
}

impl Driver {
    /// Lists what exists.
    ///
    /// # Errors
    /// The kernel refused to list links or addresses.
    pub fn observe(&self) -> Result<Observed, NetlinkError> {
        let mut socket = self.socket();
        let links = link::list(&mut socket)?;
        let addresses = address::list(&mut socket)?;
        drop(socket);
        let mut observed = Observed::default();
        for link in &links {
            let Ok(ifname) = IfName::parse(&link.name) else {
                continue;
            };
            if self.is_bridge(link) {
                let own = addresses.iter().filter(|(index, _)| *index == link.index);
                observed.networks.push(ObservedNetwork {
                    name: link.alias.clone(),
                    bridge: ifname,
                    up: link.up,
                    addresses: own.map(|(_, address)| *address).collect(),
                });
            } else if self.is_attachment(link) {
                let bridge = links.iter().find(|other| Some(other.index) == link.master);
                observed.attachments.push(ObservedAttachment {
                    key: link.alias.clone(),
                    ifname,
                    network: bridge.and_then(|bridge| bridge.alias.clone()),
                    up: link.up,
                });
            }
        }
        Ok(observed)
    }

    /// Removes every link and bridge of this daemon that belongs to none of `networks` (by name)
    /// and none of `keys`. Safe beside running attaches of this driver as long as an attachment's
    /// key is recorded before it is attached.
    ///
    /// # Errors
    /// The first removal the kernel refused; all others have been tried.
    pub fn sweep(
        &self,
        networks: &BTreeSet<String>,
        keys: &BTreeSet<String>,
    ) -> Result<Swept, NetlinkError> {
        let mut socket = self.socket();
        let mut swept = Swept::default();
        for link in link::list(&mut socket)? {
            let known = |set: &BTreeSet<String>| {
                link.alias.as_ref().is_some_and(|alias| set.contains(alias))
            };
            let Ok(ifname) = IfName::parse(&link.name) else {
                continue;
            };
            if self.is_attachment(&link) && !known(keys) {
                swept.links.push(ifname);
            } else if self.is_bridge(&link) && !known(networks) {
                swept.bridges.push(ifname);
            }
        }
        let doomed: Vec<&IfName> = swept.links.iter().chain(&swept.bridges).collect();
        let mut refused = None;
        for names in doomed.chunks(SWEEP_BATCH) {
            let mut batch = Batch::default();
            for ifname in names {
                batch.push(format!("remove link {ifname}"), link::delete(ifname));
            }
            for (index, errno) in socket.run_all(&batch)? {
                // Gone by itself meanwhile: its namespace ended.
                if errno != Errno::NODEV && refused.is_none() {
                    refused = Some(NetlinkError::new(batch.labels[index].as_str(), errno));
                }
            }
        }
        refused.map_or(Ok(swept), Err)
    }

    fn is_bridge(&self, link: &Link) -> bool {
        link.kind.as_deref() == Some("bridge") && self.prefix.owns_bridge(&link.name)
    }

    fn is_attachment(&self, link: &Link) -> bool {
        link.kind.as_deref() == Some("veth") && self.prefix.owns_link(&link.name)
    }
}
