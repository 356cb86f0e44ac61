//! Names of instances, and a forwarder for all other names.
//!
//! One [`Server`] serves every network of the host: it listens on each network's gateway
//! addresses, answers names of that network from its [`Zone`], and passes the rest on to the
//! host's resolvers with a small cache. A network's names are known within it only, and nobody
//! else is answered at all.
//!
//! The daemon's composition root starts it; the node calls [`Zone::replace`] when instances come
//! and go. It never reads the store and never calls back. All packets are hostile: `wire` reads
//! them with limits, work in flight is bounded per client and in all, and nothing a client sends
//! is passed on but the question itself. Source: RFC 1034, 1035, 2308, 6761, 6891, 7766, 8482.

mod cache;
mod forward;
mod listen;
mod server;
mod upstream;
pub(crate) mod wire;
mod zone;

pub use server::{Config, ListenerState, Served, Server};
pub use upstream::{Upstreams, parse_resolv_conf};
pub use zone::{Zone, ZoneError};
