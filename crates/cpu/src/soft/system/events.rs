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
    /// After INIT, and at power-on for all but the first vCPU: nothing runs before a SIPI.
    pub waits_for_sipi: bool,
    /// Counts `pause`.
    pub pauses: u32,
    /// To be delivered before the next instruction: vector and error code. Only a state saved
    /// elsewhere has one.
    pub injected: Option<(u8, Option<u16>)>,
}
