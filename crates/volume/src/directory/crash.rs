//! Points at which tests cut an operation short, as a crash would. Nothing outside of tests.

/// Counts the durable steps of operations.
#[derive(Debug, Default)]
pub(super) struct Steps {
    #[cfg(test)]
    remaining: std::sync::atomic::AtomicI64,
}

impl Steps {
    /// Passes a step; in a test, "crashes" if it was armed for this one.
    #[cfg_attr(not(test), allow(clippy::unused_self))]
    pub(super) fn pass(&self) -> Result<(), std::io::Error> {
        #[cfg(test)]
        if self
            .remaining
            .fetch_sub(1, std::sync::atomic::Ordering::SeqCst)
            == 1
        {
            return Err(std::io::Error::other("injected crash"));
        }
        Ok(())
    }

    /// Makes the `step`-th step from now (1 is the next) fail; 0 disarms.
    #[cfg(test)]
    pub(super) fn arm(&self, step: i64) {
        self.remaining
            .store(step, std::sync::atomic::Ordering::SeqCst);
    }
}
