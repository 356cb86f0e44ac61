//! What is saved of a folder beside its queues.

use serde::{Deserialize, Serialize};

/// How far a guest has come with a folder. The files it knows and has open are not saved: they are
/// stale afterwards, and looked up anew; but no number means another file than before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FsState {
    /// Whether it said hello.
    pub greeted: bool,
    /// Number of the next file it is told of.
    pub next_node: u64,
    /// Number of the next file it opens.
    pub next_handle: u64,
}
