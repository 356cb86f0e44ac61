//! Networks: where instances have their addresses.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::{Ipv4Network, Ipv6Network};
use serde::{Deserialize, Serialize};

use crate::validate::{Invalid, Report};

/// How a network meets the world outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outside {
    /// Instances reach out behind the host's address.
    Nat,
    /// Instances reach each other and the host only.
    Isolated,
}

/// What a user asks of a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkSpec {
    /// IPv4 subnet; its first host address is the gateway.
    pub ipv4: Option<Ipv4Network>,
    /// IPv6 subnet; its first host address is the gateway.
    pub ipv6: Option<Ipv6Network>,
    /// How it meets the world outside.
    pub outside: Outside,
    /// Largest packet; the kernel's usual 1500 when `None`.
    #[serde(default)]
    pub mtu: Option<u32>,
}

impl NetworkSpec {
    /// Checks the subnets and the MTU.
    ///
    /// # Errors
    /// Every field that is wrong.
    pub fn validate(&self) -> Result<(), Invalid> {
        let mut report = Report::default();
        report.require(
            self.ipv4.is_some() || self.ipv6.is_some(),
            "ipv4",
            "name a subnet",
        );
        if let Some(subnet) = self.ipv4 {
            let size = (8..=29).contains(&subnet.prefix());
            report.require(
                size,
                "ipv4",
                "a prefix between /8 and /29 leaves room for instances",
            );
            let plain = !subnet.ip().is_multicast() && !subnet.ip().is_loopback();
            report.require(
                plain,
                "ipv4",
                "must be a unicast subnet outside 127.0.0.0/8",
            );
        }
        if let Some(subnet) = self.ipv6 {
            let size = (48..=120).contains(&subnet.prefix());
            report.require(
                size,
                "ipv6",
                "a prefix between /48 and /120 leaves room for instances",
            );
            let plain = !subnet.ip().is_multicast() && !subnet.ip().is_unicast_link_local();
            report.require(
                plain,
                "ipv6",
                "must be a unicast subnet that is not link-local",
            );
        }
        let mtu = self.mtu.is_none_or(|mtu| (1280..=9216).contains(&mtu));
        report.require(mtu, "mtu", "between 1280 (the least of IPv6) and 9216");
        report.finish()
    }

    /// The host's own IPv4 address on the network.
    #[must_use]
    pub fn gateway_v4(&self) -> Option<Ipv4Addr> {
        self.ipv4.and_then(|subnet| subnet.nth(1))
    }

    /// The host's own IPv6 address on the network.
    #[must_use]
    pub fn gateway_v6(&self) -> Option<Ipv6Addr> {
        self.ipv6
            .map(|subnet| Ipv6Addr::from(u128::from(subnet.network()) + 1))
    }
}

/// The addresses one instance holds on one network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressLease {
    /// The network.
    pub network: crate::Name,
    /// One address of each family that the network has.
    pub addresses: Vec<IpAddr>,
    /// Hardware address of the instance's interface.
    pub mac: [u8; 6],
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gateway_is_the_first_host() {
        let spec = NetworkSpec {
            ipv4: "10.77.0.0/24".parse().ok(),
            ipv6: "fd77::/64".parse().ok(),
            outside: Outside::Nat,
            mtu: None,
        };
        assert_eq!(spec.validate(), Ok(()));
        assert_eq!(spec.gateway_v4(), Some(Ipv4Addr::new(10, 77, 0, 1)));
        assert_eq!(spec.gateway_v6(), "fd77::1".parse().ok());
    }

    #[test]
    fn a_subnet_without_room_is_refused() {
        let spec = NetworkSpec {
            ipv4: "10.0.0.0/31".parse().ok(),
            ipv6: None,
            outside: Outside::Nat,
            mtu: Some(100),
        };
        let fields: Vec<_> = spec
            .validate()
            .unwrap_err()
            .fields
            .into_iter()
            .map(|error| error.field)
            .collect();
        assert_eq!(fields, ["ipv4", "mtu"]);
    }
}
