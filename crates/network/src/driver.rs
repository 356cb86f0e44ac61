//! The links of one daemon: bridges, attachments, and their removal.
//!
//! Called by the node's reconcile loop and, for attachments, on the start path of an instance.
//! Everything it makes carries the daemon's [`Prefix`]; it never touches a link without it. It
//! knows no instances: an attachment is an opaque key, kept in the link's alias, so that what a
//! crash left behind can be recognized by [`Driver::sweep`] without any file.
//!
//! ```text
//!  host namespace                                instance's namespace
//!  PREFIX-NAME (bridge, gateway address)
//!     └── PREFIX.HASH (port, alias = key) ═════ eth0 (addresses, default routes)
//! ```

mod attach;
mod ensure;
mod sweep;

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use ipnetwork::IpNetwork;

pub use attach::{AttachError, Attached, DetachError};
pub use ensure::{EnsureError, RemoveError};
pub use sweep::{Observed, ObservedAttachment, ObservedNetwork, Swept};

use crate::netlink::{NetlinkError, Socket, address};
use crate::{Prefix, netns};

/// Makes and removes links in the network namespace it was opened in.
#[derive(Debug)]
pub struct Driver {
    prefix: Prefix,
    netns: OwnedFd,
    socket: Mutex<Socket>,
    /// Whether the kernel speaks IPv6 at all.
    ipv6: bool,
    /// Whether bridged packets pass the rules for routed ones (module `br_netfilter`); noted by
    /// [`Driver::notice_filtering`].
    bridged_filtering: AtomicBool,
    /// The same of IPv6 packets alone.
    bridged_filtering6: AtomicBool,
}

impl Driver {
    /// A driver for the calling thread's network namespace. Later calls may come from any thread.
    ///
    /// # Errors
    /// The namespace or a netlink socket could not be opened.
    pub fn open(prefix: Prefix) -> Result<Self, NetlinkError> {
        let netns = netns::current()
            .map_err(|errno| NetlinkError::new("open the current network namespace", errno))?;
        Ok(Self {
            prefix,
            netns,
            socket: Mutex::new(Socket::route()?),
            ipv6: Path::new("/proc/sys/net/ipv6").exists(),
            bridged_filtering: AtomicBool::new(false),
            bridged_filtering6: AtomicBool::new(false),
        })
    }

    /// The prefix of all that this driver makes.
    #[must_use]
    pub fn prefix(&self) -> &Prefix {
        &self.prefix
    }

    /// Every subnet the host has an address in or a route to, except those of this driver's own
    /// bridges: what [`crate::ipam::choose_subnet4`] must avoid.
    ///
    /// # Errors
    /// The kernel refused to list them.
    pub fn host_subnets(&self) -> Result<Vec<IpNetwork>, NetlinkError> {
        let mut socket = self.socket();
        let own: Vec<u32> = crate::netlink::link::list(&mut socket)?
            .into_iter()
            .filter(|link| self.prefix.owns_bridge(&link.name))
            .map(|link| link.index)
            .collect();
        let addresses = address::list(&mut socket)?;
        let routes = address::destinations(&mut socket)?;
        let used = addresses
            .into_iter()
            .filter(|(index, _)| !own.contains(index));
        let routes = routes.into_iter().filter(|(index, _)| !own.contains(index));
        Ok(used.chain(routes).map(|(_, subnet)| subnet).collect())
    }

    /// Whether the kernel can answer on `::1` for what is published ([`crate::Rules::loopback6`]), as of
    /// the last [`Driver::ensure_network`] or [`Driver::notice_filtering`].
    ///
    /// Not where bridged packets pass the rules for routed ones: the answer is for `::1` again while it
    /// is still on the bridge, and is dropped as one that came from a wire (`ip6_rcv_core`).
    #[must_use]
    pub fn answers_on_loopback6(&self) -> bool {
        !self.bridged_filtering6.load(Ordering::Relaxed)
    }

    fn socket(&self) -> MutexGuard<'_, Socket> {
        // The socket numbers its batches, so one that was abandoned half-way does no harm.
        self.socket.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, rustix::io::Errno> {
        netns::within(self.netns.as_fd(), work)
    }
}
