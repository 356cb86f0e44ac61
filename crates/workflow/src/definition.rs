//! [`Definition`]: a kind of operation as a list of steps.

use std::fmt;
use std::sync::Arc;

use crate::step::{AnyFinish, AnyStep, Finish, Step};

/// What happens when a step fails for good or the operation is cancelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnFailure {
    /// Every step is undone, last first.
    #[default]
    Undo,
    /// It stops where it is and can be retried: right for deletions, which only go forward.
    Stop,
}

/// A kind of operation. The steps of a version never change: other steps are another version, and
/// the old one stays registered for as long as such operations may be unfinished.
pub struct Definition {
    pub(crate) kind: &'static str,
    pub(crate) version: u32,
    pub(crate) steps: Vec<Box<dyn AnyStep>>,
    pub(crate) on_failure: OnFailure,
    pub(crate) limit: usize,
    pub(crate) finish: Option<Arc<dyn AnyFinish>>,
}

impl fmt::Debug for Definition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let steps: Vec<_> = self.steps.iter().map(|step| step.name()).collect();
        f.debug_struct("Definition")
            .field("kind", &self.kind)
            .field("version", &self.version)
            .field("steps", &steps)
            .finish_non_exhaustive()
    }
}

impl Definition {
    /// A kind of operation without steps yet.
    #[must_use]
    pub fn new(kind: &'static str, version: u32) -> Self {
        let (steps, limit) = (Vec::new(), usize::MAX);
        Self {
            kind,
            version,
            steps,
            on_failure: OnFailure::Undo,
            limit,
            finish: None,
        }
    }

    /// Adds the next step.
    #[must_use]
    pub fn step(mut self, step: impl Step) -> Self {
        self.steps.push(Box::new(step));
        self
    }

    /// Says what happens when a step fails for good.
    #[must_use]
    pub const fn on_failure(mut self, on_failure: OnFailure) -> Self {
        self.on_failure = on_failure;
        self
    }

    /// At most so many operations of this kind and version at once; the others wait.
    #[must_use]
    pub const fn limit(mut self, operations: usize) -> Self {
        self.limit = operations;
        self
    }

    /// Adds to the transaction that ends the operation.
    #[must_use]
    pub fn finish(mut self, finish: impl Finish) -> Self {
        self.finish = Some(Arc::new(finish));
        self
    }

    /// The kind.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        self.kind
    }

    /// The names of the steps, in order.
    pub fn step_names(&self) -> impl Iterator<Item = &'static str> + '_ {
        self.steps.iter().map(|step| step.name())
    }
}
