//! The names of one network, replaced as a whole.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, PoisonError, RwLock};

use ipnetwork::IpNetwork;

use super::wire::{Code, IN, Query, Reply, encode_name, kind};

/// How long clients may remember our answers, in seconds: short, since instances move.
const TTL_S: u32 = 5;

/// Most addresses in one answer: more would not fit the smallest UDP answer anyway.
const ADDRESSES_MAX: usize = 25;

/// A name that cannot be served.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no domain name: write labels of 1 to 63 letters, digits, '-' or '_', with dots between"
)]
pub struct ZoneError(String);

/// Handle of a network's names. Clones share them; a running server sees each change at once.
#[derive(Debug, Clone)]
pub struct Zone {
    domain: Arc<str>,
    records: Arc<RwLock<Arc<Records>>>,
}

/// One state of the names.
#[derive(Debug, Default)]
struct Records {
    /// By name below the domain, lower case.
    addresses: BTreeMap<String, Vec<IpAddr>>,
    /// Names that only exist because longer ones end in them.
    branches: BTreeSet<String>,
    names: BTreeMap<IpAddr, String>,
}

impl Zone {
    /// A zone without names. Each of its names is served both bare and below `domain`.
    ///
    /// # Errors
    /// [`ZoneError`] if `domain` is no domain name.
    pub fn new(domain: &str) -> Result<Self, ZoneError> {
        let domain = domain.trim_end_matches('.').to_ascii_lowercase();
        check(&domain)?;
        Ok(Self {
            domain: domain.into(),
            records: Arc::default(),
        })
    }

    /// The domain, lower case, without a trailing dot.
    #[must_use]
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// Replaces all names at once. Addresses of a name given twice are joined; of several names of
    /// an address, the first is its reverse.
    ///
    /// # Errors
    /// [`ZoneError`] for a name that is none; then nothing is changed.
    pub fn replace<N: AsRef<str>>(
        &self,
        names: impl IntoIterator<Item = (N, Vec<IpAddr>)>,
    ) -> Result<(), ZoneError> {
        let mut records = Records::default();
        for (name, addresses) in names {
            let name = name.as_ref().to_ascii_lowercase();
            check(&name)?;
            for address in &addresses {
                records
                    .names
                    .entry(*address)
                    .or_insert_with(|| name.clone());
            }
            let mut branch = name.as_str();
            while let Some((_, rest)) = branch.split_once('.') {
                records.branches.insert(rest.to_owned());
                branch = rest;
            }
            records.addresses.entry(name).or_default().extend(addresses);
        }
        *self.records.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(records);
        Ok(())
    }

    /// Answers `query` if it is about a name or address of this network; `subnets` says which
    /// addresses are.
    pub(crate) fn answer(&self, query: &Query, subnets: &[IpNetwork]) -> Option<Vec<u8>> {
        if query.class != IN {
            return Some(query.error(Code::Refused));
        }
        let labels: Option<Vec<&str>> = query
            .labels
            .iter()
            .map(|label| std::str::from_utf8(label).ok())
            .collect();
        let labels = labels?;
        if let Some(address) = reverse(&labels) {
            let ours = subnets.iter().any(|subnet| subnet.contains(address));
            return ours.then(|| self.reverse_answer(query, address));
        }
        if labels.last() == Some(&"localhost") {
            let loopback = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
            return Some(self.addresses_answer(query, &loopback));
        }
        let full = labels.join(".");
        let records = self.snapshot();
        let relative = match full.strip_suffix(&*self.domain) {
            Some("") => return Some(self.negative(query, Code::Ok)),
            Some(below) if below.ends_with('.') => &below[..below.len() - 1],
            _ if records.addresses.contains_key(&full) => full.as_str(),
            // A bare name is always meant for this network: no public one has a single label.
            _ if labels.len() == 1 => full.as_str(),
            _ => return None,
        };
        Some(match records.addresses.get(relative) {
            Some(addresses) => self.addresses_answer(query, addresses),
            None if records.branches.contains(relative) => self.negative(query, Code::Ok),
            None => self.negative(query, Code::NoName),
        })
    }

    fn snapshot(&self) -> Arc<Records> {
        Arc::clone(&self.records.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn addresses_answer(&self, query: &Query, addresses: &[IpAddr]) -> Vec<u8> {
        let any = query.kind == kind::ANY;
        let mut reply = Reply::new(query, Code::Ok, true);
        let mut count = 0;
        for address in addresses {
            let (kind, data) = match address {
                IpAddr::V4(v4) => (kind::A, v4.octets().to_vec()),
                IpAddr::V6(v6) => (kind::AAAA, v6.octets().to_vec()),
            };
            if (any || query.kind == kind) && count < ADDRESSES_MAX {
                reply.answer(kind, TTL_S, &data);
                count += 1;
            }
        }
        if count == 0 {
            self.negative(query, Code::Ok)
        } else {
            reply.finish()
        }
    }

    fn reverse_answer(&self, query: &Query, address: IpAddr) -> Vec<u8> {
        let records = self.snapshot();
        let Some(name) = records.names.get(&address) else {
            return self.negative(query, Code::NoName);
        };
        let target = encode_name(&format!("{name}.{}", self.domain));
        match target.filter(|_| matches!(query.kind, kind::PTR | kind::ANY)) {
            Some(target) => {
                let mut reply = Reply::new(query, Code::Ok, true);
                reply.answer(kind::PTR, TTL_S, &target);
                reply.finish()
            }
            None => self.negative(query, Code::Ok),
        }
    }

    /// "Nothing of that type" ([`Code::Ok`]) or "no such name", to be forgotten soon.
    fn negative(&self, query: &Query, code: Code) -> Vec<u8> {
        let mut reply = Reply::new(query, code, true);
        if let Some(zone) = encode_name(&self.domain) {
            reply.negative(&zone, TTL_S);
        }
        reply.finish()
    }
}

fn check(name: &str) -> Result<(), ZoneError> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    // Room for the domain below which the name is served.
    let good = name.len() <= 190 && name.split('.').all(|label| label.bytes().all(plain));
    if good && encode_name(name).is_some() {
        Ok(())
    } else {
        Err(ZoneError(name.chars().take(64).collect()))
    }
}

/// The address a reverse name (`4.3.2.1.in-addr.arpa`, `….ip6.arpa`) is about.
fn reverse(labels: &[&str]) -> Option<IpAddr> {
    match labels {
        [parts @ .., "in-addr", "arpa"] if parts.len() == 4 => {
            let mut octets = [0; 4];
            for (octet, part) in octets.iter_mut().rev().zip(parts) {
                *octet = part.parse().ok()?;
            }
            Some(Ipv4Addr::from(octets).into())
        }
        [parts @ .., "ip6", "arpa"] if parts.len() == 32 => {
            let mut bits = 0;
            for part in parts.iter().rev() {
                if part.len() != 1 {
                    return None;
                }
                bits = bits << 4 | u128::from_str_radix(part, 16).ok()?;
            }
            Some(Ipv6Addr::from_bits(bits).into())
        }
        _ => None,
    }
}
