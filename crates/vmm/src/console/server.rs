//! The console thread: a loop around `poll`.

use std::{
    io::{self, Read},
    net::Shutdown,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::{UnixListener, UnixStream},
    },
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{BACKLOG_BYTES, HISTORY_BYTES, Input, Log, MAX_CLIENTS, Output, ring::Ring};
use crate::outbox::Outbox;

/// Typed bytes that the guest has not taken yet; beyond, the client waits.
const TYPED_BYTES: usize = 4096;
/// How soon typed bytes are offered to the guest again.
const RETRY: Duration = Duration::from_millis(10);
/// How long clients are given to read what there is when all is over.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Somebody attached.
struct Client {
    stream: UnixStream,
    outbox: Outbox,
    /// It reads no more. What it had typed before is still to be read.
    left: bool,
}

/// What the thread works with.
pub struct Console {
    /// Where output comes from.
    pub output: Output,
    /// Where input goes.
    pub input: Input,
    /// What keeps the output.
    pub log: Option<Log>,
    /// Where clients come from.
    pub listener: Option<UnixListener>,
    /// Who is attached from the start.
    pub attached: Vec<UnixStream>,
}

/// The thread that serves it.
pub struct Running {
    thread: JoinHandle<()>,
    output: Output,
    over: Arc<AtomicBool>,
}

impl Running {
    /// Passes on what was put out, and ends the thread.
    pub fn finish(self) {
        self.over.store(true, Ordering::SeqCst);
        self.output.wake();
        // A panic of it was printed already, and there is nobody else to tell.
        let _panicked = self.thread.join();
    }
}

impl Console {
    /// Starts the thread; `prepare` runs first on it.
    ///
    /// # Errors
    /// When the kernel gives no thread.
    pub fn spawn(self, prepare: impl FnOnce() + Send + 'static) -> io::Result<Running> {
        let over = Arc::new(AtomicBool::new(false));
        let output = self.output.clone();
        let mut serving = Serving::new(self, Arc::clone(&over))?;
        let thread = thread::Builder::new()
            .name("console".into())
            .spawn(move || {
                prepare();
                serving.run();
            })?;
        Ok(Running {
            thread,
            output,
            over,
        })
    }
}

/// Whether the other side is closed, also while what it sent is still to be read.
fn hung_up(stream: &UnixStream) -> bool {
    let mut fds = [PollFd::new(stream, PollFlags::empty())];
    poll(&mut fds, Some(&Timespec::default())).is_ok_and(|count| count > 0)
}

struct Serving {
    console: Console,
    over: Arc<AtomicBool>,
    history: Ring,
    clients: Vec<Client>,
    /// Number of the client that types.
    typist: Option<usize>,
    typed: Vec<u8>,
}

impl Serving {
    fn new(mut console: Console, over: Arc<AtomicBool>) -> io::Result<Self> {
        let mut history = Ring::new(HISTORY_BYTES);
        if let Some(log) = &mut console.log {
            history.push(&log.tail(HISTORY_BYTES as u64));
        }
        if let Some(listener) = &console.listener {
            listener.set_nonblocking(true)?;
        }
        let attached = std::mem::take(&mut console.attached);
        let mut serving = Self {
            console,
            over,
            history,
            clients: Vec::new(),
            typist: None,
            typed: Vec::new(),
        };
        for stream in attached {
            serving.attach(stream)?;
        }
        Ok(serving)
    }

    fn run(&mut self) {
        loop {
            // Read before taking: what comes later signals again.
            let over = self.over.load(Ordering::SeqCst);
            let output = self.console.output.take();
            self.put_out(&output);
            self.type_in();
            if over {
                self.say_last_words();
                return;
            }
            if self.wait().is_err() {
                // Out of memory for `poll`; nothing else can fail.
                thread::sleep(RETRY);
            }
            self.accept();
            self.serve();
        }
    }

    fn say_last_words(&mut self) {
        let deadline = Instant::now() + LAST_WORDS;
        loop {
            self.serve();
            let behind = self.clients.iter().filter(|it| !it.outbox.is_empty());
            let mut fds: Vec<_> = behind
                .map(|it| PollFd::new(&it.stream, PollFlags::OUT))
                .collect();
            let left = deadline.saturating_duration_since(Instant::now());
            let patience = Timespec::try_from(left).expect("a second is a time");
            if fds.is_empty() || matches!(poll(&mut fds, Some(&patience)), Ok(0)) {
                return;
            }
        }
    }

    fn put_out(&mut self, output: &[u8]) {
        if output.is_empty() {
            return;
        }
        self.history.push(output);
        if let Some(log) = &mut self.console.log {
            log.write(output);
        }
        for client in self.clients.iter_mut().filter(|it| !it.left) {
            client.outbox.push(output);
        }
        self.serve();
    }

    /// Offers the guest what was typed.
    fn type_in(&mut self) {
        if !self.typed.is_empty() {
            let taken = (self.console.input)(&self.typed).min(self.typed.len());
            self.typed.drain(..taken);
        }
    }

    fn wait(&self) -> io::Result<()> {
        let wake: BorrowedFd<'_> = crate::outbox::borrow(&self.console.output.0.wake);
        let mut fds = vec![PollFd::from_borrowed_fd(wake, PollFlags::IN)];
        if let Some(listener) = &self.console.listener {
            fds.push(PollFd::new(listener, PollFlags::IN));
        }
        for (index, client) in self.clients.iter().enumerate() {
            let mut events = PollFlags::empty();
            if self.reads(index) {
                events |= PollFlags::IN;
            }
            if !client.outbox.is_empty() {
                events |= PollFlags::OUT;
            }
            // One of whom nothing is wanted now would be told of for ever, once it has hung up.
            if !events.is_empty() {
                fds.push(PollFd::from_borrowed_fd(client.stream.as_fd(), events));
            }
        }
        let retry = Timespec::try_from(RETRY).expect("10 ms is a time");
        let timeout = (!self.typed.is_empty()).then_some(&retry);
        match poll(&mut fds, timeout) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn accept(&mut self) {
        let Some(listener) = &self.console.listener else {
            return;
        };
        if let Ok((stream, _)) = listener.accept()
            && self.clients.len() < MAX_CLIENTS
        {
            // A client that cannot be served is closed by being dropped.
            let _refused = self.attach(stream);
        }
    }

    fn attach(&mut self, stream: UnixStream) -> io::Result<()> {
        stream.set_nonblocking(true)?;
        let mut outbox = Outbox::new(BACKLOG_BYTES);
        outbox.push(&self.history.contents());
        self.clients.push(Client {
            stream,
            outbox,
            left: false,
        });
        Ok(())
    }

    /// Writes and reads what can be; drops who left or is too far behind.
    fn serve(&mut self) {
        let mut index = 0;
        while index < self.clients.len() {
            if self.serve_one(index) {
                index += 1;
                continue;
            }
            let client = self.clients.remove(index);
            // Who holds the other end learns it also where the supervisor has ours too.
            let _gone = client.stream.shutdown(Shutdown::Both);
            self.typist = match self.typist {
                Some(typist) if typist == index => None,
                Some(typist) if typist > index => Some(typist - 1),
                other => other,
            };
        }
    }

    /// Whether what a client sends can be taken now: typed bytes wait for the guest, and the next who
    /// types waits for what the last one left behind.
    fn reads(&self, index: usize) -> bool {
        match self.typist {
            Some(typist) if typist != index => !hung_up(&self.clients[typist].stream),
            _ => self.typed.len() < TYPED_BYTES,
        }
    }

    /// Whether the client stays.
    fn serve_one(&mut self, index: usize) -> bool {
        let client = &mut self.clients[index];
        if !client.left && client.outbox.flush(&client.stream).is_err() {
            if client.outbox.is_overflown() {
                return false;
            }
            // Somebody who types and leaves at once, as scripts do.
            client.left = true;
            client.outbox.clear();
        }
        if !self.reads(index) {
            return true;
        }
        let types = self.typist.is_none_or(|it| it == index);
        let mut data = [0; 1024];
        match (&self.clients[index].stream).read(&mut data) {
            Ok(0) => false,
            Ok(count) => {
                if types {
                    self.typist = Some(index);
                    self.typed.extend_from_slice(&data[..count]);
                    self.type_in();
                }
                true
            }
            Err(error) => matches!(
                error.kind(),
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
            ),
        }
    }
}
