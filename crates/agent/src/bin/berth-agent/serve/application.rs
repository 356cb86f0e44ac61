//! The program of an application guest: one, started by PID 1, whose end is the guest's end.
//!
//! What it says goes to the guest's console, which the host keeps as its log whether or not anybody is
//! connected, and to every connection that has joined it.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use agent::protocol::{ErrorKind, Failure, Kind, Program, Reply};
use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};

use super::{
    connection::{Writer, end_with},
    session::{Session, Sink},
};

/// Consoles by preference: the virtio one is faster and carries nothing else.
const CONSOLES: &[&str] = &["/dev/hvc0", "/dev/console"];

/// Most connections that listen at once.
const MAX_LISTENERS: usize = 16;

static MAIN: OnceLock<(Arc<Session>, Arc<Broadcast>)> = OnceLock::new();

/// Everybody who hears the program.
struct Broadcast {
    console: Option<Mutex<File>>,
    listeners: Mutex<Vec<Writer>>,
}

impl Sink for Broadcast {
    fn output(&self, kind: Kind, bytes: &[u8]) -> bool {
        if let Some(console) = &self.console {
            let mut console = console.lock().unwrap_or_else(PoisonError::into_inner);
            // A console that takes nothing must not stop the program.
            let _ = console.write_all(bytes);
        }
        let mut listeners = self
            .listeners
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        listeners.retain(|listener| listener.output(kind, bytes));
        true
    }
}

/// Starts the program.
pub fn start(program: &Program) -> io::Result<Arc<Session>> {
    if program.cwd.starts_with('/') {
        // As container engines do: a missing working directory is made.
        std::fs::create_dir_all(&program.cwd)?;
    }
    let broadcast = Arc::new(Broadcast {
        console: console().map(Mutex::new),
        listeners: Mutex::default(),
    });
    let session = Session::start(program, broadcast.clone(), |_| {})?;
    // Called once, by PID 1.
    let _ = MAIN.set((session.clone(), broadcast));
    Ok(session)
}

/// The program, if this guest has one.
pub fn running() -> Result<&'static Arc<Session>, Failure> {
    MAIN.get().map(|(session, _)| session).ok_or_else(absent)
}

/// Joins a connection to the program.
pub fn attach(writer: &Writer) -> Result<Arc<Session>, Failure> {
    let (session, broadcast) = MAIN.get().ok_or_else(absent)?;
    let listeners = &broadcast.listeners;
    let mut listeners = listeners.lock().unwrap_or_else(PoisonError::into_inner);
    if listeners.len() >= MAX_LISTENERS {
        return Err(Failure {
            kind: ErrorKind::State,
            message: format!("{MAX_LISTENERS} others listen to the program already"),
        });
    }
    let pid = session.pid();
    // Under the lock: the announcement comes before the first output.
    if writer.reply(&Reply::Started { pid }).is_ok() {
        listeners.push(writer.clone());
    }
    drop(listeners);
    end_with(session, writer);
    Ok(session.clone())
}

fn absent() -> Failure {
    Failure {
        kind: ErrorKind::State,
        message: "this guest runs a system, not one program".to_owned(),
    }
}

/// Opens the console for the program's output, byte for byte.
fn console() -> Option<File> {
    let open = |path: &&str| OpenOptions::new().write(true).open(path).ok();
    let console = CONSOLES.iter().find_map(open)?;
    if let Ok(mut modes) = tcgetattr(&console) {
        modes.output_modes &= !rustix::termios::OutputModes::OPOST;
        // The log then has carriage returns, no worse.
        let _ = tcsetattr(&console, OptionalActions::Now, &modes);
    }
    Some(console)
}
