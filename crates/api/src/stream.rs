//! The stream of an attach or an exec: a WebSocket (RFC 6455).
//!
//! The client's first message is text: [`crate::Process`] for an exec, [`Attach`] for an attach.
//! After it, a binary message is one [`Channel`] byte and data, and a text message is a
//! [`Control`]. The server ends the stream with [`Control::Exited`] or [`Control::Problem`] and a
//! close.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Problem;

/// First byte of a binary message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Channel {
    /// To the program.
    Stdin = 1,
    /// From the program; everything when it has a terminal.
    Stdout = 2,
    /// From the program.
    Stderr = 3,
}

impl Channel {
    /// The channel of a byte.
    #[must_use]
    pub const fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::Stdin),
            2 => Some(Self::Stdout),
            3 => Some(Self::Stderr),
            _ => None,
        }
    }
}

/// First message of an attach.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Attach {
    /// Whether standard input is sent.
    pub stdin: bool,
    /// Whether a prepared instance is started once attached, so that no output is missed.
    pub start: bool,
    /// Size of the terminal: rows, columns.
    pub size: Option<(u16, u16)>,
}

/// A text message after the first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Control {
    /// Client: the terminal has another size.
    Resize {
        /// Rows.
        rows: u16,
        /// Columns.
        cols: u16,
    },
    /// Client: send the program a signal, by name or number.
    Signal {
        /// The signal.
        signal: String,
    },
    /// Client: there is no more input.
    StdinEof,
    /// Server: the program ended.
    Exited {
        /// Exit code; 128 plus the signal when a signal ended it.
        code: i32,
    },
    /// Server: the stream ended for another reason.
    Problem {
        /// Why.
        problem: Problem,
    },
}
