//! What is held back, or about to happen, between two instructions.

/// What is held back, or about to happen, between two instructions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Events {
    /// `hlt` was executed: nothing runs before an interrupt.
    pub halted: bool,
    /// The instruction after `sti`, `mov ss` or `pop ss` runs before any interrupt.
    pub shadow: bool,
    /// A non-maskable interrupt is being handled: no other before `iret`.
    pub nmi_masked: bool,
}
