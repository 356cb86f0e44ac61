//! Networks.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Body of a create request.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct NetworkCreate {
    /// Name.
    pub name: String,
    /// IPv4 subnet such as `10.80.0.0/24`; a free one when both subnets are absent.
    pub ipv4: Option<String>,
    /// IPv6 subnet such as `fd80::/64`; a free one when both subnets are absent.
    pub ipv6: Option<String>,
    /// Whether instances are kept from the world outside.
    pub isolated: bool,
    /// Largest packet.
    pub mtu: Option<u32>,
}

/// A network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Network {
    /// Name.
    pub name: String,
    /// IPv4 subnet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv4: Option<String>,
    /// IPv6 subnet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv6: Option<String>,
    /// The host's own addresses on it: gateway and name server of its instances.
    pub gateways: Vec<String>,
    /// Whether instances are kept from the world outside.
    pub isolated: bool,
    /// Largest packet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// The bridge on the host.
    pub bridge: String,
    /// Addresses held by instances.
    pub leases: Vec<Lease>,
    /// When it was made (RFC 3339).
    pub created_at: String,
}

/// An address held by an instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Lease {
    /// The address.
    pub address: String,
    /// The instance.
    pub instance: String,
}
