//! This terminal as the guest's console: raw, until Ctrl-] ends everything.

use std::{
    io::{self, IsTerminal, Read, Write},
    os::unix::net::UnixStream,
    process,
    thread::{self, JoinHandle},
};

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};

/// Ctrl-].
const ESCAPE: u8 = 0x1d;

/// Standard input and output, connected to a console.
pub struct Terminal {
    /// How the terminal was before, if it is one.
    before: Option<Termios>,
    output: JoinHandle<()>,
}

impl Terminal {
    /// Connects them, and makes the terminal raw.
    pub fn connect(console: UnixStream) -> io::Result<Self> {
        let stdin = io::stdin();
        let mut before = None;
        if stdin.is_terminal() {
            let mut modes = tcgetattr(&stdin)?;
            before = Some(modes.clone());
            modes.make_raw();
            tcsetattr(&stdin, OptionalActions::Now, &modes)?;
        }
        let typed = console.try_clone()?;
        let restore = before.clone();
        thread::spawn(move || type_in(typed, restore.as_ref()));
        let output = thread::spawn(move || show(console));
        Ok(Self { before, output })
    }

    /// Waits until everything is shown, and makes the terminal what it was.
    pub fn finish(self) {
        // A panic of it was printed already.
        let _panicked = self.output.join();
        restore(self.before.as_ref());
    }
}

fn restore(before: Option<&Termios>) {
    if let Some(modes) = before {
        // The terminal may be gone.
        let _gone = tcsetattr(io::stdin(), OptionalActions::Now, modes);
    }
}

/// Carries what is typed, until there is no more, or the machine is gone.
fn type_in(mut console: UnixStream, before: Option<&Termios>) {
    let mut typed = [0; 256];
    while let Ok(count) = io::stdin().read(&mut typed) {
        let typed = &typed[..count];
        if before.is_some() && typed.contains(&ESCAPE) {
            restore(before);
            process::exit(0);
        }
        if count == 0 || console.write_all(typed).is_err() {
            return;
        }
    }
}

fn show(mut console: UnixStream) {
    let mut text = [0; 4096];
    while let Ok(count @ 1..) = console.read(&mut text) {
        let mut out = io::stdout().lock();
        if out
            .write_all(&text[..count])
            .and_then(|()| out.flush())
            .is_err()
        {
            return;
        }
    }
}
