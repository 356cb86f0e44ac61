//! The machine's process as whoever started it sees it: a program with input, output, signals and an
//! exit code.
//!
//! ```text
//!   shim ══ stdin, stdout, stderr, signals, exit code ══ front ─┬─ agent, the program in the guest
//!                                                              ├─ or the machine's console
//!                                                              └─ waits for ─▶ supervisor ─▶ machine
//! ```
//! It is the first process, and the supervisor its child, so that a fault of either leaves the other
//! whole. With a program it is that program: bytes and signals are passed on, and it ends with the
//! program's exit code once the guest is down. With the console, what runs in the guest is a system: a
//! signal that asks a program to end asks the guest to shut down. It trusts nothing the guest says;
//! bytes are passed on unread.

mod child;
mod console;
mod signals;
mod terminal;

use std::{
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    sync::mpsc::{self, Receiver, RecvTimeoutError, Sender},
    thread,
    time::{Duration, Instant},
};

use agent::{
    AGENT_PORT,
    client::{self, Client, ClientError, Output},
    protocol::{ErrorKind, Program, ToProgram, Verb},
};

use crate::{
    StopReason, VmConfig,
    config::Stdio,
    control,
    process::{SuperviseError, Supervision},
};
use child::Child;
use console::Console;
use signals::Signals;
use terminal::RawTerminal;

/// Pause between two attempts to reach an agent that has not started yet.
const RETRY: Duration = Duration::from_millis(20);
/// How long one attempt may take.
const ATTEMPT: Duration = Duration::from_secs(2);
/// How long a guest is given to go down after its program has ended.
const DOWN: Duration = Duration::from_secs(10);
/// Longer than any machine is waited for at once.
const LONG: Duration = Duration::from_secs(3600);
/// Exit code when the machine, and not the program in it, failed.
pub const FAILED: u8 = 125;
/// Bytes of input sent at once.
const PIECE: usize = 16 << 10;

/// Something that happened, in the order it did.
enum Event {
    Connected(Client<UnixStream>),
    NotStarted(ClientError),
    Output(Output),
    Lost(ClientError),
    Signal(i32),
    MachineEnded(StopReason),
}

/// Runs a machine and passes on what its configuration says; gives the exit code. The calling
/// process has one thread.
///
/// # Errors
/// When no process can be made for the machine.
pub fn run(config: &VmConfig, how: Supervision) -> Result<u8, SuperviseError> {
    let (child, console) = Child::start(config, how)?;
    let signals = Signals::block();
    let raw = RawTerminal::enter(&config.stdio);
    let (sender, events) = mpsc::channel();
    let (to, waiting) = (sender.clone(), child.clone());
    thread::spawn(move || {
        // Nobody listens any more when all is over.
        let _ = to.send(Event::MachineEnded(waiting.wait()));
    });
    let to = sender.clone();
    thread::spawn(move || while to.send(Event::Signal(signals.wait())).is_ok() {});
    let socket = config.vsock.as_ref().map(|it| it.socket.clone());
    let code = match (&config.stdio, socket) {
        (Stdio::Program(program), Some(socket)) => {
            let (at, program, to) = (socket.clone(), program.clone(), sender.clone());
            thread::spawn(move || start(&at, program, &to));
            Session::new(socket, sender).follow(&events, &child)
        }
        (_, socket) => {
            let path = config.console.socket.clone();
            let console = console.map(|stream| Console::connect(stream, path));
            let console = console.transpose();
            let console = console.map_err(|source| SuperviseError::System {
                what: "copy a socket",
                source,
            })?;
            let code = follow_system(socket.as_deref(), config.control.as_deref(), &events);
            if let Some(console) = console {
                console.finish();
            }
            code
        }
    };
    drop(raw);
    Ok(code)
}

/// Reaches the agent and starts the program; then reads what it says.
fn start(socket: &Path, program: Program, to: &Sender<Event>) {
    let mut client = loop {
        match client::connect(socket, AGENT_PORT, ATTEMPT) {
            Ok(stream) => break Client::new(stream),
            Err(_not_yet) => thread::sleep(RETRY),
        }
    };
    if let Err(error) = client.exec(program) {
        let _ = to.send(Event::NotStarted(error));
        return;
    }
    let Ok(writer) = client.try_clone() else {
        let _ = to.send(Event::Lost(ClientError::Ended));
        return;
    };
    let _ = to.send(Event::Connected(writer));
    loop {
        let event = match client.output() {
            Ok(output) => Event::Output(output),
            Err(error) => Event::Lost(error),
        };
        let last = matches!(event, Event::Lost(_) | Event::Output(Output::Exited(_)));
        if to.send(event).is_err() || last {
            return;
        }
    }
}

/// A program that is passed on.
struct Session {
    socket: PathBuf,
    sender: Sender<Event>,
    /// For what the program is sent, once it runs.
    program: Option<Client<UnixStream>>,
    code: Option<u8>,
}

impl Session {
    fn new(socket: PathBuf, sender: Sender<Event>) -> Self {
        Self {
            socket,
            sender,
            program: None,
            code: None,
        }
    }

    fn follow(mut self, events: &Receiver<Event>, child: &Child) -> u8 {
        let mut deadline: Option<Instant> = None;
        let mut lost: Option<ClientError> = None;
        loop {
            let patience = deadline.map_or(LONG, |at: Instant| {
                at.saturating_duration_since(Instant::now())
            });
            let event = match events.recv_timeout(patience) {
                Ok(event) => event,
                Err(RecvTimeoutError::Timeout) if deadline.is_none() => continue,
                Err(_) => {
                    if let Some(error) = lost {
                        say(&error.to_string());
                    }
                    child.end();
                    return self.code.unwrap_or(FAILED);
                }
            };
            match event {
                Event::MachineEnded(reason) => return self.ended(&reason),
                Event::Signal(signal) => self.signal(signal, child),
                Event::Connected(client) => self.connected(client),
                Event::Output(Output::Stdout(bytes)) => pass(&mut io::stdout(), &bytes),
                Event::Output(Output::Stderr(bytes)) => pass(&mut io::stderr(), &bytes),
                Event::Output(Output::Exited(exit)) => {
                    self.code = Some(u8::try_from(exit.code()).unwrap_or(FAILED));
                    self.shut_down();
                    deadline = Some(Instant::now() + DOWN);
                }
                Event::NotStarted(error) => {
                    say(&error.to_string());
                    self.code = Some(refusal(&error));
                    self.shut_down();
                    deadline = Some(Instant::now() + DOWN);
                }
                Event::Lost(error) => {
                    // Where the machine ends too, that says why.
                    lost = Some(error);
                    deadline = deadline.or(Some(Instant::now() + DOWN));
                }
            }
        }
    }

    fn connected(&mut self, client: Client<UnixStream>) {
        let input = client.try_clone();
        self.program = Some(client);
        self.resize();
        if let Ok(input) = input {
            thread::spawn(move || send_input(input));
        }
    }

    fn signal(&mut self, signal: i32, child: &Child) {
        match &mut self.program {
            _ if signal == libc::SIGWINCH => self.resize(),
            // One that cannot be passed on any more is as late as one after the program's end.
            Some(program) => drop(program.tell(ToProgram::Signal(signal))),
            // Nothing of the guest's has begun: there is nothing to lose.
            None => {
                self.code = Some(128_u8.wrapping_add(signal as u8));
                child.end();
            }
        }
    }

    fn resize(&mut self) {
        let (Some(program), Some(size)) = (&mut self.program, terminal::size()) else {
            return;
        };
        let _ = program.tell(ToProgram::Resize(size));
    }

    /// Asks the guest to go down; in the background, for it may answer late or never.
    fn shut_down(&self) {
        let (socket, sender) = (self.socket.clone(), self.sender.clone());
        thread::spawn(move || {
            let _alive = sender;
            shut_down(&socket)
        });
    }

    fn ended(&self, reason: &StopReason) -> u8 {
        if let Some(code) = self.code {
            return code;
        }
        say(&format!(
            "the virtual machine ended before its program: {reason}"
        ));
        match reason {
            StopReason::Terminated { .. } => reason.status(),
            _ => FAILED,
        }
    }
}

/// Asks the agent to shut the guest down.
fn shut_down(socket: &Path) -> Result<(), ClientError> {
    let stream = client::connect(socket, AGENT_PORT, ATTEMPT)?;
    Client::new(stream).command(Verb::Shutdown {
        reboot: false,
        grace_ms: 0,
    })
}

fn send_input(mut program: Client<UnixStream>) {
    let mut piece = vec![0; PIECE];
    let mut stdin = io::stdin().lock();
    loop {
        match stdin.read(&mut piece) {
            Ok(0) | Err(_) => {
                let _ = program.stdin(&[]);
                return;
            }
            Ok(count) => {
                if program.stdin(&piece[..count]).is_err() {
                    return;
                }
            }
        }
    }
}

fn pass(to: &mut impl Write, bytes: &[u8]) {
    // A reader that has gone takes nothing with it: the program goes on.
    let _ = to.write_all(bytes).and_then(|()| to.flush());
}

fn say(text: &str) {
    let _ = writeln!(io::stderr().lock(), "berth-vmm: {text}");
}

/// The exit code for a program that was not started, as shells give it.
fn refusal(error: &ClientError) -> u8 {
    match error.refusal() {
        Some(ErrorKind::NotFound) => 127,
        Some(ErrorKind::NotExecutable) => 126,
        _ => FAILED,
    }
}

/// A system: it is asked to go down by whatever signal asks a program to end, by its agent or, where
/// none answers, by its power button.
fn follow_system(socket: Option<&Path>, control: Option<&Path>, events: &Receiver<Event>) -> u8 {
    loop {
        match events.recv() {
            Ok(Event::MachineEnded(reason)) => {
                if reason.status() != 0 {
                    say(&format!("the virtual machine ended: {reason}"));
                }
                return reason.status();
            }
            Ok(Event::Signal(signal)) if signal != libc::SIGWINCH => {
                let asked = socket.is_some_and(|socket| shut_down(socket).is_ok());
                if let (false, Some(control)) = (asked, control)
                    && let Err(error) = press_power_button(control)
                {
                    say(&format!("the guest cannot be asked to shut down: {error}"));
                }
            }
            Ok(_) => {}
            Err(_) => return FAILED,
        }
    }
}

fn press_power_button(socket: &Path) -> Result<(), control::CallError> {
    let mut client = control::Client::connect(socket, Some(ATTEMPT))?;
    client.call(&control::Request::Stop).map(drop)
}
