//! HTTP in front of the service trait: sockets, TLS, who may call, limits, streams.
//!
//! The daemon makes a [`Server`] over its [`api::service::Service`] and gives it [`Listener`]s.
//! What is served is [`api::routes::ROUTES`] and nothing else: paths, query parameters, kinds of
//! body and answer, and the scope a caller needs all come from that table; this crate adds one
//! small function a route that calls the service.
//!
//! ```text
//! Listener ─ accept ─ connection ─ Router (404, 405) ─ Gate (401, 403) ─ Query, body (400, 413, 415)
//!                                                                             │
//!            log line, counters ◄─ response ◄─ Reply | Problem ◄─ handler ◄───┘ ─► Service
//! ```
//!
//! Whoever opens the Unix socket is an administrator; the file's mode decides who that is. TCP is
//! always TLS and always needs a token. Everything a peer sends is bounded before it is read:
//! headers, bodies, messages, connections, time.
//!
//! This crate knows nothing of what a route does, keeps no state besides counters, and never
//! sees a token's hash.

#![forbid(unsafe_code)]

mod auth;
mod body;
mod call;
mod config;
mod connection;
#[doc(hidden)]
pub mod fuzzing;
mod handlers;
mod json;
mod listen;
mod metrics;
mod query;
mod reply;
mod router;
mod serve;
mod socket;
pub mod systemd;
#[cfg(feature = "testing")]
pub mod testing;

pub use config::Config;
pub use listen::{Identity, IdentityError, ListenError, Listener};
pub use serve::Server;
/// What tells a server to stop.
pub use tokio_util::sync::CancellationToken;
