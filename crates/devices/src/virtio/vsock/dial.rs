//! How a guest's connection reaches a program of the host.

use std::{
    ffi::{OsStr, OsString},
    io,
    os::unix::net::UnixStream,
    path::PathBuf,
};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// Connects to whoever on the host serves a port.
pub trait Dial: Send {
    /// A connected stream that does not block. Called from the device's thread: must not wait.
    ///
    /// # Errors
    /// When nobody listens; the guest's connection is then refused.
    fn dial(&self, port: u32) -> io::Result<UnixStream>;
}

/// Connects to Unix sockets named by port: `PREFIX_1025` for port 1025.
#[derive(Debug, Clone)]
pub struct UnixDialer {
    prefix: OsString,
}

impl UnixDialer {
    /// One for sockets whose names begin with this path; the port is appended after an underscore.
    pub fn new(prefix: impl AsRef<OsStr>) -> Self {
        Self {
            prefix: prefix.as_ref().to_owned(),
        }
    }
}

impl Dial for UnixDialer {
    fn dial(&self, port: u32) -> io::Result<UnixStream> {
        let mut path = self.prefix.clone();
        path.push(format!("_{port}"));
        let address = SocketAddrUnix::new(PathBuf::from(path))?;
        // Not std's connect: that would wait for a program whose backlog is full.
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        rustix::net::connect(&socket, &address)?;
        Ok(UnixStream::from(socket))
    }
}
