//! The agent's second life: answering its host.
//!
//! Listens on vsock and, where there is one, on a console port of its name; one thread a connection,
//! a bounded number of them. See [`agent::protocol`] for what is said.

pub mod application;
mod connection;
mod disk;
mod files;
pub mod notice;
pub mod power;
mod session;
mod usage;

use std::{
    fs::{self, File},
    path::PathBuf,
    process::ExitCode,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use crate::{console::say, vsock};

/// More connections than this at once are closed at once.
const MAX_CONNECTIONS: usize = 128;

static CONNECTIONS: AtomicUsize = AtomicUsize::new(0);

/// Serves until the guest ends.
pub fn run() -> ExitCode {
    thread::spawn(use_whole_disk);
    if let Some(port) = console_port() {
        thread::spawn(move || serve_port(&port));
    }
    let listener = match vsock::Listener::bind(agent::AGENT_PORT) {
        Ok(listener) => listener,
        Err(error) => {
            say(&format!("no vsock to listen on: {error}"));
            loop {
                thread::park();
            }
        }
    };
    loop {
        match listener.accept() {
            Ok(stream) => serve_stream(stream),
            Err(error) => {
                say(&format!("cannot take a connection: {error}"));
                thread::sleep(Duration::from_millis(100));
            }
        }
    }
}

/// Grows the root file system to its disk, which may have become larger since the last boot; in the
/// background, for nobody waits for the room.
pub fn use_whole_disk() {
    use std::io::ErrorKind;
    match disk::grow_root() {
        // Nothing that could grow.
        Err(error)
            if matches!(
                error.kind(),
                ErrorKind::Unsupported | ErrorKind::ReadOnlyFilesystem
            ) => {}
        Err(error) => say(&format!("the root file system cannot grow: {error}")),
        Ok(()) => {}
    }
}

fn serve_stream(stream: File) {
    if CONNECTIONS.fetch_add(1, Ordering::Relaxed) >= MAX_CONNECTIONS {
        CONNECTIONS.fetch_sub(1, Ordering::Relaxed);
        return;
    }
    let serve = move || {
        connection::serve(&stream);
        CONNECTIONS.fetch_sub(1, Ordering::Relaxed);
    };
    if let Err(error) = thread::Builder::new().spawn(serve) {
        CONNECTIONS.fetch_sub(1, Ordering::Relaxed);
        say(&format!("cannot serve a connection: {error}"));
    }
}

/// The device of the virtio-console port of the agent's name.
fn console_port() -> Option<PathBuf> {
    let ports = fs::read_dir("/sys/class/virtio-ports").ok()?;
    ports.flatten().find_map(|port| {
        let name = fs::read_to_string(port.path().join("name")).ok()?;
        let ours = name.trim() == agent::CONSOLE_PORT_NAME;
        ours.then(|| PathBuf::from("/dev").join(port.file_name()))
    })
}

/// A port is opened once and has one host at a time: requests come one after the other, and the end of
/// the stream only means that nobody is at the other side now.
fn serve_port(path: &PathBuf) {
    let stream = match File::options().read(true).write(true).open(path) {
        Ok(stream) => stream,
        Err(error) => {
            say(&format!("cannot open {}: {error}", path.display()));
            return;
        }
    };
    loop {
        connection::serve(&stream);
        thread::sleep(Duration::from_millis(20));
    }
}
