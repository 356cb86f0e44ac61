//! Which resolvers to ask.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Most resolvers that are asked for one name.
const UPSTREAMS_MAX: usize = 3;
/// Longest `resolv.conf` that is read.
const FILE_MAX: usize = 64 * 1024;
/// How old the list may be before the file is read again.
const REREAD: Duration = Duration::from_secs(5);

/// Where names that are not ours are asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Upstreams {
    /// These resolvers, in order.
    Fixed(Vec<SocketAddr>),
    /// The name servers of this file, as `/etc/resolv.conf`; changes are noticed.
    File(PathBuf),
}

/// The name servers a `resolv.conf` names, at most three, as the C library reads them.
#[must_use]
pub fn parse_resolv_conf(text: &str) -> Vec<IpAddr> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let server = words
                .next()
                .filter(|word| *word == "nameserver")
                .and(words.next())?;
            // A link-local server's interface (fe80::1%eth0) cannot be kept here; leave it out.
            server.parse().ok()
        })
        .take(UPSTREAMS_MAX)
        .collect()
}

/// [`Upstreams`], read.
#[derive(Debug)]
pub(super) struct Source {
    upstreams: Upstreams,
    read: Mutex<Option<(Instant, Vec<SocketAddr>)>>,
}

impl Source {
    pub(super) fn new(upstreams: Upstreams) -> Self {
        Self {
            upstreams,
            read: Mutex::new(None),
        }
    }

    /// The resolvers to ask now.
    pub(super) fn list(&self, now: Instant) -> Vec<SocketAddr> {
        let path = match &self.upstreams {
            Upstreams::Fixed(fixed) => return fixed.iter().copied().take(UPSTREAMS_MAX).collect(),
            Upstreams::File(path) => path,
        };
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, list)) = &*read
            && now.saturating_duration_since(*at) < REREAD
        {
            return list.clone();
        }
        // A small local file, read at most every few seconds: not worth a thread of its own.
        let text = std::fs::read(path).unwrap_or_default();
        let text = String::from_utf8_lossy(&text[..text.len().min(FILE_MAX)]);
        let list: Vec<_> = parse_resolv_conf(&text)
            .into_iter()
            .map(|ip| SocketAddr::new(ip, 53))
            .collect();
        *read = Some((now, list.clone()));
        list
    }
}
