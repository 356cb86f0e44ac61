//! The server: listeners to connections, limits on how many, and an orderly end.

use std::{
    collections::HashMap,
    io,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError, atomic::Ordering::Relaxed},
    time::Duration,
};

use api::service::Service;
use tokio::{sync::Semaphore, time::timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    Config, Listener,
    auth::{Gate, Peer, network_of},
    call::Shared,
    connection,
    listen::{Accepted, Tls},
    metrics::Metrics,
};

/// Pause after a failed accept, such as one for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves the API.
pub struct Server {
    shared: Shared,
    gate: Arc<Gate>,
    by_address: Arc<ByAddress>,
}

impl Server {
    /// A server of a service; it does nothing until [`Server::run`].
    #[must_use]
    pub fn new(service: Arc<dyn Service>, config: Config) -> Self {
        Self {
            gate: Arc::new(Gate::new(config.auth_failures, config.auth_forgive)),
            by_address: Arc::default(),
            shared: Shared {
                service,
                config: Arc::new(config),
                stop: CancellationToken::new(),
                tasks: TaskTracker::new(),
                metrics: Arc::new(Metrics::new()),
            },
        }
    }

    /// Serves until `stop` is cancelled. Then nothing more is accepted, idle connections close,
    /// streams end with a message that says why, and requests in progress get
    /// [`Config::drain`] to finish. The listeners' sockets are closed and removed on return.
    pub async fn run(mut self, listeners: Vec<Listener>, stop: CancellationToken) {
        self.shared.stop = stop;
        let mut accepting = tokio::task::JoinSet::new();
        for listener in listeners {
            accepting.spawn(accept(
                listener,
                self.shared.clone(),
                Arc::clone(&self.gate),
                Arc::clone(&self.by_address),
            ));
        }
        while accepting.join_next().await.is_some() {}
        self.shared.stop.cancelled().await;
        self.shared.tasks.close();
        let grace = self.shared.config.drain + Duration::from_secs(1);
        if timeout(grace, self.shared.tasks.wait()).await.is_err() {
            tracing::warn!(
                left = self.shared.tasks.len(),
                "some requests did not end in time and are cut off"
            );
        }
    }
}

/// Takes connections of one listener until the server stops.
async fn accept(listener: Listener, shared: Shared, gate: Arc<Gate>, by_address: Arc<ByAddress>) {
    let places = Arc::new(Semaphore::new(shared.config.connections));
    loop {
        let next = async {
            let place = Arc::clone(&places).acquire_owned().await;
            (place, listener.accept().await)
        };
        let (place, accepted) = tokio::select! {
            () = shared.stop.cancelled() => return,
            next = next => next,
        };
        let accepted = match accepted {
            Ok(accepted) => accepted,
            Err(error) if is_the_peers(&error) => continue,
            Err(error) => {
                tracing::warn!(%error, address = listener.address(), "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let most = shared.config.connections_per_address;
        let Some(share) = by_address.enter(accepted.peer(), most) else {
            shared.metrics.refused.fetch_add(1, Relaxed);
            continue;
        };
        let (shared, gate) = (shared.clone(), Arc::clone(&gate));
        let tasks = shared.tasks.clone();
        tasks.spawn(async move {
            let _held = (place, share);
            shared.metrics.connections.fetch_add(1, Relaxed);
            one(accepted, shared.clone(), &gate).await;
            shared.metrics.connections.fetch_sub(1, Relaxed);
        });
    }
}

/// Whether an accept failed because that one peer left, which says nothing of the next.
fn is_the_peers(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::NotConnected
            | io::ErrorKind::Interrupted
    )
}

async fn one(accepted: Accepted, shared: Shared, gate: &Gate) {
    match accepted {
        Accepted::Unix { stream, peer } => connection::serve(stream, peer, shared, gate).await,
        Accepted::Tls(tls) => {
            let peer = tls.peer;
            match handshake(tls, &shared).await {
                Some(stream) => connection::serve(stream, peer, shared, gate).await,
                None => {
                    shared.metrics.refused.fetch_add(1, Relaxed);
                }
            }
        }
    }
}

async fn handshake(
    tls: Tls,
    shared: &Shared,
) -> Option<tokio_rustls::server::TlsStream<tokio::net::TcpStream>> {
    let peer = tls.peer;
    let limit = shared.config.handshake_timeout;
    let result = tokio::select! {
        result = timeout(limit, tls.acceptor.accept(tls.stream)) => result,
        () = shared.stop.cancelled() => return None,
    };
    match result {
        Ok(Ok(stream)) => Some(stream),
        Ok(Err(error)) => {
            tracing::debug!(%peer, %error, "a TLS handshake failed");
            None
        }
        Err(_) => {
            tracing::debug!(%peer, "a TLS handshake took too long");
            None
        }
    }
}

/// Connections each TCP address has open.
#[derive(Default)]
struct ByAddress(Mutex<HashMap<IpAddr, usize>>);

/// One connection's share; given back when dropped.
struct Share {
    of: Arc<ByAddress>,
    address: Option<IpAddr>,
}

impl ByAddress {
    /// A share, unless the address has `most` already. Unix peers are not counted.
    fn enter(self: &Arc<Self>, peer: Peer, most: usize) -> Option<Share> {
        let address = match peer {
            Peer::Unix { .. } => None,
            Peer::Tcp(address) => Some(network_of(address.ip())),
        };
        if let Some(address) = address {
            let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let count = open.entry(address).or_default();
            if *count >= most {
                return None;
            }
            *count += 1;
        }
        Some(Share {
            of: Arc::clone(self),
            address,
        })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let Some(address) = self.address else {
            return;
        };
        let mut open = self.of.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = open.get_mut(&address) {
            *count -= 1;
            if *count == 0 {
                open.remove(&address);
            }
        }
    }
}
