//! The conversation between the runtime and the process that becomes the container.
//!
//! One `SOCK_SEQPACKET` pair per container or `exec`: whole messages, no framing, end of file when the
//! other side is gone. The child's end is closed by `execve`, so end of file after the child was told
//! to go means that the user's program runs.
//!
//! ```text
//!  parent                             child
//!    │ ◄── Successor (pidfd) ──────────  │   only with new namespaces in a user namespace that exists:
//!    │                                   │   from here on the child is that process
//!    │ ── Mapped (fds: detached roots) ─►│   only with a new user namespace
//!    │ ◄── Mounted ────────────────────  │   only with hooks of the runtime's side
//!    │ ── Hooked ──────────────────────► │
//!    │ ◄── Console (fd) ───────────────  │   only with a terminal
//!    │ ◄── Ready ──────────────────────  │
//!    │ ── Go ──────────────────────────► │   state is recorded; on end of file the child leaves;
//!    │                                   │   said ahead, and found waiting, when nobody calls `start`
//!    │ ◄── Listener (fd) ──────────────  │   only with a seccomp listener
//!    │ ◄── Failed (errno, text) / EOF ─  │   Unrunnable if it is the user's program that cannot be run
//! ```

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::{Errno, IoSlice, IoSliceMut};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};

use crate::error::{Context, Failure, Step};

/// Longest text of a failure.
const MAX_TEXT: usize = 4000;

/// One end of the conversation.
#[derive(Debug)]
pub(crate) struct Channel(pub OwnedFd);

/// What is said; the numbers go over the wire between two copies of the same program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Word {
    Mapped = 1,
    Mounted,
    Hooked,
    Console,
    Ready,
    Go,
    Listener,
    Failed,
    Unrunnable,
    Successor,
}

impl Word {
    const ALL: [Word; 10] = [
        Word::Mapped,
        Word::Mounted,
        Word::Hooked,
        Word::Console,
        Word::Ready,
        Word::Go,
        Word::Listener,
        Word::Failed,
        Word::Unrunnable,
        Word::Successor,
    ];
}

/// A received message.
#[derive(Debug)]
pub(crate) enum Heard {
    /// A word, with a descriptor if one came along.
    Word(Word, Vec<OwnedFd>),
    /// The child failed.
    Failed(Failure),
    /// The other side is gone.
    End,
}

impl Channel {
    /// Both ends.
    pub(crate) fn pair() -> Step<(Channel, Channel)> {
        let (a, b) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .ctx("cannot make a socket pair")?;
        Ok((Channel(a), Channel(b)))
    }

    /// Says a word.
    pub(crate) fn say(&self, word: Word) -> Step<()> {
        self.send(&[word as u8])
    }

    fn send(&self, bytes: &[u8]) -> Step<()> {
        rustix::io::retry_on_intr(|| rustix::net::send(&self.0, bytes, SendFlags::NOSIGNAL))
            .map(drop)
            .map_err(|errno| self.last_words(errno))
    }

    /// Why nothing could be said: what the other side reported on its way out, if it did.
    fn last_words(&self, errno: Errno) -> Failure {
        if matches!(errno, Errno::PIPE | Errno::CONNRESET) {
            // What it said before that is of no use any more.
            let last = std::iter::repeat_with(|| self.hear())
                .find(|heard| !matches!(heard, Ok(Heard::Word(..))));
            if let Some(Ok(Heard::Failed(failure))) = last {
                return failure;
            }
        }
        Failure {
            what: "the other side of the container's set-up is gone".into(),
            source: errno.into(),
            program: false,
        }
    }

    /// Says a word and hands over descriptors.
    pub(crate) fn say_with(&self, word: Word, fds: &[BorrowedFd<'_>]) -> Step<()> {
        let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(Failure::new(
                "cannot hand over descriptors",
                "more than 253 of them",
            ));
        }
        let bytes = [word as u8];
        let data = [IoSlice::new(&bytes)];
        rustix::io::retry_on_intr(|| {
            rustix::net::sendmsg(&self.0, &data, &mut control, SendFlags::NOSIGNAL)
        })
        .map(drop)
        .map_err(|errno| self.last_words(errno))
    }

    /// Reports a failure; used by the child on its way out, so failing to report is ignored.
    pub(crate) fn fail(&self, failure: &Failure) {
        let errno = failure.source.raw_os_error().unwrap_or(0);
        let mut text = failure.what.to_string();
        if errno == 0 {
            text.push_str(": ");
            text.push_str(&crate::error::chain(&failure.source));
        }
        let _ = self.send(&message(kind(failure.program), errno, &text));
    }

    /// Waits for the next message.
    pub(crate) fn hear(&self) -> Step<Heard> {
        let mut bytes = [0u8; MAX_TEXT + 8];
        let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut receive = || {
            rustix::io::retry_on_intr(|| {
                rustix::net::recvmsg(
                    &self.0,
                    &mut [IoSliceMut::new(&mut bytes)],
                    &mut control,
                    RecvFlags::CMSG_CLOEXEC,
                )
            })
        };
        // A side that left without reading everything is reported once, ahead of what it said last.
        let got = match receive() {
            Err(Errno::CONNRESET) => receive(),
            other => other,
        };
        let len = match got {
            Ok(message) => message.bytes,
            Err(Errno::CONNRESET) => 0,
            Err(errno) => return Err(errno).ctx("cannot hear from the container's set-up"),
        };
        let fds: Vec<OwnedFd> = control
            .drain()
            .filter_map(|message| match message {
                RecvAncillaryMessage::ScmRights(fds) => Some(fds),
                _ => None,
            })
            .flatten()
            .collect();
        Ok(parse(&bytes[..len], fds))
    }

    /// Waits for exactly this word and returns its descriptors; for the child, which leaves when the
    /// parent is gone.
    pub(crate) fn expect(&self, word: Word) -> Step<Vec<OwnedFd>> {
        match self.hear()? {
            Heard::Word(heard, fds) if heard == word => Ok(fds),
            _ => Err(Failure::new(
                "the runtime went away during set-up",
                "no instruction came",
            )),
        }
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The report of a failed step, for a process that can only fill in the errno (bytes 1 to 4).
pub(crate) fn failure(what: &str, program: bool) -> Vec<u8> {
    message(kind(program), 0, what)
}

fn kind(program: bool) -> Word {
    if program {
        Word::Unrunnable
    } else {
        Word::Failed
    }
}

fn message(word: Word, errno: i32, text: &str) -> Vec<u8> {
    let mut bytes = vec![word as u8];
    bytes.extend_from_slice(&errno.to_le_bytes());
    bytes.extend_from_slice(&text.as_bytes()[..text.len().min(MAX_TEXT)]);
    bytes
}

fn parse(bytes: &[u8], fds: Vec<OwnedFd>) -> Heard {
    let Some(&first) = bytes.first() else {
        return Heard::End;
    };
    let text = || String::from_utf8_lossy(bytes.get(5..).unwrap_or_default()).into_owned();
    match Word::ALL.into_iter().find(|word| *word as u8 == first) {
        Some(word @ (Word::Failed | Word::Unrunnable)) => {
            let errno = bytes
                .get(1..5)
                .and_then(|b| b.try_into().ok())
                .map_or(0, i32::from_le_bytes);
            let failure = if errno == 0 {
                let text = text();
                let (what, why) = text.split_once(": ").unwrap_or((&text, "no reason given"));
                Failure::new(what.to_owned(), why)
            } else {
                Failure {
                    what: text().into(),
                    source: io::Error::from_raw_os_error(errno),
                    program: false,
                }
            };
            Heard::Failed(Failure {
                program: word == Word::Unrunnable,
                ..failure
            })
        }
        Some(word) => Heard::Word(word, fds),
        None => Heard::End,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_words_are_heard_though_a_word_ahead_was_never_read() {
        let (parent, child) = Channel::pair().unwrap();
        parent.say(Word::Go).unwrap();
        child.fail(&Failure::new("cannot mount", "no"));
        drop(child);
        assert!(matches!(parent.hear().unwrap(), Heard::Failed(_)));
        assert!(matches!(parent.hear().unwrap(), Heard::End));
    }

    #[test]
    fn who_speaks_to_a_side_that_failed_gets_its_last_words() {
        let (parent, child) = Channel::pair().unwrap();
        child.say(Word::Ready).unwrap();
        child.fail(&Failure::new("cannot enter the control group", "gone"));
        drop(child);
        let heard = parent.say_with(Word::Mapped, &[]).unwrap_err();
        assert_eq!(heard.what, "cannot enter the control group");
        let silent = parent.say(Word::Go).unwrap_err();
        assert_eq!(silent.errno(), Some(Errno::PIPE));
    }

    #[test]
    fn failures_keep_their_errno_and_words() {
        let (a, b) = Channel::pair().unwrap();
        a.fail(&Failure {
            what: "x".into(),
            source: io::Error::from_raw_os_error(libc::EPERM),
            program: false,
        });
        a.fail(&Failure::new("cannot mount", "it is: odd"));
        a.say(Word::Ready).unwrap();
        drop(a);
        let texts: Vec<String> = (0..4)
            .map(|_| match b.hear().unwrap() {
                Heard::Failed(failure) => crate::error::chain(&failure),
                other => format!("{other:?}"),
            })
            .collect();
        assert_eq!(
            texts,
            [
                "x: Operation not permitted (os error 1)",
                "cannot mount: it is: odd",
                "Word(Ready, [])",
                "End"
            ]
        );
    }
}
