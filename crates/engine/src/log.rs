//! What a program wrote, read back line by line.

use bytes::Bytes;
use model::Timestamp;

/// Where a line came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LogStream {
    /// Standard output, or the terminal.
    Stdout,
    /// Standard error.
    Stderr,
}

/// Which lines to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LogRequest {
    /// Goes on as more comes, until the program has ended.
    pub follow: bool,
    /// Only so many of the lines there are.
    pub tail: Option<usize>,
    /// Only lines since then.
    pub since: Option<Timestamp>,
    /// Only lines of one stream; those of the other are not counted either.
    pub stream: Option<LogStream>,
}

/// One line, or a part of a long one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLine {
    /// When it was written.
    pub at: Timestamp,
    /// Where it came from.
    pub stream: LogStream,
    /// The text, without the line break.
    pub text: Bytes,
    /// Whether the line ends here; `false` when more of it follows.
    pub complete: bool,
}
