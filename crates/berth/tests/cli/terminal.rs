//! A real pseudo-terminal: raw while a session lasts, and given back as it was, however it ends.

use rustix::termios::Termios;
use testkit::{Terminal, code_of};

use crate::{fake::Fake, session_text::berth};

fn same(before: &Termios, after: &Termios) -> bool {
    before.local_modes == after.local_modes
        && before.input_modes == after.input_modes
        && before.output_modes == after.output_modes
        && before.control_modes == after.control_modes
}

#[test]
fn the_terminal_is_given_back_when_the_program_ends() {
    let fake = Fake::start();
    let mut terminal = Terminal::open().unwrap();
    let before = terminal.modes().unwrap();
    assert!(!terminal.is_raw().unwrap());
    let child = terminal
        .spawn(&mut berth(&fake, &["run", "--rm", "-it", "debian", "keys"]))
        .unwrap();
    terminal.until("press").unwrap();
    assert!(terminal.is_raw().unwrap());
    // Ctrl-C is a key for the program now, not a signal for us.
    terminal.press("\x03").unwrap();
    terminal.until("typed [3]").unwrap();
    terminal.press("q").unwrap();
    assert_eq!(code_of(child).unwrap(), Some(0));
    assert!(same(&before, &terminal.modes().unwrap()));
}

#[test]
fn the_size_follows_the_window() {
    let fake = Fake::start();
    let mut terminal = Terminal::open().unwrap();
    let child = terminal
        .spawn(&mut berth(&fake, &["run", "--rm", "-it", "debian", "keys"]))
        .unwrap();
    terminal.until("press").unwrap();
    terminal.resize(&child, 41, 99).unwrap();
    terminal
        .until(r#"{"type":"resize","rows":41,"cols":99}"#)
        .unwrap();
    terminal.press("q").unwrap();
    assert_eq!(code_of(child).unwrap(), Some(0));
}

#[test]
fn the_detach_keys_leave_it_running_and_the_terminal_as_it_was() {
    let fake = Fake::start();
    let mut terminal = Terminal::open().unwrap();
    let before = terminal.modes().unwrap();
    let child = terminal
        .spawn(&mut berth(
            &fake,
            &["run", "--name", "k", "-it", "debian", "keys"],
        ))
        .unwrap();
    terminal.until("press").unwrap();
    terminal.press("\x10").unwrap();
    terminal.press("\x11").unwrap();
    assert!(
        terminal
            .until("berth attach k")
            .unwrap()
            .contains("Left k running")
    );
    assert_eq!(code_of(child).unwrap(), Some(0));
    assert!(same(&before, &terminal.modes().unwrap()));
}

#[test]
fn the_terminal_is_given_back_when_the_connection_is_lost() {
    let fake = Fake::start();
    let mut terminal = Terminal::open().unwrap();
    let before = terminal.modes().unwrap();
    let child = terminal
        .spawn(&mut berth(
            &fake,
            &["run", "--name", "v", "-it", "debian", "vanish"],
        ))
        .unwrap();
    assert!(
        terminal
            .until("berth attach v")
            .unwrap()
            .contains("goes on without it")
    );
    assert_eq!(code_of(child).unwrap(), Some(6));
    assert!(same(&before, &terminal.modes().unwrap()));
}
