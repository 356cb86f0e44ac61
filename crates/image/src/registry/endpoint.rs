//! Endpoints: the URL behind a registry's name.

use crate::reference::{DEFAULT_REGISTRY, Reference};

use super::RegistryConfig;

/// Where Docker Hub's API is.
const DOCKER_HUB_API: &str = "registry-1.docker.io";

/// One place that may serve a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Endpoint {
    /// `host[:port]` to connect to.
    pub(super) authority: String,
    /// The name that credentials are filed under.
    pub(super) name: String,
    /// Prefix of repositories, empty or ending in a slash.
    prefix: String,
    /// May be spoken to without TLS.
    pub(super) plain_allowed: bool,
    /// On this machine: no proxy.
    pub(super) loopback: bool,
}

impl Endpoint {
    fn new(location: &str, insecure: &[String]) -> Self {
        let (name, prefix) = match location.split_once('/') {
            Some((name, prefix)) => (name, format!("{}/", prefix.trim_matches('/'))),
            None => (location, String::new()),
        };
        let loopback = is_loopback(name);
        Self {
            authority: if name == DEFAULT_REGISTRY {
                DOCKER_HUB_API
            } else {
                name
            }
            .to_owned(),
            name: name.to_owned(),
            prefix,
            plain_allowed: loopback || insecure.iter().any(|allowed| allowed == name),
            loopback,
        }
    }

    /// The repository's path at this endpoint.
    pub(super) fn repository(&self, repository: &str) -> String {
        format!("{}{repository}", self.prefix)
    }
}

/// The places to pull a reference from, in order.
pub(super) fn for_pull(reference: &Reference, config: &RegistryConfig) -> Vec<Endpoint> {
    let mirrors = config
        .mirrors
        .iter()
        .filter(|mirror| mirror.registry == reference.registry());
    let locations = mirrors
        .map(|mirror| mirror.location.as_str())
        .chain([reference.registry()]);
    locations
        .map(|location| Endpoint::new(location, &config.insecure))
        .collect()
}

/// The place to push a reference to.
pub(super) fn for_push(reference: &Reference, config: &RegistryConfig) -> Endpoint {
    of_registry(reference.registry(), config)
}

/// A registry itself, whatever stands in for it at pulls.
pub(super) fn of_registry(registry: &str, config: &RegistryConfig) -> Endpoint {
    Endpoint::new(registry, &config.insecure)
}

/// Whether a `host[:port]` is this machine.
fn is_loopback(authority: &str) -> bool {
    let host = match authority.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or(rest),
        None => authority.split(':').next().unwrap_or(authority),
    };
    host == "localhost"
        || host
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::Mirror;

    #[test]
    fn mirrors_come_first_and_only_loopback_and_named_hosts_may_be_plain() {
        let config = RegistryConfig {
            mirrors: vec![Mirror {
                registry: "docker.io".into(),
                location: "m.example:5000/hub/".into(),
            }],
            insecure: vec!["m.example:5000".into()],
            ..RegistryConfig::default()
        };
        let places = for_pull(&"nginx".parse().unwrap(), &config);
        assert_eq!(places.len(), 2);
        assert!(places[0].plain_allowed && !places[1].plain_allowed);
        assert_eq!(places[0].repository("library/nginx"), "hub/library/nginx");
        assert_eq!(places[1].authority, DOCKER_HUB_API);
        for (name, expected) in [
            ("localhost:5000", true),
            ("[::1]:5", true),
            ("127.9.9.9", true),
            ("10.0.0.1:5", false),
            ("localhost.example", false),
        ] {
            assert_eq!(is_loopback(name), expected, "{name}");
        }
    }
}
