//! Bringing a network's bridge into the wanted state, and removing it.

use std::io::ErrorKind;
use std::net::Ipv6Addr;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use ipnetwork::IpNetwork;
use rustix::io::Errno;

use super::Driver;
use crate::netlink::link::Link;
use crate::netlink::{Batch, NetlinkError, Socket, address, link};
use crate::{IfName, Mac, NetworkConfig, Outside};

/// Why a network could not be brought into the wanted state.
#[derive(Debug, thiserror::Error)]
pub enum EnsureError {
    /// A link with the bridge's name is something else.
    #[error(
        "network {network:?} needs a bridge called {ifname}, but that name is taken by {holder}; \
         remove that link, or give the network another name"
    )]
    Taken {
        /// The network.
        network: String,
        /// The bridge's name.
        ifname: IfName,
        /// What has the name.
        holder: String,
    },
    /// The kernel refused a change of links or addresses.
    #[error("network {network:?} could not be set up")]
    Netlink {
        /// The network.
        network: String,
        /// What was refused.
        #[source]
        source: NetlinkError,
    },
    /// A kernel setting has another value and cannot be changed.
    #[error(
        "network {network:?} needs {path} to be {wanted}; it could not be set: run the daemon \
         where it may write kernel settings, or set it beforehand"
    )]
    Sysctl {
        /// The network.
        network: String,
        /// The setting's file.
        path: PathBuf,
        /// The wanted value.
        wanted: &'static str,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
}

/// Why a network could not be removed.
#[derive(Debug, thiserror::Error)]
#[error("network {network:?} could not be removed")]
pub struct RemoveError {
    /// The network.
    pub network: String,
    /// What was refused.
    #[source]
    pub source: NetlinkError,
}

impl Driver {
    /// Makes the network's bridge if it is missing, and gives it exactly the wanted addresses,
    /// MTU and kernel settings. Changes nothing if all is as wanted. Returns the bridge's name.
    ///
    /// Forwarding is switched on for the whole namespace, as a router needs; for IPv6 the kernel
    /// then stops listening to router advertisements, so interfaces that did listen are told to
    /// go on (`accept_ra=2`). An internal network needs none of it.
    ///
    /// # Errors
    /// See [`EnsureError`]. A bridge half-made by a crash is completed by the next call.
    pub fn ensure_network(&self, config: &NetworkConfig) -> Result<IfName, EnsureError> {
        let ifname = self.prefix.bridge(&config.name);
        let netlink = |source| EnsureError::Netlink {
            network: config.name.clone(),
            source,
        };
        {
            let mut socket = self.socket();
            let bridge = match link::find(&mut socket, &ifname).map_err(netlink)? {
                Some(bridge) => bridge,
                None => create(&mut socket, &ifname, config, self.ipv6).map_err(netlink)?,
            };
            check_ours(&bridge, &ifname, &config.name)?;
            adjust(&mut socket, &bridge, &ifname, config, self.ipv6).map_err(netlink)?;
        }
        let settings = || {
            settings4(&ifname, config)?;
            settings6(&ifname, config)
        };
        self.within(settings).map_err(|errno| {
            netlink(NetlinkError::new(
                "enter the daemon's network namespace",
                errno,
            ))
        })??;
        self.notice_filtering().map_err(netlink)?;
        // Disabling and enabling IPv6 drops addresses; they are set after the settings.
        let mut socket = self.socket();
        adjust_addresses(&mut socket, &ifname, config).map_err(netlink)?;
        Ok(ifname)
    }

    /// Looks anew whether bridged packets pass the rules for routed ones, which the host decides at
    /// any time, by loading a module or by sysctl; says whether that changed. Attachments made before
    /// keep what they were given for it.
    ///
    /// # Errors
    /// The daemon's network namespace could not be entered.
    pub fn notice_filtering(&self) -> Result<bool, NetlinkError> {
        let now = self
            .within(filtering)
            .map_err(|errno| NetlinkError::new("enter the daemon's network namespace", errno))?;
        let any = self.bridged_filtering.swap(now.any, Ordering::Relaxed);
        let ipv6 = self.bridged_filtering6.swap(now.ipv6, Ordering::Relaxed);
        Ok((any, ipv6) != (now.any, now.ipv6))
    }

    /// Removes the network's bridge. Attachments to it keep their links, without a master, until
    /// they are detached. Removing what is not there is no error; says whether it was.
    ///
    /// # Errors
    /// See [`RemoveError`].
    pub fn remove_network(&self, network: &str) -> Result<bool, RemoveError> {
        let ifname = self.prefix.bridge(network);
        let mut batch = Batch::default();
        batch.push(format!("remove bridge {ifname}"), link::delete(&ifname));
        match self.socket().run(&batch) {
            Ok(()) => Ok(true),
            Err(error) if error.errno == Errno::NODEV => Ok(false),
            Err(source) => Err(RemoveError {
                network: network.to_owned(),
                source,
            }),
        }
    }
}

fn create(
    socket: &mut Socket,
    ifname: &IfName,
    config: &NetworkConfig,
    ipv6: bool,
) -> Result<Link, NetlinkError> {
    let mac = Mac::derive(&format!("bridge/{ifname}"));
    let mut batch = Batch::default();
    batch.push(
        format!("make bridge {ifname}"),
        link::add_bridge(ifname, mac, config.mtu),
    );
    batch.push(
        format!("mark bridge {ifname}"),
        link::set_bridge(ifname, &config.name, ipv6),
    );
    socket.run(&batch)?;
    let missing = || NetlinkError::new(format!("find bridge {ifname} just made"), Errno::NODEV);
    link::find(socket, ifname)?.ok_or_else(missing)
}

fn check_ours(bridge: &Link, ifname: &IfName, network: &str) -> Result<(), EnsureError> {
    let holder = match (bridge.kind.as_deref(), bridge.alias.as_deref()) {
        (Some("bridge"), None) => return Ok(()),
        (Some("bridge"), Some(alias)) if alias == network => return Ok(()),
        (Some("bridge"), Some(alias)) => format!("the bridge of network {alias:?}"),
        (kind, _) => format!("a link of kind {}", kind.unwrap_or("unknown")),
    };
    Err(EnsureError::Taken {
        network: network.to_owned(),
        ifname: ifname.clone(),
        holder,
    })
}

fn adjust(
    socket: &mut Socket,
    bridge: &Link,
    ifname: &IfName,
    config: &NetworkConfig,
    ipv6: bool,
) -> Result<(), NetlinkError> {
    let mut batch = Batch::default();
    if bridge.alias.is_none() {
        batch.push(
            format!("mark bridge {ifname}"),
            link::set_bridge(ifname, &config.name, ipv6),
        );
    }
    let mtu = config.mtu.filter(|mtu| *mtu != bridge.mtu);
    if !bridge.up || mtu.is_some() {
        batch.push(
            format!("bring bridge {ifname} up"),
            link::set_up(bridge.index, mtu),
        );
    }
    socket.run(&batch)
}

fn adjust_addresses(
    socket: &mut Socket,
    ifname: &IfName,
    config: &NetworkConfig,
) -> Result<(), NetlinkError> {
    let Some(bridge) = link::find(socket, ifname)? else {
        return Err(NetlinkError::new(
            format!("find bridge {ifname}"),
            Errno::NODEV,
        ));
    };
    let mut wanted = config.gateways();
    wanted.extend(config.gateway6.and_then(|_| link_local()));
    let present: Vec<IpNetwork> = address::list(socket)?
        .into_iter()
        .filter(|(index, _)| *index == bridge.index)
        .map(|(_, address)| address)
        .collect();
    let mut batch = Batch::default();
    for address in present
        .iter()
        .filter(|a| !wanted.contains(a) && !is_link_local(a))
    {
        batch.push(
            format!("take address {address} from bridge {ifname}"),
            address::remove(bridge.index, address),
        );
    }
    for address in wanted.iter().filter(|address| !present.contains(address)) {
        batch.push(
            format!("give bridge {ifname} the address {address}"),
            address::add(bridge.index, address),
        );
    }
    socket.run(&batch)?;
    match config.gateway6 {
        Some(_) => lead_back_to_loopback(socket, bridge.index, ifname),
        None => Ok(()),
    }
}

/// Ports published on `::1` are rewritten to addresses behind this bridge, under its own address;
/// the answers, rewritten back, are for `::1` again and have to be taken in here. What comes for
/// `::1` from a wire is dropped before that (`ip6_rcv_core`). The route ends with the bridge.
fn lead_back_to_loopback(
    socket: &mut Socket,
    index: u32,
    ifname: &IfName,
) -> Result<(), NetlinkError> {
    let mut batch = Batch::default();
    let what = format!("let {ifname} lead back to ::1");
    batch.push(what, address::add_loopback_route(index));
    match socket.run(&batch) {
        Err(error) if error.errno == Errno::EXIST => Ok(()),
        outcome => outcome,
    }
}

/// Every bridge's own link-local address: without one, the kernel asks for no neighbours when it
/// forwards IPv6.
fn link_local() -> Option<IpNetwork> {
    let address = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
    IpNetwork::new(address.into(), 64).ok()
}

fn is_link_local(address: &IpNetwork) -> bool {
    matches!(address, IpNetwork::V6(v6) if v6.ip().is_unicast_link_local())
}

/// Which bridged packets pass the rules for routed ones.
struct BridgedFiltering {
    any: bool,
    ipv6: bool,
}

/// What the host says; runs inside the daemon's namespace.
fn filtering() -> BridgedFiltering {
    let [ipv4, ipv6] = ["bridge-nf-call-iptables", "bridge-nf-call-ip6tables"].map(|name| {
        let path = Path::new("/proc/sys/net/bridge").join(name);
        read_setting(&path).as_deref() == Some("1")
    });
    BridgedFiltering {
        any: ipv4 || ipv6,
        ipv6,
    }
}

// What the kernel must do for a network; both run inside the daemon's namespace.

fn set(config: &NetworkConfig, path: &Path, wanted: &'static str) -> Result<(), EnsureError> {
    write_setting(path, wanted).map_err(|source| EnsureError::Sysctl {
        network: config.name.clone(),
        path: path.to_owned(),
        wanted,
        source,
    })
}

fn settings4(ifname: &IfName, config: &NetworkConfig) -> Result<(), EnsureError> {
    if config.gateway4.is_none() {
        return Ok(());
    }
    let v4 = Path::new("/proc/sys/net/ipv4");
    // Ports published on 127.0.0.1 are rewritten to addresses behind this bridge.
    set(
        config,
        &v4.join("conf").join(ifname.as_str()).join("route_localnet"),
        "1",
    )?;
    match config.outside {
        Outside::Internal => Ok(()),
        Outside::Nat | Outside::Routed => set(config, &v4.join("ip_forward"), "1"),
    }
}

fn settings6(ifname: &IfName, config: &NetworkConfig) -> Result<(), EnsureError> {
    let v6 = Path::new("/proc/sys/net/ipv6");
    if !v6.exists() {
        return Ok(());
    }
    let own = v6.join("conf").join(ifname.as_str());
    if config.gateway6.is_none() {
        return set(config, &own.join("disable_ipv6"), "1");
    }
    set(config, &own.join("disable_ipv6"), "0")?;
    set(config, &own.join("accept_ra"), "0")?;
    let forwarding = v6.join("conf/all/forwarding");
    if config.outside == Outside::Internal || read_setting(&forwarding).as_deref() == Some("1") {
        return Ok(());
    }
    keep_router_advertisements(&v6.join("conf"));
    set(config, &forwarding, "1")
}

/// Interfaces that take router advertisements while they are hosts go on taking them as routers.
/// One that cannot be told so is left alone: it is not ours.
fn keep_router_advertisements(conf: &Path) {
    let Ok(entries) = std::fs::read_dir(conf) else {
        return;
    };
    for entry in entries.flatten() {
        let path = entry.path().join("accept_ra");
        if read_setting(&path).as_deref() == Some("1")
            && let Err(error) = write_setting(&path, "2")
        {
            tracing::warn!(path = %path.display(), %error, "router advertisements may stop");
        }
    }
}

fn read_setting(path: &Path) -> Option<String> {
    std::fs::read_to_string(path)
        .ok()
        .map(|value| value.trim().to_owned())
}

/// Writes a setting unless it has the value already, so that read-only settings that are right do
/// no harm. A path that is missing means the kernel lacks the feature, and that is an error.
fn write_setting(path: &Path, wanted: &str) -> Result<(), std::io::Error> {
    if read_setting(path).as_deref() == Some(wanted) {
        return Ok(());
    }
    match std::fs::write(path, wanted) {
        // Never create a file by this name on something that is not procfs.
        Err(error) if error.kind() == ErrorKind::NotFound => Err(error),
        outcome => outcome,
    }
}
