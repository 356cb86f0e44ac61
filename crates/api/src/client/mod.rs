//! The typed client: one method for each route of [`crate::routes::ROUTES`].
//!
//! Called by the command line and by tests. It speaks HTTP/1.1 over a Unix socket or TLS, keeps
//! one connection for requests that follow each other, and opens another only while a stream
//! holds the first. It never prints, never retries what may have taken effect, and trusts nothing
//! a server sends: sizes of answers, lines and messages are limited.
//!
//! Whoever starts a container waits for this code, so nothing is done before it is needed: TLS
//! and its roots are loaded by the first `https` connection only.

mod address;
mod calls;
mod connect;
mod credentials;
mod error;
mod request;
mod socket;
mod streams;
mod tls;

pub use address::{Address, Config};
pub use calls::{EventsQuery, ExportFormat, LogsQuery};
pub use credentials::{Credential, Credentials};
pub use error::{ClientError, Result};
pub use request::Client;
pub use socket::{Session, SessionInput, SessionOutput, StreamEvent};
pub use streams::{ByteStream, Lines};

/// Most an answer that is one JSON document may take: fifty thousand instances.
pub const MAX_DOCUMENT: usize = 64 << 20;

/// Most an error answer may take.
pub const MAX_PROBLEM: usize = 256 << 10;

/// Most one line of a stream of documents may take.
pub const MAX_LINE: usize = 4 << 20;

/// Most one message of an attach or exec stream may take.
pub const MAX_MESSAGE: usize = 4 << 20;

#[cfg(test)]
mod tests;
