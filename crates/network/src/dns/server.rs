//! The server: which addresses are listened on, who is answered, and from what.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use ipnetwork::IpNetwork;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::AbortHandle;

use super::forward::Forwarder;
use super::listen::Sockets;
use super::upstream::Upstreams;
use super::wire::{self, Bad, Code, Query, kind};
use super::zone::Zone;
use crate::{NetworkConfig, Outside};

/// Questions being asked upstream at once, for all clients together.
const FORWARDS_MAX: usize = 512;
/// The same for one client.
const FORWARDS_PER_CLIENT_MAX: usize = 64;
/// How long to wait before an address that could not be bound is tried again.
const RETRY: Duration = Duration::from_secs(2);

/// How to serve.
#[derive(Debug, Clone)]
pub struct Config {
    /// The port: 53, but for tests.
    pub port: u16,
    /// Who knows all other names.
    pub upstreams: Upstreams,
    /// How long each upstream may take.
    pub timeout: Duration,
}

impl Default for Config {
    /// Port 53, the host's resolvers, two seconds each.
    fn default() -> Self {
        Self {
            port: 53,
            upstreams: Upstreams::File("/etc/resolv.conf".into()),
            timeout: Duration::from_secs(2),
        }
    }
}

/// One network to serve.
#[derive(Debug, Clone)]
pub struct Served {
    /// The gateway's addresses to listen on.
    pub listen: Vec<IpAddr>,
    /// The network's subnets: who is answered, and which reverse names are ours.
    pub clients: Vec<IpNetwork>,
    /// The network's names.
    pub zone: Zone,
    /// Whether other names are asked for upstream; an internal network has no outside.
    pub forward: bool,
}

impl Served {
    /// The way to serve `network`: on its gateway addresses, to its subnets, and with an outside
    /// unless it is internal.
    #[must_use]
    pub fn of(network: &NetworkConfig, zone: Zone) -> Self {
        let clients = network.gateways();
        let forward = network.outside != Outside::Internal;
        Self {
            listen: clients.iter().map(IpNetwork::ip).collect(),
            clients,
            zone,
            forward,
        }
    }
}

/// Whether an address is being listened on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListenerState {
    /// Not yet tried.
    Starting,
    /// Yes.
    Listening,
    /// No, but it is tried again and again.
    Failing {
        /// Why, for users.
        reason: String,
    },
}

/// The running server. Dropping it ends it.
#[derive(Debug)]
pub struct Server {
    port: u16,
    shared: Arc<Shared>,
    listeners: Mutex<HashMap<IpAddr, Listener>>,
}

#[derive(Debug)]
struct Listener {
    endpoint: Arc<Endpoint>,
    task: AbortHandle,
}

#[derive(Debug)]
struct Shared {
    forwarder: Forwarder,
    forwards: Arc<Semaphore>,
    per_client: Mutex<HashMap<IpAddr, usize>>,
    own: RwLock<Vec<IpAddr>>,
}

impl Server {
    /// A server that listens nowhere yet; see [`Server::serve`].
    #[must_use]
    pub fn new(config: Config) -> Self {
        let shared = Shared {
            forwarder: Forwarder::new(config.upstreams, config.timeout),
            forwards: Arc::new(Semaphore::new(FORWARDS_MAX)),
            per_client: Mutex::default(),
            own: RwLock::default(),
        };
        Self {
            port: config.port,
            shared: Arc::new(shared),
            listeners: Mutex::default(),
        }
    }

    /// Serves exactly `networks`: listens on what is new, keeps what stays, leaves the rest. An
    /// address that cannot be bound is tried again until it can; see [`Server::state`].
    ///
    /// Must be called within a tokio runtime, in the network namespace to serve.
    pub fn serve(&self, networks: Vec<Served>) {
        let mut listeners = self
            .listeners
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let mut wanted: HashMap<IpAddr, Arc<Served>> = HashMap::new();
        for network in networks {
            let network = Arc::new(network);
            let addresses = network.listen.clone();
            wanted.extend(
                addresses
                    .into_iter()
                    .map(|address| (address, Arc::clone(&network))),
            );
        }
        *self
            .shared
            .own
            .write()
            .unwrap_or_else(PoisonError::into_inner) = wanted.keys().copied().collect();
        listeners.retain(|address, listener| {
            let keep = wanted.contains_key(address);
            if !keep {
                listener.task.abort();
            }
            keep
        });
        for (address, network) in wanted {
            if let Some(listener) = listeners.get(&address) {
                *listener
                    .endpoint
                    .served
                    .write()
                    .unwrap_or_else(PoisonError::into_inner) = network;
                continue;
            }
            let endpoint = Arc::new(Endpoint {
                shared: Arc::clone(&self.shared),
                served: RwLock::new(network),
                state: Mutex::new(ListenerState::Starting),
            });
            let address_and_port = SocketAddr::new(address, self.port);
            let task = tokio::spawn(keep_listening(address_and_port, Arc::clone(&endpoint)));
            listeners.insert(
                address,
                Listener {
                    endpoint,
                    task: task.abort_handle(),
                },
            );
        }
    }

    /// Whether each address is being listened on.
    #[must_use]
    pub fn state(&self) -> Vec<(IpAddr, ListenerState)> {
        let listeners = self
            .listeners
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let state = |listener: &Listener| {
            listener
                .endpoint
                .state
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone()
        };
        let mut states: Vec<_> = listeners
            .iter()
            .map(|(address, listener)| (*address, state(listener)))
            .collect();
        states.sort_by_key(|(address, _)| *address);
        states
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        for listener in self
            .listeners
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner)
            .values()
        {
            listener.task.abort();
        }
    }
}

async fn keep_listening(address: SocketAddr, endpoint: Arc<Endpoint>) {
    loop {
        let error = match Sockets::bind(address) {
            Ok(sockets) => {
                endpoint.set_state(ListenerState::Listening);
                sockets.run(Arc::clone(&endpoint)).await
            }
            Err(error) => error,
        };
        tracing::warn!(%address, %error, "names are not served here; trying again");
        endpoint.set_state(ListenerState::Failing {
            reason: error.to_string(),
        });
        tokio::time::sleep(RETRY).await;
    }
}

/// What one address's sockets need to know.
#[derive(Debug)]
pub(super) struct Endpoint {
    shared: Arc<Shared>,
    served: RwLock<Arc<Served>>,
    state: Mutex<ListenerState>,
}

/// A packet from a client that gets an answer.
pub(super) enum Question {
    /// A proper question.
    Asked(Query),
    /// Something else; this is the answer.
    Rejected(Vec<u8>),
}

/// An answer not yet fitted to its transport.
pub(super) struct Sized {
    bytes: Vec<u8>,
    cut: Option<Vec<u8>>,
}

impl Sized {
    fn new(question: &Question, bytes: Vec<u8>) -> Self {
        let cut = match question {
            Question::Asked(query) => Some(query.truncated()),
            Question::Rejected(_) => None,
        };
        Self { bytes, cut }
    }

    /// All of it.
    pub(super) fn whole(self) -> Vec<u8> {
        self.bytes
    }

    /// All of it if it fits, else the answer that asks for TCP.
    pub(super) fn fit(self, limit: usize) -> Vec<u8> {
        match self.cut {
            Some(cut) if self.bytes.len() > limit => cut,
            _ => self.bytes,
        }
    }
}

impl Question {
    pub(super) fn udp_size(&self) -> usize {
        match self {
            Self::Asked(query) => query.udp_size(),
            Self::Rejected(_) => wire::UDP_PLAIN,
        }
    }

    /// The answer if too much is under way already.
    pub(super) fn busy(&self) -> Vec<u8> {
        match self {
            Self::Asked(query) => query.error(Code::Failed),
            Self::Rejected(answer) => answer.clone(),
        }
    }
}

impl Endpoint {
    /// Reads a packet; `None` if its sender gets no answer.
    pub(super) fn admit(&self, client: IpAddr, packet: &[u8]) -> Option<Question> {
        let client = client.to_canonical();
        if !self
            .served()
            .clients
            .iter()
            .any(|subnet| subnet.contains(client))
        {
            return None;
        }
        match wire::parse_query(packet) {
            Ok(query) => Some(Question::Asked(query)),
            Err(Bad::Drop) => None,
            Err(Bad::Answer { id, flags, code }) => {
                Some(Question::Rejected(wire::bad_answer(id, flags, code)))
            }
        }
    }

    /// The answer, if nobody else needs to be asked for it.
    pub(super) fn answer_now(&self, question: &Question) -> Option<Sized> {
        let bytes = match question {
            Question::Rejected(answer) => Some(answer.clone()),
            Question::Asked(query) => self.local_answer(query),
        };
        bytes.map(|bytes| Sized::new(question, bytes))
    }

    fn local_answer(&self, query: &Query) -> Option<Vec<u8>> {
        if matches!(query.kind, kind::AXFR | kind::IXFR) {
            return Some(query.error(Code::Refused));
        }
        let served = self.served();
        served
            .zone
            .answer(query, &served.clients)
            .or_else(|| (!served.forward).then(|| query.error(Code::Refused)))
            .or_else(|| self.shared.forwarder.cached(query))
    }

    /// The answer from upstream.
    pub(super) async fn forward(&self, question: &Question) -> Sized {
        let bytes = match question {
            Question::Rejected(answer) => answer.clone(),
            Question::Asked(query) => {
                let own = self
                    .shared
                    .own
                    .read()
                    .unwrap_or_else(PoisonError::into_inner)
                    .clone();
                self.shared.forwarder.resolve(query, &own).await
            }
        };
        Sized::new(question, bytes)
    }

    /// Leave to ask upstream for `client`; `None` if too much is under way.
    pub(super) fn permit(&self, client: IpAddr) -> Option<Permit> {
        let slot = Arc::clone(&self.shared.forwards).try_acquire_owned().ok()?;
        let mut per_client = self
            .shared
            .per_client
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let count = per_client.entry(client).or_default();
        if *count >= FORWARDS_PER_CLIENT_MAX {
            return None;
        }
        *count += 1;
        drop(per_client);
        Some(Permit {
            client,
            shared: Arc::clone(&self.shared),
            _slot: slot,
        })
    }

    fn served(&self) -> Arc<Served> {
        Arc::clone(&self.served.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn set_state(&self, state: ListenerState) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = state;
    }
}

/// Counts a question under way until it is dropped.
pub(super) struct Permit {
    client: IpAddr,
    shared: Arc<Shared>,
    _slot: OwnedSemaphorePermit,
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut per_client = self
            .shared
            .per_client
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = per_client.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                per_client.remove(&self.client);
            }
        }
    }
}
