//! Limits of a server, all in one place. The daemon makes one; the usual values serve.

use std::time::Duration;

/// Limits on what peers may send, hold and wait for.
#[derive(Debug, Clone)]
pub struct Config {
    /// Most bytes of a JSON body.
    pub json_body_bytes: usize,
    /// Most bytes of a request line and its headers together.
    pub header_bytes: usize,
    /// Most headers of a request.
    pub headers: usize,
    /// Most bytes of one WebSocket message.
    pub message_bytes: usize,
    /// Longest a peer may take to send a request's headers; idle connections end after it too.
    pub header_timeout: Duration,
    /// Longest a peer may take to send a JSON body, and to send an attach's first message.
    pub body_timeout: Duration,
    /// Longest a streamed body may send nothing.
    pub stream_idle_timeout: Duration,
    /// Longest a TLS handshake may take.
    pub handshake_timeout: Duration,
    /// Time between two pings on a WebSocket; three without any sign of life end it.
    pub ping_interval: Duration,
    /// Most connections of one listener at a time; more wait in the kernel's backlog.
    pub connections: usize,
    /// Most connections of one TCP address (IPv6: one /64) at a time; more are closed at once.
    pub connections_per_address: usize,
    /// Failed authentications one address may make at once before it has to wait.
    pub auth_failures: u32,
    /// Time in which one failed authentication is forgiven.
    pub auth_forgive: Duration,
    /// Longest that requests in progress may go on once the server is told to stop.
    pub drain: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            json_body_bytes: 1 << 20,
            header_bytes: 32 << 10,
            headers: 64,
            message_bytes: 1 << 20,
            header_timeout: Duration::from_secs(30),
            body_timeout: Duration::from_secs(30),
            stream_idle_timeout: Duration::from_secs(600),
            handshake_timeout: Duration::from_secs(10),
            ping_interval: Duration::from_secs(30),
            connections: 1024,
            connections_per_address: 128,
            auth_failures: 10,
            auth_forgive: Duration::from_secs(6),
            drain: Duration::from_secs(10),
        }
    }
}
