//! Whether programs of the host itself listen where an instance's port would be published.
//!
//! Publishing would take such a port from its program without a word: the kernel translates the
//! destination before it looks for a socket. The node asks before an instance is made. It is only a
//! courtesy: nothing keeps a program from taking the port later. Binding a socket to try would
//! answer for outgoing connections too, and could not tell the daemon's own name servers.

use std::net::{IpAddr, SocketAddr};

use crate::Transport;
use crate::netlink::{NetlinkError, Socket, listener, listener::Listener};

/// A port of the host that somebody asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostPort {
    /// The protocol.
    pub transport: Transport,
    /// Only this address, every one of its family if unspecified; every address if absent.
    pub address: Option<IpAddr>,
    /// The port.
    pub port: u16,
}

/// The first of `wanted` at which a program listens in the calling thread's network namespace, and
/// where it does. Sockets at `own` are the daemon's, and in nobody's way.
///
/// # Errors
/// The kernel does not tell which sockets there are.
pub fn in_use(
    wanted: &[HostPort],
    own: &[SocketAddr],
) -> Result<Option<(HostPort, SocketAddr)>, NetlinkError> {
    let mut socket = Socket::diagnosis()?;
    for transport in [Transport::Tcp, Transport::Udp] {
        if !wanted.iter().any(|port| port.transport == transport) {
            continue;
        }
        let listeners = listener::list(&mut socket, transport)?;
        for port in wanted.iter().filter(|port| port.transport == transport) {
            let in_the_way = |one: &&Listener| !own.contains(&one.address) && meet(port, one);
            if let Some(one) = listeners.iter().find(in_the_way) {
                return Ok(Some((*port, one.address)));
            }
        }
    }
    Ok(None)
}

/// Whether packets to the port are ones that the listener waits for.
fn meet(wanted: &HostPort, listener: &Listener) -> bool {
    if wanted.port != listener.address.port() {
        return false;
    }
    let here = listener.address.ip();
    match wanted.address.map(|address| address.to_canonical()) {
        None => true,
        Some(address) if address.is_ipv4() == here.is_ipv4() => {
            address.is_unspecified() || here.is_unspecified() || address == here
        }
        Some(address) => address.is_ipv4() && here.is_unspecified() && !listener.only_v6,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meets_those_whose_packets_it_would_take() {
        let cases = [
            // wanted at, listening at, only IPv6, whether they meet
            (None, "127.0.0.1:80", false, true),
            (None, "[::1]:80", true, true),
            (None, "127.0.0.1:81", false, false),
            (Some("0.0.0.0"), "10.0.0.1:80", false, true),
            (Some("0.0.0.0"), "[::1]:80", false, false),
            (Some("0.0.0.0"), "[::]:80", false, true),
            (Some("::"), "[::1]:80", false, true),
            (Some("::"), "0.0.0.0:80", false, false),
            (Some("127.0.0.1"), "127.0.0.1:80", false, true),
            (Some("127.0.0.1"), "127.0.0.2:80", false, false),
            (Some("127.0.0.1"), "0.0.0.0:80", false, true),
            (Some("127.0.0.1"), "[::]:80", false, true),
            (Some("127.0.0.1"), "[::]:80", true, false),
            (Some("127.0.0.1"), "[::1]:80", false, false),
            (Some("::1"), "[::]:80", true, true),
            (Some("::1"), "0.0.0.0:80", false, false),
            (Some("::ffff:127.0.0.1"), "127.0.0.1:80", false, true),
        ];
        for (address, listening, only_v6, expected) in cases {
            let wanted = HostPort {
                transport: Transport::Tcp,
                address: address.map(|text: &str| text.parse().unwrap()),
                port: 80,
            };
            let listener = Listener {
                address: listening.parse().unwrap(),
                only_v6,
            };
            assert_eq!(
                meet(&wanted, &listener),
                expected,
                "{wanted:?} {listener:?}"
            );
        }
    }
}
