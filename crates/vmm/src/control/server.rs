//! The server: one thread around `poll`.

use std::{
    io::{self, Read},
    os::{
        fd::AsFd,
        unix::net::{UnixListener, UnixStream},
    },
    sync::{Mutex, PoisonError, mpsc},
};

use rustix::event::{PollFd, PollFlags, poll};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::protocol::{Event, Reply, Request, VERSION, decode, encode};
use crate::outbox::{Outbox, borrow};

const MAX_CLIENTS: usize = 32;
/// How far behind a client may be.
const BACKLOG_BYTES: usize = 1 << 20;

/// What can be commanded.
pub trait Commands {
    /// Name, for [`Reply::Welcome`].
    fn name(&self) -> &str;

    /// Does it, and answers. Never called with [`Request::Hello`] or [`Request::Subscribe`].
    fn call(&mut self, request: &Request) -> Reply;
}

/// Where events go in, from any thread.
#[derive(Debug)]
pub struct Events {
    sender: Mutex<mpsc::Sender<Event>>,
    wake: EventFd,
}

/// Where they come out, for [`serve`].
#[derive(Debug)]
pub struct EventSource {
    receiver: mpsc::Receiver<Event>,
    wake: EventFd,
}

impl Events {
    /// Both ends.
    ///
    /// # Errors
    /// When the kernel gives no eventfd.
    pub fn new() -> io::Result<(Self, EventSource)> {
        let wake = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        let (sender, receiver) = mpsc::channel();
        let source = EventSource {
            receiver,
            wake: wake.try_clone()?,
        };
        let sender = Mutex::new(sender);
        Ok((Self { sender, wake }, source))
    }

    /// Tells all who subscribed. Never waits.
    pub fn send(&self, event: Event) {
        let sender = self.sender.lock().unwrap_or_else(PoisonError::into_inner);
        // Both fail only when nobody serves any more.
        let _gone = sender.send(event);
        let _gone = self.wake.write(1);
    }
}

struct Client {
    stream: UnixStream,
    received: Vec<u8>,
    outbox: Outbox,
    greeted: bool,
    subscribed: bool,
}

/// Serves until [`Event::Stopped`] comes, and all have been told as far as they listen.
pub fn serve(listener: Option<&UnixListener>, source: &EventSource, commands: &mut dyn Commands) {
    let mut clients: Vec<Client> = Vec::new();
    if let Some(listener) = listener {
        // Without it `accept` could wait for a client that has left.
        let _kept = listener.set_nonblocking(true);
    }
    loop {
        let stopped = pass_on(source, &mut clients);
        clients.retain_mut(|client| client.serve(commands).is_ok());
        if stopped {
            return;
        }
        wait(listener, source, &clients);
        if let Some(Ok((stream, _))) = listener.map(UnixListener::accept)
            && clients.len() < MAX_CLIENTS
            && stream.set_nonblocking(true).is_ok()
        {
            clients.push(Client::new(stream));
        }
    }
}

/// Tells subscribers what happened; whether it is over.
fn pass_on(source: &EventSource, clients: &mut [Client]) -> bool {
    let _level = source.wake.read();
    let mut stopped = false;
    for event in source.receiver.try_iter() {
        stopped |= matches!(event, Event::Stopped { .. });
        let reply = Reply::Event(event);
        for client in clients.iter_mut().filter(|it| it.subscribed) {
            client.send(&reply);
        }
    }
    stopped
}

fn wait(listener: Option<&UnixListener>, source: &EventSource, clients: &[Client]) {
    let mut fds = vec![PollFd::from_borrowed_fd(
        borrow(&source.wake),
        PollFlags::IN,
    )];
    fds.extend(listener.map(|it| PollFd::new(it, PollFlags::IN)));
    for client in clients {
        let mut events = PollFlags::IN;
        if !client.outbox.is_empty() {
            events |= PollFlags::OUT;
        }
        fds.push(PollFd::from_borrowed_fd(client.stream.as_fd(), events));
    }
    // Interrupted or out of memory: look around and try again.
    let _count = poll(&mut fds, None);
}

impl Client {
    fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            received: Vec::new(),
            outbox: Outbox::new(BACKLOG_BYTES),
            greeted: false,
            subscribed: false,
        }
    }

    fn send(&mut self, reply: &Reply) {
        if let Ok(bytes) = encode(reply) {
            self.outbox.push(&bytes);
        }
    }

    /// Reads, answers, writes.
    ///
    /// # Errors
    /// When the client is gone, or to be dropped.
    fn serve(&mut self, commands: &mut dyn Commands) -> io::Result<()> {
        let mut data = [0; 4096];
        match (&self.stream).read(&mut data) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => self.received.extend_from_slice(&data[..count]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        while let Some(request) = decode(&mut self.received).map_err(io::Error::other)? {
            let reply = self.answer(&request, commands);
            self.send(&reply);
        }
        self.outbox.flush(&self.stream)
    }

    fn answer(&mut self, request: &Request, commands: &mut dyn Commands) -> Reply {
        match request {
            Request::Hello { version } => {
                self.greeted = *version == VERSION;
                Reply::Welcome {
                    version: VERSION,
                    name: commands.name().to_owned(),
                }
            }
            _ if !self.greeted => Reply::Error {
                message: format!("say hello first, in version {VERSION}"),
            },
            Request::Subscribe => {
                self.subscribed = true;
                Reply::Ok
            }
            request => commands.call(request),
        }
    }
}
