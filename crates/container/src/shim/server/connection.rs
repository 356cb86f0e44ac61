//! A client's connection: bytes in, frames out, within bounds.

use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};
use serde::Serialize;

use super::poll::Watched;
use crate::shim::log::Stream;
use crate::shim::protocol::{self, Decoder, ErrorCode, Failure, Kind, Reply};

/// Frames held for a client that does not read. A slow attacher is dropped at this, in bytes.
pub(super) const MAX_BEHIND: usize = 1 << 20;
/// At this, in bytes, a source that may be held back is held back.
pub(super) const HOLD_BACK: usize = 256 << 10;

/// How long a client may take to read what is left when the container is over.
const LINGER: Duration = Duration::from_secs(3);
/// The same for one whose output has to be complete: somebody may page through it.
const LINGER_LOSSLESS: Duration = Duration::from_secs(600);

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// Nothing yet: the client has not said hello.
    New,
    /// Requests and replies.
    Control,
    /// Waiting for the container's end.
    Waiting,
    /// A stream of the session.
    Stream {
        session: usize,
        stdin: bool,
        lossless: bool,
        end_at_once: bool,
    },
}

/// A client's connection.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) fd: OwnedFd,
    pub(super) watched: Watched,
    pub(super) role: Role,
    pub(super) decoder: Decoder,
    out: Vec<u8>,
    /// Bytes of `out` that were sent.
    sent: usize,
    /// Close when `out` is sent.
    pub(super) closing: bool,
    /// The peer is gone.
    pub(super) dead: bool,
}

impl Connection {
    pub(super) fn new(fd: OwnedFd) -> Connection {
        Connection {
            fd,
            watched: Watched::default(),
            role: Role::New,
            decoder: Decoder::default(),
            out: Vec::new(),
            sent: 0,
            closing: false,
            dead: false,
        }
    }

    /// Bytes the client has yet to read.
    pub(super) fn behind(&self) -> usize {
        self.out.len() - self.sent
    }

    /// How long the shim stays for this client when all is over.
    pub(super) fn patience(&self) -> Duration {
        match self.role {
            Role::Stream { lossless: true, .. } => LINGER_LOSSLESS,
            _ => LINGER,
        }
    }

    /// Whether nothing is left to do.
    pub(super) fn is_done(&self) -> bool {
        self.dead || (self.closing && self.behind() == 0)
    }

    /// Queues a message and sends what goes.
    pub(super) fn say<T: Serialize>(&mut self, message: &T) {
        if protocol::encode_message(message, &mut self.out).is_err() {
            // Only an answer of more than 1 MiB gets here, and there is none.
            self.closing = true;
        }
        if self.behind() > MAX_BEHIND + protocol::MAX_MESSAGE {
            // A client that asks and asks and never reads.
            self.dead = true;
        }
        self.flush();
    }

    /// Queues a refusal.
    pub(super) fn refuse(&mut self, code: ErrorCode, message: impl Into<String>) {
        self.say(&Reply::Error(Failure {
            code,
            message: message.into(),
        }));
    }

    /// Queues output. A client that is too far behind is told so and dropped, unless it is one
    /// that output waits for.
    pub(super) fn output(&mut self, stream: Stream, data: &[u8], may_drop: bool) {
        if self.closing || self.dead {
            return;
        }
        self.flush();
        if may_drop && self.behind() + data.len() > MAX_BEHIND {
            let message = "the client read the container's output too slowly and was detached; \
                           the log has all of it";
            self.refuse(ErrorCode::Slow, message);
            self.closing = true;
            return;
        }
        let kind = match stream {
            Stream::Stdout => Kind::Stdout,
            Stream::Stderr => Kind::Stderr,
        };
        protocol::encode(kind, data, &mut self.out);
        self.flush();
    }

    /// Sends what the client takes.
    pub(super) fn flush(&mut self) {
        while self.sent < self.out.len() {
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            match rustix::net::send(&self.fd, &self.out[self.sent..], flags) {
                Ok(n) => self.sent += n,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(_) => {
                    self.dead = true;
                    break;
                }
            }
        }
        if self.sent == self.out.len() {
            self.out = Vec::new();
            self.sent = 0;
        } else if self.sent > HOLD_BACK {
            self.out.drain(..self.sent);
            self.sent = 0;
        }
    }

    /// Reads what came; marks the connection dead at its end.
    pub(super) fn fill(&mut self) {
        let mut buffer = [0u8; 8 << 10];
        match rustix::net::recv(&self.fd, &mut buffer[..], RecvFlags::DONTWAIT) {
            Ok((0, _)) => self.dead = true,
            Ok((n, _)) => self.decoder.push(&buffer[..n]),
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(_) => self.dead = true,
        }
    }
}
