//! The guest's network interfaces, set up before its root is entered.
//!
//! Done here and not by the image's own service: it works with every image, and a guest is on the
//! network before its init runs.

use std::{
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
};

use agent::config::Interface;

use super::{BootError, netlink::Netlink};

/// Sets up the loopback interface and those of the configuration.
pub fn bring_up(interfaces: &[Interface]) -> Result<(), BootError> {
    let failed = |interface: &str, action: &str| {
        let (interface, action) = (interface.to_owned(), action.to_owned());
        move |source| BootError::Network {
            interface,
            action,
            source,
        }
    };
    let netlink = Netlink::open().map_err(failed("lo", "open netlink"))?;
    netlink
        .link_up(
            index(Path::new("/sys/class/net/lo")).map_err(failed("lo", "find it"))?,
            None,
        )
        .map_err(failed("lo", "set it up"))?;
    for interface in interfaces {
        let mac = interface.mac.as_str();
        let path = find(mac).ok_or_else(|| BootError::Absent {
            what: "network interface",
            name: mac.to_owned(),
            seconds: 0,
        })?;
        let index = index(&path).map_err(failed(mac, "find it"))?;
        netlink
            .link_up(index, interface.mtu)
            .map_err(failed(mac, "set it up"))?;
        for text in &interface.addresses {
            let action = format!("add the address {text}");
            let (address, prefix) = parse(text).map_err(failed(mac, &action))?;
            netlink
                .add_address(index, address, prefix)
                .map_err(failed(mac, &action))?;
        }
        for gateway in &interface.gateways {
            let action = format!("route through {gateway}");
            netlink
                .add_default_route(index, *gateway)
                .map_err(failed(mac, &action))?;
        }
    }
    Ok(())
}

/// The directory of the interface with this hardware address.
fn find(mac: &str) -> Option<PathBuf> {
    let entries = fs::read_dir("/sys/class/net").ok()?;
    entries.flatten().map(|entry| entry.path()).find(|path| {
        let address = fs::read_to_string(path.join("address")).unwrap_or_default();
        address.trim().eq_ignore_ascii_case(mac)
    })
}

fn index(path: &Path) -> io::Result<u32> {
    let text = fs::read_to_string(path.join("ifindex"))?;
    let bad = |_| io::ErrorKind::InvalidData.into();
    text.trim().parse().map_err(bad)
}

/// Reads `address/prefix`.
fn parse(text: &str) -> io::Result<(IpAddr, u8)> {
    let bad = || io::Error::from(io::ErrorKind::InvalidInput);
    let (address, prefix) = text.split_once('/').ok_or_else(bad)?;
    let address: IpAddr = address.parse().map_err(|_| bad())?;
    let prefix: u8 = prefix.parse().map_err(|_| bad())?;
    let most = if address.is_ipv4() { 32 } else { 128 };
    if prefix > most {
        return Err(bad());
    }
    Ok((address, prefix))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn an_address_needs_a_prefix_that_fits() {
        assert_eq!(
            parse("10.0.0.2/24").unwrap(),
            ("10.0.0.2".parse().unwrap(), 24)
        );
        assert_eq!(parse("fd00::2/64").unwrap().1, 64);
        for bad in [
            "10.0.0.2",
            "10.0.0.2/33",
            "fd00::2/129",
            "host/24",
            "/24",
            "1.2.3.4/-1",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
