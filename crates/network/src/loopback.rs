//! Published ports on `::1`, where the kernel cannot lead there ([`crate::Driver::answers_on_loopback6`]).
//!
//! The node calls [`Loopback::serve`] with every change of what is published. A connection to `::1` is
//! taken here and joined to one to the instance, which sees the gateway as its client, as it does with
//! `127.0.0.1`. TCP only. It lives as long as the daemon: connections over it end with it, and the next
//! daemon listens again. It never listens anywhere else, and knows no instances, only addresses.

use std::collections::HashMap;
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, listen, socket_with, sockopt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

/// Connections open at once on one port.
const CONNECTIONS_MAX: usize = 1024;
/// Longest queue of connections not yet accepted.
const BACKLOG: i32 = 256;
/// How long an instance may take to accept.
const CONNECT: Duration = Duration::from_secs(10);
/// Pause before a port that another program has is tried again, and after a failed accept.
const RETRY: Duration = Duration::from_secs(5);
const BREATHE: Duration = Duration::from_millis(100);

/// Listeners on `::1`. Dropping it closes them.
#[derive(Debug, Default)]
pub struct Loopback {
    listeners: Mutex<HashMap<u16, Listener>>,
}

#[derive(Debug)]
struct Listener {
    targets: Vec<SocketAddr>,
    task: JoinHandle<()>,
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Loopback {
    /// Leads exactly these ports of `::1` to their targets, of which the first that accepts is taken.
    /// A port whose targets stay the same keeps its connections. One that a program of the host has is
    /// tried again and again.
    ///
    /// Ports no longer wanted are free when it returns. Call it once at a time, within a tokio runtime,
    /// in the network namespace to serve.
    pub async fn serve(&self, wanted: HashMap<u16, Vec<SocketAddr>>) {
        let gone: Vec<Listener> = self
            .lock()
            .extract_if(|port, listener| wanted.get(port) != Some(&listener.targets))
            .map(|(_, listener)| listener)
            .collect();
        for mut listener in gone {
            listener.task.abort();
            // It ended by being aborted, and closed its socket.
            let _ = (&mut listener.task).await;
        }
        let mut listeners = self.lock();
        for (port, targets) in wanted {
            listeners.entry(port).or_insert_with(|| {
                let task = tokio::spawn(keep_listening(port, targets.clone()));
                Listener { targets, task }
            });
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u16, Listener>> {
        self.listeners
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends only by being aborted, and all its connections with it.
async fn keep_listening(port: u16, targets: Vec<SocketAddr>) {
    let targets: Arc<[SocketAddr]> = targets.into();
    let mut connections = tokio::task::JoinSet::new();
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let listener = loop {
        match open(port) {
            Ok(listener) => break listener,
            Err(error) => {
                tracing::warn!(port, %error, "a published port cannot be had on [::1]; trying again");
                tokio::time::sleep(RETRY).await;
            }
        }
    };
    loop {
        // Those that have ended are let go of.
        while connections.try_join_next().is_some() {}
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((client, _)) => {
                let targets = Arc::clone(&targets);
                connections.spawn(async move {
                    join(client, &targets).await;
                    drop(slot);
                });
            }
            // Out of descriptors, perhaps: not for ever.
            Err(_) => tokio::time::sleep(BREATHE).await,
        }
    }
}

fn open(port: u16) -> Result<TcpListener, std::io::Error> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::INET6, SocketType::STREAM, flags, None)?;
    // A restarted daemon must not wait for old connections to be forgotten.
    sockopt::set_socket_reuseaddr(&socket, true)?;
    bind(&socket, &SocketAddr::from((Ipv6Addr::LOCALHOST, port)))?;
    listen(&socket, BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Passes bytes both ways until both sides have ended. That no target accepts shows to the client as a
/// connection that is closed at once.
async fn join(mut client: TcpStream, targets: &[SocketAddr]) {
    for target in targets {
        let connecting = tokio::time::timeout(CONNECT, TcpStream::connect(target));
        let Ok(Ok(mut server)) = connecting.await else {
            continue;
        };
        // As good without: it only costs time.
        let _ = (client.set_nodelay(true), server.set_nodelay(true));
        if let Err(error) = tokio::io::copy_bidirectional(&mut client, &mut server).await {
            tracing::debug!(%target, %error, "a connection over [::1] broke off");
        }
        return;
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// Answers each connection with its own port.
    async fn server() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut said = String::new();
                stream.read_to_string(&mut said).await.unwrap();
                let answer = format!("{said} to {address}");
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        address
    }

    /// What comes back over a port, once one listens there.
    async fn ask(port: u16) -> std::io::Result<String> {
        let mut stream = TcpStream::connect((Ipv6Addr::LOCALHOST, port)).await?;
        stream.write_all(b"hello").await?;
        stream.shutdown().await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
    }

    async fn until(port: u16, wanted: String) {
        while ask(port).await.ok().as_ref() != Some(&wanted) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test]
    async fn ports_follow_what_is_published() {
        let Ok(free) = std::net::TcpListener::bind("[::1]:0") else {
            eprintln!("SKIP ports_follow_what_is_published: no IPv6 loopback here");
            return;
        };
        let port = free.local_addr().unwrap().port();
        drop(free);
        let (one, two) = (server().await, server().await);
        // Nobody listens at the first target.
        let nobody: SocketAddr = "127.0.0.1:1".parse().unwrap();
        let loopback = Loopback::default();
        loopback.serve([(port, vec![nobody, one])].into()).await;
        until(port, format!("hello to {one}")).await;
        loopback.serve([(port, vec![two])].into()).await;
        until(port, format!("hello to {two}")).await;
        loopback.serve(HashMap::new()).await;
        std::net::TcpListener::bind(("::1", port)).expect("the port is free again at once");
    }
}
