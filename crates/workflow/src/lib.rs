//! Durable operations: several steps, all or nothing, whatever dies in between.
//!
//! ```text
//!               plan + the caller's own changes, one durable transaction
//!                                   │
//!                                pending
//!                                   │ launch (or recover)
//!    ┌── retry (forward) ──┐        ▼        every step done            ┌───────────┐
//!  failed ◄── no undo ──── running ────────────────────────────────────►│ succeeded │
//!                             │ a step failed for good, or cancel       └───────────┘
//!                             ▼ (durable before the first undo)
//!                          undoing ── every step undone ──► undone / cancelled
//!                             │ an undo failed for good       ▲
//!                             ▼                               │
//!                           stuck ───────── retry ────────────┘
//! ```
//!
//! What makes it hold:
//!
//! - Nothing external happens before the transaction that claims the record and logs the
//!   operation is committed: [`Engine::plan`] only gives operations for the caller's transaction.
//! - Steps are idempotent, so progress is recorded without waiting for the disk: a record lost to
//!   a power cut only repeats a step. An operation costs one sync to begin and one to end, and one
//!   more to turn back.
//! - After a restart nobody knows which of the later steps had begun, so a resumed operation that
//!   turns back undoes all its steps. An undo must therefore succeed where nothing was done.
//! - What cannot be carried on by itself is *stuck*: visible, with what to do, and retriable.
//!
//! This crate knows nothing of what steps do. Whatever can be recomputed from a record belongs to a
//! reconciler, not here.

#![forbid(unsafe_code)]

mod context;
mod definition;
mod engine;
mod error;
mod operation;
mod retention;
mod runner;
mod step;
pub mod testing;

pub use context::Context;
pub use definition::{Definition, OnFailure};
pub use engine::{Builder, Engine, Limits, Planned, Recovery, Subscription};
pub use error::{BuildError, CancelError, EngineError, PlanError, RetryError};
pub use operation::{
    Ending, Failure, Operation, OperationId, ParseOperationIdError, Progress, State,
};
pub use retention::Retention;
pub use step::{Finish, Step, StepError};
