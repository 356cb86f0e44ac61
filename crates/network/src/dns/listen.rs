//! Listening on one gateway address, by UDP and TCP.
//!
//! The sockets are bound even while the address does not exist (`IP_FREEBIND`), so they survive
//! the bridge being made again.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, listen, socket_with, sockopt};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::server::Endpoint;
use super::wire::{UDP_LARGEST, UDP_PLAIN};

/// Largest question that is read by UDP.
const QUESTION_MAX: usize = UDP_LARGEST;
/// Connections open at once on one address.
const CONNECTIONS_MAX: usize = 64;
/// Questions taken over one connection.
const QUESTIONS_MAX: usize = 128;
/// How long a connection may be silent.
const IDLE: Duration = Duration::from_secs(5);
/// Longest queue of connections not yet accepted.
const BACKLOG: i32 = 64;

/// Both sockets of an address.
pub(super) struct Sockets {
    udp: UdpSocket,
    tcp: TcpListener,
}

impl Sockets {
    /// Binds `address`, whether or not it exists yet.
    pub(super) fn bind(address: SocketAddr) -> Result<Self, std::io::Error> {
        let udp = open(address, SocketType::DGRAM)?;
        let tcp = open(address, SocketType::STREAM)?;
        listen(&tcp, BACKLOG)?;
        Ok(Self {
            udp: UdpSocket::from_std(udp.into())?,
            tcp: TcpListener::from_std(tcp.into())?,
        })
    }

    /// Answers until a socket fails for good.
    pub(super) async fn run(self, endpoint: Arc<Endpoint>) -> std::io::Error {
        let Self { udp, tcp } = self;
        let udp = Arc::new(udp);
        tokio::select! {
            error = serve_udp(udp, Arc::clone(&endpoint)) => error,
            error = serve_tcp(tcp, endpoint) => error,
        }
    }
}

fn open(address: SocketAddr, kind: SocketType) -> Result<rustix::fd::OwnedFd, std::io::Error> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let family = match address.ip() {
        IpAddr::V4(_) => AddressFamily::INET,
        IpAddr::V6(_) => AddressFamily::INET6,
    };
    let socket = socket_with(family, kind, flags, None)?;
    match address.ip() {
        IpAddr::V4(_) => sockopt::set_ip_freebind(socket.as_fd(), true)?,
        IpAddr::V6(_) => sockopt::set_ipv6_freebind(socket.as_fd(), true)?,
    }
    if kind == SocketType::STREAM {
        // A restarted daemon must not wait for old connections to be forgotten.
        sockopt::set_socket_reuseaddr(&socket, true)?;
    }
    bind(&socket, &address)?;
    Ok(socket)
}

async fn serve_udp(socket: Arc<UdpSocket>, endpoint: Arc<Endpoint>) -> std::io::Error {
    let mut buffer = [0; QUESTION_MAX];
    loop {
        let (length, client) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            // An answer of ours could not be delivered; the socket is fine.
            Err(error) if transient(&error) => continue,
            Err(error) => return error,
        };
        let Some(question) = endpoint.admit(client.ip(), &buffer[..length]) else {
            continue;
        };
        let limit = question.udp_size();
        match endpoint.answer_now(&question) {
            Some(answer) => send(&socket, &answer.fit(limit), client).await,
            None => {
                let Some(permit) = endpoint.permit(client.ip()) else {
                    send(&socket, &question.busy(), client).await;
                    continue;
                };
                let (socket, endpoint) = (Arc::clone(&socket), Arc::clone(&endpoint));
                tokio::spawn(async move {
                    let answer = endpoint.forward(&question).await.fit(limit);
                    drop(permit);
                    send(&socket, &answer, client).await;
                });
            }
        }
    }
}

async fn send(socket: &UdpSocket, answer: &[u8], client: SocketAddr) {
    if let Err(error) = socket.send_to(answer, client).await {
        tracing::debug!(%client, %error, "an answer could not be sent");
    }
}

fn transient(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{
        ConnectionAborted, ConnectionRefused, ConnectionReset, HostUnreachable, Interrupted,
        NetworkUnreachable,
    };
    matches!(
        error.kind(),
        ConnectionAborted
            | ConnectionRefused
            | ConnectionReset
            | HostUnreachable
            | Interrupted
            | NetworkUnreachable
    )
}

async fn serve_tcp(listener: TcpListener, endpoint: Arc<Endpoint>) -> std::io::Error {
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let (stream, client) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) if transient(&error) => continue,
            Err(error) => return error,
        };
        // Past the limit the connection is closed at once.
        let Ok(slot) = Arc::clone(&slots).try_acquire_owned() else {
            continue;
        };
        let endpoint = Arc::clone(&endpoint);
        tokio::spawn(async move {
            if let Err(error) = serve_connection(stream, client.ip(), &endpoint).await {
                tracing::debug!(%client, %error, "a connection ended early");
            }
            drop(slot);
        });
    }
}

async fn serve_connection(
    mut stream: TcpStream,
    client: IpAddr,
    endpoint: &Endpoint,
) -> Result<(), std::io::Error> {
    for _ in 0..QUESTIONS_MAX {
        let mut buffer = [0; QUESTION_MAX];
        let read = async {
            let length = usize::from(stream.read_u16().await?);
            // Nobody has that long a question.
            let Some(buffer) = buffer.get_mut(..length) else {
                return Ok::<_, std::io::Error>(0);
            };
            stream.read_exact(buffer).await
        };
        let Ok(Ok(length @ 1..)) = timeout(IDLE, read).await else {
            return Ok(());
        };
        let Some(question) = endpoint.admit(client, &buffer[..length]) else {
            return Ok(());
        };
        let answer = match endpoint.answer_now(&question) {
            Some(answer) => answer.whole(),
            None => match endpoint.permit(client) {
                Some(_permit) => endpoint.forward(&question).await.whole(),
                None => question.busy(),
            },
        };
        let length = u16::try_from(answer.len()).map_err(std::io::Error::other)?;
        let packet = [&length.to_be_bytes(), answer.as_slice()].concat();
        match timeout(IDLE, stream.write_all(&packet)).await {
            Ok(written) => written?,
            Err(_) => return Ok(()),
        }
    }
    Ok(())
}

const _: () = assert!(QUESTION_MAX >= UDP_PLAIN);
