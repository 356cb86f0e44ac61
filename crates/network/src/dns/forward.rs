//! Asking upstream: UDP first, TCP if the answer was cut, the next resolver if one is silent.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use super::cache::Cache;
use super::upstream::{Source, Upstreams};
use super::wire::{Answer, Code, Query, UDP_LARGEST, is_truncated, parse_answer};

/// Packets that are not the answer (forged, or late) tolerated while waiting for it.
const STRAYS_MAX: usize = 16;

#[derive(Debug)]
pub(super) struct Forwarder {
    source: Source,
    patience: Duration,
    cache: Cache,
    /// Makes ids that cannot be guessed: a keyed hash over a fresh key of the system's.
    ids: RandomState,
}

impl Forwarder {
    pub(super) fn new(upstreams: Upstreams, patience: Duration) -> Self {
        let source = Source::new(upstreams);
        Self {
            source,
            patience,
            cache: Cache::default(),
            ids: RandomState::new(),
        }
    }

    /// The answer, if it is kept here already.
    pub(super) fn cached(&self, query: &Query) -> Option<Vec<u8>> {
        self.cache.get(query, Instant::now())
    }

    /// The answer to `query` from the first upstream that gives one. `own` are addresses we listen
    /// on ourselves, which would go round in circles.
    pub(super) async fn resolve(&self, query: &Query, own: &[IpAddr]) -> Vec<u8> {
        for upstream in self.source.list(Instant::now()) {
            if own.contains(&upstream.ip()) {
                continue;
            }
            let asked = timeout(self.patience, self.ask(query, upstream)).await;
            match asked {
                Ok(Ok(Some(answer))) => {
                    self.cache.put(query, &answer, Instant::now());
                    return answer.for_query(query, 0);
                }
                Ok(Ok(None)) => tracing::debug!(%upstream, "no usable answer"),
                Ok(Err(error)) => tracing::debug!(%upstream, %error, "upstream failed"),
                Err(_) => tracing::debug!(%upstream, "upstream is silent"),
            }
        }
        query.error(Code::Failed)
    }

    async fn ask(
        &self,
        query: &Query,
        upstream: SocketAddr,
    ) -> Result<Option<Answer>, std::io::Error> {
        let id = self.id(query);
        let packet = query.upstream(id);
        let any: IpAddr = match upstream {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        // A socket for each question: the kernel's random port is half of the secret.
        let socket = UdpSocket::bind((any, 0)).await?;
        socket.connect(upstream).await?;
        socket.send(&packet).await?;
        let mut buffer = [0; UDP_LARGEST + 1024];
        for _ in 0..STRAYS_MAX {
            let length = socket.recv(&mut buffer).await?;
            let received = &buffer[..length];
            let Some(answer) = parse_answer(received, id, &query.question) else {
                continue;
            };
            if !is_truncated(received) {
                return Ok(Some(answer));
            }
            return Ok(Self::ask_tcp(query, id, &packet, upstream)
                .await?
                .or(Some(answer)));
        }
        Ok(None)
    }

    async fn ask_tcp(
        query: &Query,
        id: u16,
        packet: &[u8],
        upstream: SocketAddr,
    ) -> Result<Option<Answer>, std::io::Error> {
        let mut stream = TcpStream::connect(upstream).await?;
        let length = u16::try_from(packet.len()).map_err(std::io::Error::other)?;
        stream
            .write_all(&[&length.to_be_bytes(), packet].concat())
            .await?;
        let length = stream.read_u16().await?;
        let mut answer = vec![0; usize::from(length)];
        stream.read_exact(&mut answer).await?;
        Ok(parse_answer(&answer, id, &query.question))
    }

    fn id(&self, query: &Query) -> u16 {
        let mut hasher = self.ids.build_hasher();
        hasher.write(&query.question);
        hasher.write_u128(
            std::time::UNIX_EPOCH
                .elapsed()
                .map_or(0, |elapsed| elapsed.as_nanos()),
        );
        hasher.finish() as u16
    }
}
