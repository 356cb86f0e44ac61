//! Requests of one queue that a rate limit holds back.
//!
//! They have left the queue, so that what the other limit is for passes them by: writes that wait
//! keep no reads waiting. Each direction stays in its order.

use std::collections::VecDeque;

use super::request::{Direction, Request};

/// Requests taken from a queue, with the first descriptor of their chains.
#[derive(Debug, Default)]
pub(super) struct Held {
    reads: VecDeque<(u16, Request)>,
    writes: VecDeque<(u16, Request)>,
}

impl Held {
    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.reads.len() + self.writes.len()
    }

    /// Whether none of a direction waits.
    pub(super) fn is_clear(&self, direction: Direction) -> bool {
        match direction {
            Direction::Read => self.reads.is_empty(),
            Direction::Write => self.writes.is_empty(),
        }
    }

    /// Holds one back, behind those of its direction.
    pub(super) fn push(&mut self, head: u16, request: Request) {
        let direction = request.direction();
        self.of(direction).push_back((head, request));
    }

    /// The one of a direction that waits longest.
    pub(super) fn pop(&mut self, direction: Direction) -> Option<(u16, Request)> {
        self.of(direction).pop_front()
    }

    fn of(&mut self, direction: Direction) -> &mut VecDeque<(u16, Request)> {
        match direction {
            Direction::Read => &mut self.reads,
            Direction::Write => &mut self.writes,
        }
    }
}
