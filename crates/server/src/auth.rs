//! Who may call: the peer of a connection, its scope, and how often it may guess.
//!
//! The lookup of a token is the service's; this module decides whether there is one to look up,
//! and slows down an address that keeps failing. It never logs a token.

use std::{
    collections::HashMap,
    fmt,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::Mutex,
    time::{Duration, Instant},
};

use api::{ErrorCode, Problem, service::Service};
use hyper::{HeaderMap, header};
use model::token::Scope;

/// Longest token looked up.
const MAX_TOKEN: usize = 512;
/// Most addresses remembered; beyond it those with the least to remember are forgotten.
const MAX_ADDRESSES: usize = 4096;

/// The other end of a connection.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Peer {
    /// Opened the Unix socket (`SO_PEERCRED`).
    Unix {
        /// User id of the process that connected.
        uid: u32,
        /// Its process id, when known.
        pid: Option<i32>,
    },
    /// Came over TCP, inside TLS.
    Tcp(SocketAddr),
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix {
                uid,
                pid: Some(pid),
            } => write!(f, "uid={uid} pid={pid}"),
            Self::Unix { uid, pid: None } => write!(f, "uid={uid}"),
            Self::Tcp(address) => write!(f, "{address}"),
        }
    }
}

/// What counts as one address: a whole /64 of IPv6, since that is what one host usually has.
pub(crate) fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & (u128::MAX << 64))),
        v4 => v4,
    }
}

/// Decides who may pass.
pub(crate) struct Gate {
    failures: Mutex<HashMap<IpAddr, Failures>>,
    most: f64,
    forgive: Duration,
}

/// Failed attempts of one address, leaking away with time.
struct Failures {
    count: f64,
    at: Instant,
}

impl Gate {
    /// One that lets an address fail `most` times at once, and once each `forgive` after that.
    pub(crate) fn new(most: u32, forgive: Duration) -> Self {
        Self {
            failures: Mutex::default(),
            most: f64::from(most.max(1)),
            forgive,
        }
    }

    /// Whether a peer may call a route that needs `scope`, and with which scope it does.
    ///
    /// # Errors
    /// 401 without a valid token, 403 when the token's scope is less, 429 after many failures.
    pub(crate) async fn check(
        &self,
        service: &dyn Service,
        peer: Peer,
        headers: &HeaderMap,
        scope: Option<Scope>,
    ) -> Result<Option<Scope>, Problem> {
        let address = match peer {
            Peer::Unix { .. } => return Ok(Some(Scope::Admin)),
            Peer::Tcp(address) => network_of(address.ip()),
        };
        let Some(needed) = scope else {
            return Ok(None);
        };
        if let Some(wait) = self.blocked(address, Instant::now()) {
            return Err(too_many(wait));
        }
        let Some(secret) = bearer(headers)? else {
            return Err(Problem::new(ErrorCode::Unauthenticated, "a token is needed over TCP")
                .hint("send Authorization: Bearer <token>; on the host, `berth token create` makes one"));
        };
        let Some(has) = service.authenticate(secret).await? else {
            self.failed(address, Instant::now());
            return Err(Problem::new(
                ErrorCode::Unauthenticated,
                "the token is not valid: it is unknown, revoked or too old",
            )
            .hint("on the host, `berth token create` makes a new one"));
        };
        if has < needed {
            return Err(Problem::new(
                ErrorCode::Denied,
                format!(
                    "the token's scope is {}; this needs {}",
                    has.as_str(),
                    needed.as_str()
                ),
            )
            .hint(format!(
                "use a token made with `berth token create --scope {}`",
                needed.as_str()
            )));
        }
        Ok(Some(has))
    }

    /// How long an address has to wait before it may try again.
    fn blocked(&self, address: IpAddr, now: Instant) -> Option<Duration> {
        let failures = self.lock();
        // Blocked while one more failure would be too many.
        let over = self.left(failures.get(&address)?, now) - (self.most - 1.0);
        (over > 0.0).then(|| self.forgive.mul_f64(over))
    }

    fn failed(&self, address: IpAddr, now: Instant) {
        let mut failures = self.lock();
        if failures.len() >= MAX_ADDRESSES {
            failures.retain(|_, entry| self.left(entry, now) > 0.0);
        }
        if failures.len() >= MAX_ADDRESSES {
            let least = failures
                .iter()
                .min_by(|a, b| self.left(a.1, now).total_cmp(&self.left(b.1, now)))
                .map(|(address, _)| *address);
            failures.retain(|address, _| Some(*address) != least);
        }
        let count = failures
            .get(&address)
            .map_or(0.0, |entry| self.left(entry, now));
        failures.insert(
            address,
            Failures {
                count: count + 1.0,
                at: now,
            },
        );
    }

    /// Failures not yet forgiven.
    fn left(&self, entry: &Failures, now: Instant) -> f64 {
        let forgiven =
            now.duration_since(entry.at).as_secs_f64() / self.forgive.as_secs_f64().max(1e-9);
        (entry.count - forgiven).max(0.0)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<IpAddr, Failures>> {
        self.failures
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// The bearer token of a request (RFC 6750 §2.1).
fn bearer(headers: &HeaderMap) -> Result<Option<&str>, Problem> {
    let Some(value) = headers.get(header::AUTHORIZATION) else {
        return Ok(None);
    };
    value
        .to_str()
        .ok()
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, secret)| {
            scheme.eq_ignore_ascii_case("bearer")
                && (1..=MAX_TOKEN).contains(&secret.len())
                && secret.bytes().all(|byte| byte.is_ascii_graphic())
        })
        .map(|(_, secret)| Some(secret))
        .ok_or_else(|| {
            Problem::new(
                ErrorCode::Unauthenticated,
                "the Authorization header is not of the form `Bearer <token>`",
            )
        })
}

fn too_many(wait: Duration) -> Problem {
    Problem::new(
        ErrorCode::RateLimited,
        "too many failed authentications from this address",
    )
    .hint(format!("try again in {} s", wait.as_secs() + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_fails_waits_and_is_forgiven() {
        let gate = Gate::new(3, Duration::from_secs(10));
        let (bad, other) = ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
        let start = Instant::now();
        for _ in 0..3 {
            assert_eq!(gate.blocked(bad, start), None);
            gate.failed(bad, start);
        }
        assert_eq!(gate.blocked(bad, start), Some(Duration::from_secs(10)));
        assert_eq!(gate.blocked(other, start), None);
        assert_eq!(gate.blocked(bad, start + Duration::from_secs(11)), None);
        gate.failed(bad, start + Duration::from_secs(11));
        assert!(gate.blocked(bad, start + Duration::from_secs(11)).is_some());
    }

    #[test]
    fn memory_is_bounded_and_the_worst_are_remembered() {
        let gate = Gate::new(2, Duration::from_secs(1000));
        let now = Instant::now();
        let bad: IpAddr = "192.0.2.1".parse().unwrap();
        gate.failed(bad, now);
        gate.failed(bad, now);
        for n in 0..5000_u32 {
            gate.failed(IpAddr::V4((0x0a00_0000 + n).into()), now);
        }
        assert!(gate.lock().len() <= MAX_ADDRESSES);
        assert!(gate.blocked(bad, now).is_some());
    }

    #[test]
    fn one_host_of_ipv6_is_its_64() {
        let of = |text: &str| network_of(text.parse().unwrap()).to_string();
        assert_eq!(of("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::");
        assert_eq!(of("::ffff:192.0.2.1"), "192.0.2.1");
    }

    #[test]
    fn only_bearer_tokens_are_taken() {
        let with = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, value.parse().unwrap());
            bearer(&headers).map(|secret| secret.map(str::to_owned))
        };
        assert_eq!(with("bearer abc").unwrap().as_deref(), Some("abc"));
        assert_eq!(bearer(&HeaderMap::new()).unwrap(), None);
        for bad in ["Basic abc", "Bearer", "Bearer ", "Bearer a b"] {
            assert_eq!(with(bad).unwrap_err().status, 401, "{bad}");
        }
    }
}
