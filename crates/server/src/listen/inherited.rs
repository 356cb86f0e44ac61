//! Sockets that systemd opened for the daemon, so that callers wait instead of failing while it
//! starts or is replaced.

use std::io;

use listenfd::ListenFd;
use tokio::net::{TcpListener, UnixListener};

use super::{Identity, Kind, ListenError, Listener};

/// See [`Listener::inherited`].
pub(super) fn take(identity: Option<&Identity>) -> Result<Vec<Listener>, ListenError> {
    let mut sockets = ListenFd::from_env();
    (0..sockets.len())
        .map(|index| {
            one(&mut sockets, index, identity).map_err(|why| ListenError::Inherited { index, why })
        })
        .collect()
}

fn one(
    sockets: &mut ListenFd,
    index: usize,
    identity: Option<&Identity>,
) -> Result<Listener, String> {
    let text = |error: io::Error| error.to_string();
    if let Ok(Some(listener)) = sockets.take_unix_listener(index) {
        let path = listener.local_addr().map_err(text)?;
        let path = path.as_pathname().map(|path| path.display().to_string());
        listener.set_nonblocking(true).map_err(text)?;
        let listener = UnixListener::from_std(listener).map_err(text)?;
        return Ok(Listener {
            kind: Kind::Unix(listener),
            address: format!("unix://{}", path.unwrap_or_default()),
            _made: None,
        });
    }
    let Ok(Some(listener)) = sockets.take_tcp_listener(index) else {
        return Err("it is no listening Unix or TCP socket".to_owned());
    };
    let Some(identity) = identity else {
        return Err(
            "it is TCP, and the daemon was given no certificate to serve it with".to_owned(),
        );
    };
    listener.set_nonblocking(true).map_err(text)?;
    let listener = TcpListener::from_std(listener).map_err(text)?;
    Listener::from_tcp(listener, identity).map_err(text)
}
