//! One connection to a daemon, whatever it runs over.

use std::{io, path::Path, time::Duration};

use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
};

use super::{
    address::{Address, Config},
    error::{ClientError, Result},
    request::RequestBody,
    tls,
};

/// How long a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A stream of bytes to and from a daemon.
pub(super) trait Wire: AsyncRead + AsyncWrite + Unpin + Send + 'static {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send + 'static> Wire for T {}

/// Makes a connection ready for requests. A task on the current runtime drives it until the
/// sender is dropped.
pub(super) async fn connect(config: &Config) -> Result<SendRequest<RequestBody>> {
    match &config.address {
        Address::Unix(path) => {
            let stream = UnixStream::connect(path)
                .await
                .map_err(|error| unix_error(&config.address, path, &error))?;
            handshake(config, stream).await
        }
        Address::Https { host, port } => {
            let connected = async {
                let stream = TcpStream::connect((host.as_str(), *port))
                    .await
                    .map_err(|error| tcp_error(&config.address, &error))?;
                // Latency matters, and what is written is written whole.
                stream.set_nodelay(true).ok();
                tls::wrap(config, host, stream).await
            };
            match tokio::time::timeout(CONNECT_TIMEOUT, connected).await {
                Ok(stream) => handshake(config, stream?).await,
                Err(_) => Err(tcp_error(&config.address, &io::ErrorKind::TimedOut.into())),
            }
        }
    }
}

async fn handshake(config: &Config, stream: impl Wire) -> Result<SendRequest<RequestBody>> {
    let (sender, connection) = http1::Builder::new()
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|error| broken(&config.address, &error))?;
    tokio::spawn(async move {
        // Whatever ends the connection also ends the request on it, which reports it.
        let _ = connection.with_upgrades().await;
    });
    Ok(sender)
}

/// The error for a connection that broke in the middle of a request.
pub(super) fn broken(address: &Address, error: &dyn std::error::Error) -> ClientError {
    let mut why = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let text = cause.to_string();
        if !why.contains(&text) {
            why = format!("{why}: {text}");
        }
        source = cause.source();
    }
    ClientError::Unreachable {
        address: address.to_string(),
        why,
        hint: "the daemon may be restarting; instances go on without it. Try again".into(),
    }
}

fn unix_error(address: &Address, path: &Path, error: &io::Error) -> ClientError {
    let (why, hint) = match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => (
            if error.kind() == io::ErrorKind::NotFound {
                "there is no such socket"
            } else {
                "nothing listens on the socket"
            }
            .to_owned(),
            "start it with `systemctl start berth`, or in a terminal with `berth daemon` as root; \
             if it runs elsewhere, name it with --host or BERTH_HOST"
                .to_owned(),
        ),
        io::ErrorKind::PermissionDenied => (
            "permission denied".to_owned(),
            format!(
                "become root, or join the group that owns {} (`usermod -aG berth USER`, then log \
                 in again)",
                path.display()
            ),
        ),
        _ => (error.to_string(), "check the path of the socket".to_owned()),
    };
    ClientError::Unreachable {
        address: address.to_string(),
        why,
        hint,
    }
}

fn tcp_error(address: &Address, error: &io::Error) -> ClientError {
    ClientError::Unreachable {
        address: address.to_string(),
        why: error.to_string(),
        hint:
            "check the name and the port, that the daemon was started with --listen, and that no \
               firewall is in between"
                .into(),
    }
}
