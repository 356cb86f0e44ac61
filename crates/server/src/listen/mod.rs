//! Where connections come from: a Unix socket of our own, one inherited from systemd, or TCP with
//! TLS. The daemon opens them before it says that it is ready; [`crate::Server::run`] accepts.

mod identity;
mod inherited;
mod unix;

use std::{
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio_rustls::TlsAcceptor;

use crate::auth::Peer;
pub use identity::{Identity, IdentityError};

/// Why nothing listens at an address.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Another process serves the socket.
    #[error("another daemon serves {path}: stop it, or give this one another --run-dir")]
    Live {
        /// The socket.
        path: PathBuf,
    },
    /// Something that is no socket has its place.
    #[error("{path} is there and is no socket: move it away, or use another --run-dir")]
    NotASocket {
        /// What is in the way.
        path: PathBuf,
    },
    /// The path does not fit into an address.
    #[error("{path} is too long for a socket (at most 107 bytes): use a shorter --run-dir")]
    TooLong {
        /// The path.
        path: PathBuf,
    },
    /// The kernel refused something about a socket.
    #[error("cannot {what} {address}")]
    Socket {
        /// What was tried.
        what: &'static str,
        /// Path or address.
        address: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// systemd handed over a socket that cannot be used.
    #[error("socket {index} of LISTEN_FDS cannot be used: {why}")]
    Inherited {
        /// Its place among them.
        index: usize,
        /// What is wrong.
        why: String,
    },
}

/// Something that accepts connections.
pub struct Listener {
    kind: Kind,
    address: String,
    /// The socket's file, removed on drop when this process made it.
    _made: Option<unix::Made>,
}

enum Kind {
    /// A Unix socket.
    Unix(UnixListener),
    /// TCP with TLS.
    Tls(TcpListener, TlsAcceptor),
}

impl Listener {
    /// Listens on a Unix socket of mode 0660 in a directory that exists, owned by `group` when
    /// the host has that group. A socket left behind by a daemon that died is replaced. Needs a
    /// tokio runtime.
    ///
    /// # Errors
    /// [`ListenError::Live`] when another process serves it, and as the variants say.
    pub fn unix(path: &Path, group: &str) -> Result<Self, ListenError> {
        let (listener, made) = unix::bind(path, group)?;
        Ok(Self {
            kind: Kind::Unix(listener),
            address: format!("unix://{}", path.display()),
            _made: Some(made),
        })
    }

    /// Listens on TCP with TLS 1.2 and 1.3. Needs a tokio runtime.
    ///
    /// # Errors
    /// [`ListenError::Socket`] when the address cannot be had.
    pub async fn tls(address: SocketAddr, identity: &Identity) -> Result<Self, ListenError> {
        let failed = |what| {
            move |source| ListenError::Socket {
                what,
                address: address.to_string(),
                source,
            }
        };
        let listener = TcpListener::bind(address)
            .await
            .map_err(failed("listen on"))?;
        Self::from_tcp(listener, identity).map_err(failed("read the address of"))
    }

    /// The sockets systemd opened for this process (`sd_listen_fds(3)`): Unix ones, and TCP ones
    /// when there is an identity to serve them with. Empty without any. Must be called once,
    /// early, and needs a tokio runtime.
    ///
    /// # Errors
    /// [`ListenError::Inherited`] for a socket that is neither.
    pub fn inherited(identity: Option<&Identity>) -> Result<Vec<Self>, ListenError> {
        inherited::take(identity)
    }

    fn from_tcp(listener: TcpListener, identity: &Identity) -> io::Result<Self> {
        let address = listener.local_addr()?;
        Ok(Self {
            kind: Kind::Tls(listener, identity.acceptor()),
            address: format!("https://{address}"),
            _made: None,
        })
    }

    /// Where it listens, as a client's `--host` takes it: `unix:///…` or `https://…`.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    pub(crate) async fn accept(&self) -> io::Result<Accepted> {
        match &self.kind {
            Kind::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                let credentials = stream.peer_cred()?;
                let peer = Peer::Unix {
                    uid: credentials.uid(),
                    pid: credentials.pid(),
                };
                Ok(Accepted::Unix { stream, peer })
            }
            Kind::Tls(listener, acceptor) => {
                let (stream, address) = listener.accept().await?;
                // Fails only for a peer that is gone already; the handshake will notice.
                let _ = stream.set_nodelay(true);
                Ok(Accepted::Tls(Tls {
                    stream,
                    acceptor: acceptor.clone(),
                    peer: Peer::Tcp(address),
                }))
            }
        }
    }
}

/// A connection before anything was read from it.
pub(crate) enum Accepted {
    /// Over a Unix socket.
    Unix {
        /// The connection.
        stream: UnixStream,
        /// Who opened it.
        peer: Peer,
    },
    /// Over TCP, before the handshake.
    Tls(Tls),
}

/// A TCP connection and what is needed for its handshake.
pub(crate) struct Tls {
    /// The connection.
    pub(crate) stream: TcpStream,
    /// Does the handshake.
    pub(crate) acceptor: TlsAcceptor,
    /// Who opened it.
    pub(crate) peer: Peer,
}

impl Accepted {
    /// Who opened it.
    pub(crate) fn peer(&self) -> Peer {
        match self {
            Self::Unix { peer, .. } => *peer,
            Self::Tls(tls) => tls.peer,
        }
    }
}

impl Identity {
    fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(Arc::clone(self.config()))
    }
}
