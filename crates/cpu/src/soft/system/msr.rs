//! Model-specific registers.

/// Model-specific registers that are no part of anything else.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Msrs {
    /// Segments of `syscall` and `sysret`.
    pub star: u64,
}
