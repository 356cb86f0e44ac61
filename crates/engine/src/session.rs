//! The input and output of a program, as a pair of bounded channels.

use bytes::Bytes;
use tokio::sync::mpsc;

/// To the program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// Bytes for its standard input.
    Stdin(Bytes),
    /// There is no more input.
    Eof,
    /// Its terminal has another size.
    Resize {
        /// Rows.
        rows: u16,
        /// Columns.
        cols: u16,
    },
    /// A signal for it.
    Signal(i32),
}

/// From the program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Bytes from its standard output, or its terminal.
    Stdout(Bytes),
    /// Bytes from its standard error.
    Stderr(Bytes),
    /// The last one: why there is no more.
    End(SessionEnd),
}

/// Why a session ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SessionEnd {
    /// The program ended.
    Exited {
        /// Exit code; 128 plus the signal when a signal ended it.
        code: i32,
    },
    /// The session was lost: what happened, and why.
    Lost(String),
}

/// A program's input and output. Dropping it detaches; the program goes on.
#[derive(Debug)]
pub struct Session {
    /// To the program; bounded, so a program that does not read slows the sender.
    pub input: mpsc::Sender<Input>,
    /// From the program, ending in [`Output::End`].
    pub output: mpsc::Receiver<Output>,
}
