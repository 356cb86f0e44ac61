//! The socket: sends a batch, gathers its answers.

use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send,
    socket_with, sockopt,
};

use super::attribute::{Messages, u32_at};
use super::{Batch, Message};

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;

/// Largest datagram the kernel sends for a dump.
const RECEIVE: usize = 64 * 1024;

/// How long the kernel may take to answer, in seconds. Answers are synchronous; this only keeps
/// a bug from hanging the daemon.
const PATIENCE_S: u64 = 20;

/// The kernel refused, or did not answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the kernel refused to {what}")]
pub struct NetlinkError {
    /// The request, in words.
    pub what: String,
    /// Why.
    #[source]
    pub errno: Errno,
}

impl NetlinkError {
    pub(crate) fn new(what: impl Into<String>, errno: Errno) -> Self {
        Self {
            what: what.into(),
            errno,
        }
    }
}

/// A netlink socket. It belongs for ever to the network namespace it was opened in.
#[derive(Debug)]
pub(crate) struct Socket {
    fd: OwnedFd,
    buffer: Vec<u8>,
    /// Sequence number of the batch under way; answers to an abandoned one are skipped by it.
    base: u32,
    next: u32,
}

impl Socket {
    /// Opens a socket for rtnetlink (protocol 0) in the calling thread's network namespace.
    pub(crate) fn route() -> Result<Self, NetlinkError> {
        Self::open(None)
    }

    /// Opens a socket for nfnetlink in the calling thread's network namespace.
    pub(crate) fn netfilter() -> Result<Self, NetlinkError> {
        Self::open(Some(netlink::NETFILTER))
    }

    /// Opens a socket for sock_diag in the calling thread's network namespace.
    pub(crate) fn diagnosis() -> Result<Self, NetlinkError> {
        Self::open(Some(netlink::SOCK_DIAG))
    }

    fn open(protocol: Option<Protocol>) -> Result<Self, NetlinkError> {
        let open = || {
            let fd = socket_with(
                AddressFamily::NETLINK,
                SocketType::RAW,
                SocketFlags::CLOEXEC,
                protocol,
            )?;
            let patience = Some(std::time::Duration::from_secs(PATIENCE_S));
            sockopt::set_socket_timeout(&fd, sockopt::Timeout::Recv, patience)?;
            Ok(fd)
        };
        let fd = open().map_err(|errno| NetlinkError::new("open a netlink socket", errno))?;
        Ok(Self {
            fd,
            buffer: vec![0; RECEIVE],
            base: 0,
            next: 0,
        })
    }

    /// Sends `batch` and waits for every answer.
    ///
    /// # Errors
    /// The first request that failed, by its label; all later ones have been tried too.
    pub(crate) fn run(&mut self, batch: &Batch) -> Result<(), NetlinkError> {
        match self.run_all(batch)?.into_iter().next() {
            None => Ok(()),
            Some((index, errno)) => {
                let label = batch
                    .labels
                    .get(index)
                    .map_or("do something", String::as_str);
                Err(NetlinkError::new(label, errno))
            }
        }
    }

    /// Sends `batch`, waits for every answer, and gives the failures by index.
    pub(crate) fn run_all(&mut self, batch: &Batch) -> Result<Vec<(usize, Errno)>, NetlinkError> {
        let mut failures = Vec::new();
        if batch.labels.is_empty() {
            return Ok(failures);
        }
        self.send(batch)?;
        let mut missing = batch.answers;
        while missing > 0 {
            let length = self.receive(&batch.labels)?;
            for message in Messages(&self.buffer[..length]) {
                let index = message.sequence.wrapping_sub(self.base) as usize;
                if message.kind != NLMSG_ERROR || index >= batch.labels.len() {
                    continue;
                }
                missing = missing.saturating_sub(1);
                let code = u32_at(message.body, 0).unwrap_or(0).cast_signed();
                if code != 0 {
                    failures.push((index, Errno::from_raw_os_error(-code)));
                }
            }
            // A failed nfnetlink batch is answered for its failures only.
            if !failures.is_empty() && batch.labels.len() != batch.answers {
                break;
            }
        }
        failures.sort_by_key(|(index, _)| *index);
        Ok(failures)
    }

    /// Sends one request and hands each answering message's type and body to `each`.
    pub(crate) fn ask(
        &mut self,
        what: &str,
        request: Message,
        mut each: impl FnMut(u16, &[u8]),
    ) -> Result<(), NetlinkError> {
        let mut batch = Batch::default();
        batch.push(what, request);
        self.send(&batch)?;
        loop {
            let length = self.receive(&batch.labels)?;
            for message in Messages(&self.buffer[..length]) {
                match message.kind {
                    _ if message.sequence != self.base => {}
                    NLMSG_DONE => return Ok(()),
                    NLMSG_ERROR => {
                        let code = u32_at(message.body, 0).unwrap_or(0).cast_signed();
                        return match code {
                            0 => Ok(()),
                            _ => Err(NetlinkError::new(what, Errno::from_raw_os_error(-code))),
                        };
                    }
                    kind => each(kind, message.body),
                }
            }
        }
    }

    fn send(&mut self, batch: &Batch) -> Result<(), NetlinkError> {
        self.base = self.next;
        let count = u32::try_from(batch.labels.len()).unwrap_or(u32::MAX);
        self.next = self.base.wrapping_add(count);
        let bytes = batch.encode(self.base);
        send(&self.fd, &bytes, SendFlags::empty())
            .map(|_| ())
            .map_err(|errno| Self::failed(&batch.labels, errno))
    }

    fn receive(&mut self, labels: &[String]) -> Result<usize, NetlinkError> {
        loop {
            match recv(&self.fd, &mut self.buffer[..], RecvFlags::empty()) {
                Ok((length, _)) => return Ok(length),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(Self::failed(labels, errno)),
            }
        }
    }

    fn failed(labels: &[String], errno: Errno) -> NetlinkError {
        NetlinkError::new(labels.first().map_or("answer", String::as_str), errno)
    }
}
