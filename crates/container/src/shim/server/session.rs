//! A session: one process and its three streams, as the shim holds their other ends. The container's
//! own process is one, each exec is one.

use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use rustix::termios::Winsize;

use super::poll::{self, Watched};
use crate::Stdio;
use crate::shim::log::Stream;

/// Input held for a process that does not read; beyond it, clients are not read either.
pub(super) const MAX_INPUT: usize = 64 << 10;
/// How much output is taken at once.
const CHUNK: usize = 64 << 10;
/// A read of less than this is not followed by another one at once.
const SHORT: usize = 1 << 10;

/// One process and its streams.
#[derive(Debug, Default)]
pub(super) struct Session {
    pub(super) pid: i32,
    /// The connection that an exec's streams belong to.
    pub(super) owner: Option<usize>,
    pub(super) input: Option<Input>,
    /// Output and error output.
    pub(super) outputs: [Option<Output>; 2],
    /// The terminal, if it has one.
    console: Option<OwnedFd>,
    /// The terminal's other side, held open; see [`Session::anchor`].
    anchor: Option<OwnedFd>,
    /// How it ended: code and signal.
    pub(super) ended: Option<(i32, Option<i32>)>,
}

/// The end that input goes into.
#[derive(Debug)]
pub(super) struct Input {
    pub(super) fd: OwnedFd,
    pub(super) watched: Watched,
    pub(super) pending: Vec<u8>,
    /// Close when what is pending is written.
    closing: bool,
}

/// The end that output comes out of.
#[derive(Debug)]
pub(super) struct Output {
    pub(super) fd: OwnedFd,
    pub(super) watched: Watched,
}

/// What a read of output gave.
pub(super) enum Taken {
    Data(Vec<u8>),
    Nothing,
    End,
}

/// The process' ends of its streams, to be given away, and ours.
pub(super) struct Pipes {
    pub(super) theirs: Stdio,
    ours: [Option<OwnedFd>; 3],
}

impl Pipes {
    /// Pipes for a process without a terminal; without `stdin`, its input is `/dev/null`.
    pub(super) fn new(stdin: bool) -> Result<Pipes, Errno> {
        let (out_read, out_write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        let (err_read, err_write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        let (input, ours) = if stdin {
            let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
            (read, Some(write))
        } else {
            (null()?, None)
        };
        let theirs = Stdio::Fds([input, out_write, err_write]);
        Ok(Pipes {
            theirs,
            ours: [ours, Some(out_read), Some(err_read)],
        })
    }

    /// `/dev/null` three times: for a detached exec, and for what gets a terminal.
    pub(super) fn none() -> Result<Pipes, Errno> {
        Ok(Pipes {
            theirs: Stdio::Fds([null()?, null()?, null()?]),
            ours: [None, None, None],
        })
    }

    /// Gives the process its ends, and keeps ours.
    pub(super) fn split(self) -> (Stdio, [Option<OwnedFd>; 3]) {
        (self.theirs, self.ours)
    }
}

fn null() -> Result<OwnedFd, Errno> {
    let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CLOEXEC;
    rustix::fs::open("/dev/null", flags, rustix::fs::Mode::empty())
}

impl Session {
    /// A session of `pid` over our ends of its pipes, or its terminal.
    pub(super) fn new(
        pid: i32,
        ours: [Option<OwnedFd>; 3],
        console: Option<OwnedFd>,
    ) -> Result<Session, Errno> {
        let [mut input, mut output, errors] = ours;
        if let Some(console) = &console {
            input = Some(rustix::io::fcntl_dupfd_cloexec(console, 3)?);
            output = Some(rustix::io::fcntl_dupfd_cloexec(console, 3)?);
        }
        for fd in [&input, &output, &errors].into_iter().flatten() {
            poll::nonblocking(fd.as_fd())?;
        }
        let reader = |fd| Output {
            fd,
            watched: Watched::default(),
        };
        Ok(Session {
            pid,
            owner: None,
            input: input.map(|fd| Input {
                fd,
                watched: Watched::default(),
                pending: Vec::new(),
                closing: false,
            }),
            outputs: [output.map(reader), errors.map(reader)],
            console,
            anchor: None,
            ended: None,
        })
    }

    /// Keeps the terminal alive while nobody uses it, until [`Session::end`]: an init closes its
    /// console and opens it again as it likes.
    pub(super) fn anchor(&mut self) -> Result<(), Errno> {
        use rustix::pty::OpenptFlags;
        if let Some(console) = &self.console {
            let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
            self.anchor = Some(rustix::pty::ioctl_tiocgptpeer(console, flags)?);
        }
        Ok(())
    }

    /// Notes how the process ended. What it wrote can still be read.
    pub(super) fn end(&mut self, code: i32, signal: Option<i32>) {
        self.ended = Some((code, signal));
        self.anchor = None;
    }

    /// Whether the process has a terminal.
    pub(super) fn has_terminal(&self) -> bool {
        self.console.is_some()
    }

    /// Sets the terminal's size.
    pub(super) fn resize(&self, rows: u16, cols: u16) -> Result<(), Errno> {
        let size = Winsize {
            ws_row: rows,
            ws_col: cols,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        match &self.console {
            Some(console) => rustix::termios::tcsetwinsize(console, size),
            None => Err(Errno::NOTTY),
        }
    }

    /// Takes input from a client; what nobody can read any more is dropped.
    pub(super) fn feed(&mut self, data: &[u8]) {
        if let Some(input) = &mut self.input
            && !input.closing
        {
            input.pending.extend_from_slice(data);
        }
        self.flush_input();
    }

    /// No more input. A terminal stays open: its end is a character that the client sends.
    pub(super) fn end_input(&mut self) {
        if !self.has_terminal()
            && let Some(input) = &mut self.input
        {
            input.closing = true;
        }
        self.flush_input();
    }

    /// Writes what the process takes.
    pub(super) fn flush_input(&mut self) {
        let Some(input) = &mut self.input else { return };
        while !input.pending.is_empty() {
            match rustix::io::write(&input.fd, &input.pending) {
                Ok(n) => drop(input.pending.drain(..n)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                // Nobody reads any more. A terminal may find another reader.
                Err(_) if self.console.is_some() => {
                    input.pending = Vec::new();
                    return;
                }
                Err(_) => {
                    self.input = None;
                    return;
                }
            }
        }
        input.pending = Vec::new();
        if input.closing {
            self.input = None;
        }
    }

    /// Whether clients may send more input.
    pub(super) fn takes_input(&self) -> bool {
        self.input
            .as_ref()
            .is_none_or(|input| input.pending.len() < MAX_INPUT)
    }

    /// Reads what is there of output `n` (0 output, 1 error output), up to [`CHUNK`] bytes. Small
    /// writes of a busy program are gathered, since each piece costs a write to the log.
    pub(super) fn take(&mut self, n: usize) -> Taken {
        let Some(output) = &self.outputs[n] else {
            return Taken::End;
        };
        let mut data = Vec::with_capacity(CHUNK);
        let ended = loop {
            let before = data.len();
            match rustix::io::read(&output.fd, rustix::buffer::spare_capacity(&mut data)) {
                Ok(0) => break true,
                // A short piece is all there was; a terminal gives one line at a time.
                Ok(_) if data.len() - before < SHORT || data.len() == CHUNK => break false,
                Ok(_) | Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break false,
                // EIO is a terminal whose last user is gone.
                Err(_) => break true,
            }
        };
        match (data.is_empty(), ended) {
            // The end is met again by the next read.
            (false, _) => Taken::Data(data),
            (true, false) => Taken::Nothing,
            (true, true) => {
                match self.has_terminal() {
                    // All of it: its descriptors are copies of one, which epoll would go on
                    // watching for as long as any of them is open.
                    true => self.hang_up(),
                    false => self.outputs[n] = None,
                }
                Taken::End
            }
        }
    }

    /// Closes the terminal: who still uses it gets SIGHUP.
    pub(super) fn hang_up(&mut self) {
        self.input = None;
        self.console = None;
        self.outputs = [None, None];
    }

    /// Whether all is over: the process ended and its output was read to the end.
    pub(super) fn is_over(&self) -> bool {
        self.ended.is_some() && self.outputs.iter().all(Option::is_none)
    }
}

/// The stream of output `n`.
pub(super) fn stream_of(n: usize) -> Stream {
    if n == 0 {
        Stream::Stdout
    } else {
        Stream::Stderr
    }
}
