//! Operations: everything long, watched the same way.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Where an operation stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OperationState {
    /// Waits for its turn.
    Pending,
    /// Runs.
    Running,
    /// Did all it was asked for.
    Succeeded,
    /// Failed; what it had done is undone.
    Failed,
    /// Was cancelled; what it had done is undone.
    Cancelled,
    /// Is giving back what it had acquired.
    Undoing,
    /// Could not give back what it had acquired; needs a person.
    Stuck,
}

impl OperationState {
    /// Whether nothing more will happen by itself.
    #[must_use]
    pub const fn is_final(self) -> bool {
        matches!(
            self,
            Self::Succeeded | Self::Failed | Self::Cancelled | Self::Stuck
        )
    }
}

/// How far an operation is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Progress {
    /// What it does just now.
    pub message: String,
    /// How much of `total` is done.
    pub done: u64,
    /// How much there is; 0 when unknown.
    pub total: u64,
    /// Unit of both, such as `bytes`; empty for steps.
    pub unit: String,
}

/// An operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Operation {
    /// Identity.
    pub id: String,
    /// What it does, such as `instance_create`.
    pub kind: String,
    /// What it is about, such as `instances/web` or `images/debian`.
    pub resource: String,
    /// Where it stands.
    pub state: OperationState,
    /// How far it is.
    pub progress: Progress,
    /// Why it failed or is stuck, and what to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// What it made: an image's reference or digest, an instance's id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<serde_json::Value>,
    /// When it was asked for (RFC 3339).
    pub created_at: String,
    /// When it ended (RFC 3339).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<String>,
}
