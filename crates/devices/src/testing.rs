//! What the tests of several devices share.

use std::sync::{Mutex, PoisonError};

use crate::{Interrupts, Line};

/// Remembers what was signalled.
#[derive(Default)]
pub struct Recorder {
    messages: Mutex<Vec<(u64, u32)>>,
    levels: Mutex<Vec<bool>>,
}

impl Recorder {
    /// All messages since the last call.
    pub fn messages(&self) -> Vec<(u64, u32)> {
        std::mem::take(&mut self.messages.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// All changes of the line since the last call.
    pub fn levels(&self) -> Vec<bool> {
        std::mem::take(&mut self.levels.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Interrupts for Recorder {
    fn signal_msi(&self, address: u64, data: u32) {
        let mut messages = self.messages.lock().unwrap_or_else(PoisonError::into_inner);
        messages.push((address, data));
    }
}

impl Line for Recorder {
    fn set(&self, high: bool) {
        let mut levels = self.levels.lock().unwrap_or_else(PoisonError::into_inner);
        levels.push(high);
    }
}
