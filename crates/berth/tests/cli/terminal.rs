//! A real pseudo-terminal: raw while a session lasts, and given back as it was, however it ends.

use std::{
    fs::File,
    io::{Read, Write},
    os::fd::OwnedFd,
    process::Child,
    time::{Duration, Instant},
};

use rustix::{
    process::{Pid, Signal, kill_process},
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{LocalModes, Termios, Winsize, tcgetattr, tcsetwinsize},
};

use crate::{fake::Fake, session_text::berth};

struct Terminal {
    master: File,
    slave: OwnedFd,
}

impl Terminal {
    fn open() -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let path = ptsname(&master, Vec::new()).unwrap();
        let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY;
        let slave = rustix::fs::open(path.as_c_str(), flags, rustix::fs::Mode::empty()).unwrap();
        Self {
            master: File::from(master),
            slave,
        }
    }

    fn spawn(&self, fake: &Fake, words: &[&str]) -> Child {
        let end = || self.slave.try_clone().unwrap();
        berth(fake, words)
            .stdin(end())
            .stdout(end())
            .stderr(end())
            .spawn()
            .unwrap()
    }

    fn modes(&self) -> Termios {
        tcgetattr(&self.slave).unwrap()
    }

    fn is_raw(&self) -> bool {
        !self.modes().local_modes.contains(LocalModes::ICANON)
    }

    /// Reads until some text has been seen.
    fn until(&mut self, wanted: &str) -> String {
        let mut seen = String::new();
        let mut buffer = [0; 1024];
        while !seen.contains(wanted) {
            let count = self.master.read(&mut buffer).unwrap();
            seen.push_str(&String::from_utf8_lossy(&buffer[..count]));
        }
        seen
    }
}

/// Waits for the end, for at most a time in which something is broken.
fn code(mut child: Child) -> Option<i32> {
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(60) {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code();
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    panic!("it does not end");
}

fn same(before: &Termios, after: &Termios) -> bool {
    before.local_modes == after.local_modes
        && before.input_modes == after.input_modes
        && before.output_modes == after.output_modes
        && before.control_modes == after.control_modes
}

#[test]
fn the_terminal_is_given_back_when_the_program_ends() {
    let fake = Fake::start();
    let mut terminal = Terminal::open();
    let before = terminal.modes();
    assert!(!terminal.is_raw());
    let child = terminal.spawn(&fake, &["run", "--rm", "-it", "debian", "keys"]);
    terminal.until("press");
    assert!(terminal.is_raw());
    // Ctrl-C is a key for the program now, not a signal for us.
    terminal.master.write_all(b"\x03").unwrap();
    terminal.until("typed [3]");
    terminal.master.write_all(b"q").unwrap();
    assert_eq!(code(child), Some(0));
    assert!(same(&before, &terminal.modes()));
}

#[test]
fn the_size_follows_the_window() {
    let fake = Fake::start();
    let mut terminal = Terminal::open();
    let child = terminal.spawn(&fake, &["run", "--rm", "-it", "debian", "keys"]);
    terminal.until("press");
    let size = Winsize {
        ws_row: 41,
        ws_col: 99,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    tcsetwinsize(&terminal.slave, size).unwrap();
    kill_process(Pid::from_child(&child), Signal::WINCH).unwrap();
    terminal.until(r#"{"type":"resize","rows":41,"cols":99}"#);
    terminal.master.write_all(b"q").unwrap();
    assert_eq!(code(child), Some(0));
}

#[test]
fn the_detach_keys_leave_it_running_and_the_terminal_as_it_was() {
    let fake = Fake::start();
    let mut terminal = Terminal::open();
    let before = terminal.modes();
    let child = terminal.spawn(&fake, &["run", "--name", "k", "-it", "debian", "keys"]);
    terminal.until("press");
    terminal.master.write_all(b"\x10").unwrap();
    terminal.master.write_all(b"\x11").unwrap();
    assert!(terminal.until("berth attach k").contains("Left k running"));
    assert_eq!(code(child), Some(0));
    assert!(same(&before, &terminal.modes()));
}

#[test]
fn the_terminal_is_given_back_when_the_connection_is_lost() {
    let fake = Fake::start();
    let mut terminal = Terminal::open();
    let before = terminal.modes();
    let child = terminal.spawn(&fake, &["run", "--name", "v", "-it", "debian", "vanish"]);
    assert!(
        terminal
            .until("berth attach v")
            .contains("goes on without it")
    );
    assert_eq!(code(child), Some(6));
    assert!(same(&before, &terminal.modes()));
}
