//! The little of systemd's notify protocol (`sd_notify(3)`) that a daemon needs. The daemon calls
//! it when it is ready, when it stops, and to say what it does; without systemd nothing happens.
//! It never reads an answer and never fails the caller.

use std::{
    env, io,
    os::{
        linux::net::SocketAddrExt as _,
        unix::{ffi::OsStrExt as _, net},
    },
};

/// Says that the daemon serves.
pub fn ready(status: &str) {
    notify(&format!("READY=1\nSTATUS={}", one_line(status)));
}

/// Says that the daemon is stopping.
pub fn stopping() {
    notify("STOPPING=1\nSTATUS=Stopping; guests keep running");
}

/// Says what the daemon does just now, for `systemctl status`.
pub fn status(status: &str) {
    notify(&format!("STATUS={}", one_line(status)));
}

fn one_line(text: &str) -> String {
    text.replace(['\n', '\r'], " ")
}

fn notify(message: &str) {
    let Some(address) = env::var_os("NOTIFY_SOCKET") else {
        return;
    };
    if let Err(error) = send(address.as_bytes(), message) {
        tracing::warn!(%error, "systemd cannot be told what the daemon does");
    }
}

/// A leading `@` means an abstract address (`sd_notify(3)`).
fn send(address: &[u8], message: &str) -> io::Result<()> {
    let address = match address.strip_prefix(b"@") {
        Some(name) => net::SocketAddr::from_abstract_name(name)?,
        None => net::SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(address))?,
    };
    let socket = net::UnixDatagram::unbound()?;
    socket.connect_addr(&address)?;
    socket.send(message.as_bytes()).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_arrives_at_a_path_and_at_an_abstract_name() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let at_path = net::UnixDatagram::bind(&path).unwrap();
        let name = format!("berth-notify-{}", std::process::id());
        let address = net::SocketAddr::from_abstract_name(&name).unwrap();
        let at_name = net::UnixDatagram::bind_addr(&address).unwrap();

        send(path.as_os_str().as_bytes(), "READY=1").unwrap();
        send(format!("@{name}").as_bytes(), "STOPPING=1").unwrap();

        let mut buffer = [0; 64];
        let length = at_path.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"READY=1");
        let length = at_name.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"STOPPING=1");
    }

    #[test]
    fn a_status_cannot_smuggle_another_variable() {
        assert_eq!(one_line("a\nREADY=1\r"), "a READY=1 ");
    }
}
