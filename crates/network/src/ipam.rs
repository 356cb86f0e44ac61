//! Which address next, and which subnet by default. Pure: no I/O, no clock, no state.
//!
//! # Contract with the caller
//! These functions only propose. The caller owns the leases: it reads them (with the store's
//! revision), asks [`next_free`], and writes the new lease **by compare-and-set against that
//! revision**, before the address is used anywhere. If the write conflicts it reads again and asks
//! again. A lease is deleted only after the attachment that used it is gone. Kept so, no address
//! is ever handed out twice, whatever crashes when. The last address handed out is stored with the
//! leases and passed as `after`, so that a freed address is not reused at once, while neighbours'
//! caches and open connections still remember its former owner.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};

use crate::name::stable_hash;

/// Most addresses of a subnet that are handed out; an IPv6 subnet has more than anyone can list.
const POOL_MAX: u128 = 1 << 20;

/// Why no address can be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IpamError {
    /// Every address is leased.
    #[error(
        "network {subnet} is full: all {count} addresses are leased; remove instances or make \
         a network with a larger subnet"
    )]
    Full {
        /// The subnet.
        subnet: IpNetwork,
        /// Addresses it has for instances.
        count: u128,
    },
    /// The requested address is leased.
    #[error("address {0} is already in use; ask for another, or for none in particular")]
    Taken(IpAddr),
    /// The requested address is not one for instances.
    #[error(
        "address {address} cannot be used in {subnet}: it is outside, or the subnet's own, \
         broadcast or gateway address"
    )]
    Unusable {
        /// The requested address.
        address: IpAddr,
        /// The subnet.
        subnet: IpNetwork,
    },
    /// Every candidate subnet overlaps one the host uses.
    #[error("every default subnet overlaps one this host uses; name one for the network yourself")]
    NoSubnet,
}

/// Proposes a free address of `subnet`, whose own address part is the gateway (`10.77.0.1/24`).
///
/// `taken` is the leased addresses, `after` the one handed out last: the search goes on from
/// there and wraps around, so the address that has been free longest tends to come first.
///
/// # Errors
/// [`IpamError::Full`].
pub fn next_free(
    subnet: &IpNetwork,
    taken: &BTreeSet<IpAddr>,
    after: Option<IpAddr>,
) -> Result<IpAddr, IpamError> {
    let pool = Pool::of(subnet);
    let start = after
        .and_then(|last| pool.offset(last))
        .map_or(pool.first, |last| last + 1);
    let round = (start..=pool.last).chain(pool.first..start.min(pool.last + 1));
    // One more candidate than there are obstacles always suffices, so this ends soon.
    round
        .map(|offset| pool.address(offset))
        .find(|address| *address != subnet.ip() && !taken.contains(address))
        .ok_or(IpamError::Full {
            subnet: *subnet,
            count: pool.count(subnet),
        })
}

/// Checks that `address` may be given to an instance of `subnet` and is free.
///
/// # Errors
/// [`IpamError::Unusable`] or [`IpamError::Taken`].
pub fn request(
    subnet: &IpNetwork,
    taken: &BTreeSet<IpAddr>,
    address: IpAddr,
) -> Result<IpAddr, IpamError> {
    let usable = subnet.contains(address)
        && address != subnet.ip()
        && address != subnet.network()
        && !matches!(subnet, IpNetwork::V4(v4) if v4.prefix() < 31 && address == v4.broadcast());
    if !usable {
        return Err(IpamError::Unusable {
            address,
            subnet: *subnet,
        });
    }
    if taken.contains(&address) {
        Err(IpamError::Taken(address))
    } else {
        Ok(address)
    }
}

/// Length of a default IPv4 subnet: room for 4,093 instances.
pub const DEFAULT_PREFIX4: u8 = 20;

/// The first default IPv4 subnet that overlaps nothing in `used`: `10.77.0.0/20`, then further
/// ones. The result carries the gateway's address.
///
/// # Errors
/// [`IpamError::NoSubnet`].
pub fn choose_subnet4(used: &[IpNetwork]) -> Result<Ipv4Network, IpamError> {
    // Each /20 begins at a multiple of 16 of its third byte.
    let thirds = || (0..=240).step_by(16);
    let ours = thirds().map(|third| Ipv4Addr::new(10, 77, third, 1));
    let more = thirds().map(|third| Ipv4Addr::new(172, 29, third, 1));
    let last = (96..=192)
        .step_by(16)
        .map(|third| Ipv4Addr::new(192, 168, third, 1));
    ours.chain(more)
        .chain(last)
        .filter_map(|gateway| Ipv4Network::new(gateway, DEFAULT_PREFIX4).ok())
        .find(|candidate| {
            !used
                .iter()
                .any(|used| overlap(&IpNetwork::V4(*candidate), used))
        })
        .ok_or(IpamError::NoSubnet)
}

/// A unique local IPv6 subnet (RFC 4193) for the network known by `seed` (the host's and the
/// network's ids), avoiding `used`. The result carries the gateway's address.
///
/// # Errors
/// [`IpamError::NoSubnet`].
pub fn choose_subnet6(seed: &str, used: &[IpNetwork]) -> Result<Ipv6Network, IpamError> {
    (0..64)
        .filter_map(|attempt| {
            let mut octets = [0; 16];
            let hash = stable_hash(format!("{seed}#{attempt}").as_bytes()).to_be_bytes();
            octets[0] = 0xfd;
            octets[1..8].copy_from_slice(&hash[..7]);
            octets[15] = 1;
            Ipv6Network::new(Ipv6Addr::from(octets), 64).ok()
        })
        .find(|candidate| {
            !used
                .iter()
                .any(|used| overlap(&IpNetwork::V6(*candidate), used))
        })
        .ok_or(IpamError::NoSubnet)
}

/// Whether two subnets share an address.
#[must_use]
pub fn overlap(a: &IpNetwork, b: &IpNetwork) -> bool {
    // Subnets are nested or disjoint, so one contains the other's first address.
    a.contains(b.network()) || b.contains(a.network())
}

/// The addresses for instances, as offsets from the subnet's first address.
struct Pool {
    base: IpAddr,
    first: u128,
    last: u128,
}

impl Pool {
    fn of(subnet: &IpNetwork) -> Self {
        let bits = if subnet.is_ipv4() { 32 } else { 128 };
        let host_bits = u32::from(bits - subnet.prefix());
        let size = 1_u128
            .checked_shl(host_bits)
            .map_or(u128::MAX, |size| size - 1);
        // In a /31 or /127 both addresses are hosts (RFC 3021, RFC 6164), as is a /32's only one.
        let (first, last) = match (subnet.is_ipv4(), size) {
            (_, 0 | 1) => (0, size),
            (true, _) => (1, size - 1),
            (false, _) => (1, size),
        };
        Self {
            base: subnet.network(),
            first,
            last: last.min(POOL_MAX),
        }
    }

    fn count(&self, subnet: &IpNetwork) -> u128 {
        let gateway = self.offset(subnet.ip()).is_some();
        self.last - self.first + 1 - u128::from(gateway)
    }

    fn address(&self, offset: u128) -> IpAddr {
        match self.base {
            IpAddr::V4(base) => {
                let offset = u32::try_from(offset).unwrap_or(u32::MAX);
                Ipv4Addr::from_bits(base.to_bits().wrapping_add(offset)).into()
            }
            IpAddr::V6(base) => Ipv6Addr::from_bits(base.to_bits().wrapping_add(offset)).into(),
        }
    }

    /// The address's offset, if it is one for instances (or the gateway).
    fn offset(&self, address: IpAddr) -> Option<u128> {
        let offset = match (self.base, address) {
            (IpAddr::V4(base), IpAddr::V4(address)) => {
                u128::from(address.to_bits().checked_sub(base.to_bits())?)
            }
            (IpAddr::V6(base), IpAddr::V6(address)) => {
                address.to_bits().checked_sub(base.to_bits())?
            }
            _ => return None,
        };
        (self.first..=self.last).contains(&offset).then_some(offset)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn subnet() -> impl Strategy<Value = IpNetwork> {
        let v4 = (any::<u32>(), 20_u8..=32).prop_map(|(bits, prefix)| {
            IpNetwork::new(Ipv4Addr::from_bits(bits).into(), prefix).unwrap()
        });
        let v6 = (any::<u128>(), 112_u8..=128).prop_map(|(bits, prefix)| {
            IpNetwork::new(Ipv6Addr::from_bits(bits).into(), prefix).unwrap()
        });
        prop_oneof![v4, v6]
    }

    proptest! {
        #[test]
        fn leases_are_distinct_usable_and_exhaustive(subnet in subnet(), steps in 1_usize..200) {
            let mut taken = BTreeSet::new();
            let mut after = None;
            for _ in 0..steps {
                match next_free(&subnet, &taken, after) {
                    Ok(address) => {
                        let small = subnet.prefix() >= if subnet.is_ipv4() { 31 } else { 127 };
                        prop_assert!(small || request(&subnet, &taken, address) == Ok(address));
                        prop_assert!(subnet.contains(address) && address != subnet.ip());
                        prop_assert!(taken.insert(address), "{} handed out twice", address);
                        after = Some(address);
                    }
                    Err(IpamError::Full { count, .. }) => {
                        prop_assert_eq!(taken.len() as u128, count);
                        break;
                    }
                    Err(other) => prop_assert!(false, "{}", other),
                }
            }
        }

        #[test]
        fn a_freed_address_is_not_reused_while_others_are_free(frees in 1_usize..100) {
            let subnet: IpNetwork = "10.77.0.1/24".parse().unwrap();
            let mut after = None;
            let mut seen = BTreeSet::new();
            // Lease and free at once: every address comes round once before any comes twice.
            for _ in 0..frees {
                let address = next_free(&subnet, &BTreeSet::new(), after).unwrap();
                prop_assert!(seen.insert(address));
                after = Some(address);
            }
        }

        #[test]
        fn chosen_subnets_overlap_nothing_in_use(used in prop::collection::vec(subnet(), 0..20)) {
            let chosen = IpNetwork::V4(choose_subnet4(&used).unwrap());
            prop_assert!(used.iter().all(|used| !overlap(&chosen, used)));
            let chosen = IpNetwork::V6(choose_subnet6("host/network", &used).unwrap());
            prop_assert!(used.iter().all(|used| !overlap(&chosen, used)));
        }
    }

    #[test]
    fn the_first_choices_are_the_documented_ones() {
        assert_eq!(choose_subnet4(&[]).unwrap().to_string(), "10.77.0.1/20");
        let used = ["10.77.0.128/25".parse().unwrap()];
        assert_eq!(choose_subnet4(&used).unwrap().to_string(), "10.77.16.1/20");
        assert_eq!(
            choose_subnet4(&["0.0.0.0/0".parse().unwrap()]),
            Err(IpamError::NoSubnet)
        );
        assert!(choose_subnet6("a", &[]).unwrap().ip().is_unique_local());
    }

    #[test]
    fn requests_are_checked() {
        let subnet: IpNetwork = "10.77.0.1/24".parse().unwrap();
        let taken = BTreeSet::from(["10.77.0.9".parse().unwrap()]);
        let ask = |address: &str| request(&subnet, &taken, address.parse().unwrap());
        assert!(ask("10.77.0.8").is_ok());
        assert!(matches!(ask("10.77.0.9"), Err(IpamError::Taken(_))));
        for bad in [
            "10.77.0.0",
            "10.77.0.1",
            "10.77.0.255",
            "10.78.0.2",
            "fd00::2",
        ] {
            assert!(matches!(ask(bad), Err(IpamError::Unusable { .. })), "{bad}");
        }
    }
}
