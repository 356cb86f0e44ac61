//! Our terminal, where we have one: it passes every byte on untouched, for the guest's own does what a
//! terminal does.

use std::io::{self, IsTerminal};

use agent::protocol::Size;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

use crate::config::Stdio;

/// Its size, if it has one.
pub(super) fn size() -> Option<Size> {
    let size = tcgetwinsize(io::stdin()).ok()?;
    (size.ws_row > 0 && size.ws_col > 0).then_some(Size {
        rows: size.ws_row,
        cols: size.ws_col,
    })
}

/// A terminal in raw mode; what it was before when dropped.
pub(super) struct RawTerminal(Termios);

impl RawTerminal {
    /// Makes standard input raw, if it is a terminal and the guest has one behind it.
    pub(super) fn enter(stdio: &Stdio) -> Option<Self> {
        let wanted = match stdio {
            Stdio::None => false,
            Stdio::Console => true,
            Stdio::Program(program) => program.terminal.is_some(),
        };
        if !wanted || !io::stdin().is_terminal() {
            return None;
        }
        let before = tcgetattr(io::stdin()).ok()?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(io::stdin(), OptionalActions::Now, &raw).ok()?;
        Some(Self(before))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // A terminal that has gone needs no restoring.
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.0);
    }
}
