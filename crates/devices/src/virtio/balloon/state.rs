//! What is saved of a balloon beside its queues.

use serde::{Deserialize, Serialize};

/// Sizes of the balloon. What is in it is in the guest's memory, as holes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BalloonState {
    /// How large it should be, in pages of 4096 bytes.
    pub target_pages: u32,
    /// How large the driver says it is.
    pub actual_pages: u32,
}
