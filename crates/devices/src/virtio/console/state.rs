//! What is saved of a console beside its queues.

use serde::{Deserialize, Serialize};

/// Input on its way, and the terminal.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsoleState {
    /// What was typed and is not read yet.
    pub input: Vec<u8>,
    /// Width of the terminal.
    pub columns: u16,
    /// Height of the terminal.
    pub rows: u16,
}
