//! A session with a program inside: our terminal or pipes on one side, an attach or exec stream
//! on the other.
//!
//! Input and output move independently, so that neither side's full buffer stops the other. The
//! terminal is raw only while a session with a terminal lasts.

use std::io::Read;

use api::{
    ErrorCode,
    client::{Session, SessionInput, SessionOutput, StreamEvent},
};
use tokio::{
    io::{AsyncWrite, AsyncWriteExt},
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
};

use super::{
    Context,
    exit::{Failure, Outcome, of},
    term::{self, DetachKeys, DetachScanner, RawMode},
};

/// How input is read and sent at most at once.
const CHUNK: usize = 32 << 10;

/// What the session is like.
pub struct Options<'a> {
    /// Whether the program has a terminal, and ours is to be lent to it.
    pub terminal: bool,
    /// Whether our input goes to it.
    pub stdin: bool,
    /// Keys that leave it.
    pub detach_keys: &'a DetachKeys,
}

/// How a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// The program ended with a code.
    Exited(i32),
    /// The user left; the program goes on.
    Detached,
    /// The daemon went away without saying how the program ended.
    Lost,
}

/// Our side of sessions: the terminal lent, what is typed, signals. Outlives a connection, so that
/// a session that was lost can be gone on with.
pub struct Ours {
    lend: bool,
    sender: Sender,
}

/// Runs a session to its end.
pub async fn run(cx: &Context, session: Session, options: &Options<'_>) -> Outcome<Ended> {
    Ours::new(cx, options)?.talk(cx, session).await
}

impl Ours {
    /// Takes signals over, and input if the program has any.
    pub fn new(cx: &Context, options: &Options<'_>) -> Outcome<Self> {
        Ok(Self {
            lend: options.terminal && options.stdin && cx.in_is_terminal,
            sender: Sender {
                signals: Signals::new()?,
                typed: options.stdin.then(read_stdin),
                scanner: (options.terminal && options.stdin)
                    .then(|| DetachScanner::new(options.detach_keys)),
                terminal: options.terminal,
                interrupts: 0,
            },
        })
    }

    /// Whether there is more input to come.
    pub fn has_input(&self) -> bool {
        self.sender.typed.is_some()
    }

    /// Talks until the session ends.
    pub async fn talk(&mut self, cx: &Context, session: Session) -> Outcome<Ended> {
        let raw = self.lend.then(RawMode::enter).transpose()?;
        let Session {
            mut input,
            mut output,
        } = session;
        let ended = tokio::select! {
            ended = receive(&mut output) => ended,
            ended = self.sender.run(cx, &mut input) => match ended {
                Ok(()) => Ok(Ended::Detached),
                // The connection broke while sending; what was received until then says more.
                Err(_) => receive(&mut output).await,
            },
        };
        // Before anything else is printed.
        drop(raw);
        if matches!(ended, Ok(Ended::Detached)) {
            // The program inside left the cursor where it pleased.
            cx.say("");
            // Best effort: the daemon notices the closed connection anyway.
            let _ = input.close().await;
        }
        ended
    }

    /// Waits until the user gives up: while nobody listens, a signal is meant for us.
    pub async fn given_up(&mut self) {
        while matches!(self.sender.signals.next().await, Next::Resized) {}
    }
}

/// Moves what comes from the program to stdout and stderr.
async fn receive(output: &mut SessionOutput) -> Outcome<Ended> {
    let (mut stdout, mut stderr) = (tokio::io::stdout(), tokio::io::stderr());
    loop {
        match output.next().await {
            Ok(Some(StreamEvent::Stdout(bytes))) => put(&mut stdout, &bytes).await?,
            Ok(Some(StreamEvent::Stderr(bytes))) => put(&mut stderr, &bytes).await?,
            Ok(Some(StreamEvent::Exited(code))) => return Ok(Ended::Exited(code)),
            // How a daemon ends all streams when it stops (`api::stream`).
            Ok(Some(StreamEvent::Problem(problem))) if problem.code == ErrorCode::Cancelled => {
                return Ok(Ended::Lost);
            }
            Ok(Some(StreamEvent::Problem(problem))) => {
                let exit = of(problem.code);
                let said = Failure::said(exit, problem.to_string());
                return Err(match problem.hint {
                    Some(hint) => said.advise(hint),
                    None => said,
                });
            }
            Ok(None) | Err(api::client::ClientError::Unreachable { .. }) => return Ok(Ended::Lost),
            Err(error) => return Err(error.into()),
        }
    }
}

async fn put(writer: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> Outcome {
    writer.write_all(bytes).await?;
    writer.flush().await?;
    Ok(())
}

/// Reads stdin in a thread of its own: a read of a terminal cannot be given up, and must not keep
/// the process from ending.
fn read_stdin() -> mpsc::Receiver<Vec<u8>> {
    let (send, receive) = mpsc::channel(2);
    std::thread::spawn(move || {
        let mut stdin = std::io::stdin().lock();
        let mut buffer = vec![0; CHUNK];
        loop {
            match stdin.read(&mut buffer) {
                Ok(count) if count > 0 => {
                    if send.blocking_send(buffer[..count].to_vec()).is_err() {
                        return;
                    }
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                // The end, or input that cannot be read: there is no more of it.
                _ => return,
            }
        }
    });
    receive
}

/// The signals that are passed on.
struct Signals {
    passed: Vec<(&'static str, Signal)>,
    resized: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        let of = |name, kind| signal(kind).map(|stream| (name, stream));
        Ok(Self {
            passed: vec![
                of("SIGINT", SignalKind::interrupt())?,
                of("SIGTERM", SignalKind::terminate())?,
                of("SIGHUP", SignalKind::hangup())?,
                of("SIGQUIT", SignalKind::quit())?,
                of("SIGUSR1", SignalKind::user_defined1())?,
                of("SIGUSR2", SignalKind::user_defined2())?,
            ],
            resized: signal(SignalKind::window_change())?,
        })
    }

    /// The next signal: one to pass on, or a change of size.
    async fn next(&mut self) -> Next {
        let waits = self.passed.iter_mut().map(|(name, stream)| {
            Box::pin(async move {
                stream.recv().await;
                *name
            })
        });
        tokio::select! {
            (name, ..) = futures::future::select_all(waits) => Next::Signal(name),
            _ = self.resized.recv() => Next::Resized,
        }
    }
}

/// Moves our input, signals and sizes to the program.
struct Sender {
    signals: Signals,
    typed: Option<mpsc::Receiver<Vec<u8>>>,
    scanner: Option<DetachScanner>,
    terminal: bool,
    interrupts: u32,
}

/// What there is to send.
enum Next {
    Typed(Option<Vec<u8>>),
    Signal(&'static str),
    Resized,
}

impl Sender {
    /// Runs until the user leaves.
    async fn run(&mut self, cx: &Context, input: &mut SessionInput) -> Outcome {
        loop {
            match self.next().await {
                Next::Typed(Some(bytes)) => {
                    let (pass, left) = match &mut self.scanner {
                        Some(scanner) => scanner.scan(&bytes),
                        None => (bytes, false),
                    };
                    if !pass.is_empty() {
                        input.stdin(&pass).await?;
                    }
                    if left {
                        return Ok(());
                    }
                }
                Next::Typed(None) => {
                    self.typed = None;
                    input.stdin_eof().await?;
                }
                Next::Signal(name) => {
                    let name = self.escalate(cx, name);
                    input.signal(name).await?;
                }
                Next::Resized => {
                    if let (true, Some((rows, cols))) = (self.terminal, term::size()) {
                        input.resize(rows, cols).await?;
                    }
                }
            }
        }
    }

    async fn next(&mut self) -> Next {
        let typed = async {
            match &mut self.typed {
                Some(typed) => typed.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            bytes = typed => Next::Typed(bytes),
            next = self.signals.next() => next,
        }
    }

    /// A program that is process 1 ignores SIGINT unless it asks for it; whoever presses Ctrl-C a
    /// third time means it.
    fn escalate(&mut self, cx: &Context, name: &'static str) -> &'static str {
        if name != "SIGINT" {
            return name;
        }
        self.interrupts += 1;
        match self.interrupts {
            1 => name,
            2 => {
                cx.note("The program has not ended. Press Ctrl-C once more to end it by force.");
                name
            }
            _ => "SIGKILL",
        }
    }
}
