//! What a PCI function is to the bus.

use crate::StateError;

/// A range of guest physical memory that a function decodes now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Which BAR, 0 to 5.
    pub bar: u8,
    /// Where it begins.
    pub start: u64,
    /// Its size, a power of two.
    pub bytes: u64,
}

/// One function on the bus. Called from all vCPU threads at once; it locks itself, and it never
/// calls the bus.
pub trait PciFunction: Send + Sync {
    /// A load of 1, 2 or 4 bytes from configuration space, within an aligned four-byte register;
    /// `offset` is below 4096. Most functions pass it on to [`super::ConfigSpace::read`].
    fn config_read(&self, offset: u16, data: &mut [u8]);

    /// A store of 1, 2 or 4 bytes, as [`PciFunction::config_read`].
    fn config_write(&self, offset: u16, data: &[u8]);

    /// What it decodes now: [`super::ConfigSpace::windows`]. The bus asks after every store to the
    /// header.
    fn windows(&self) -> Vec<Window>;

    /// A load of 1 to 8 bytes from a BAR. The access begins within it, but may reach past its end.
    fn bar_read(&self, bar: u8, offset: u64, data: &mut [u8]);

    /// A store of 1 to 8 bytes to a BAR, as [`PciFunction::bar_read`].
    fn bar_write(&self, bar: u8, offset: u64, data: &[u8]);

    /// Back to how it was made, BAR addresses included.
    fn reset(&self);

    /// Everything the guest can see of it, as bytes that [`PciFunction::restore`] of a function
    /// made alike takes ([`crate::state::encode`]).
    ///
    /// # Errors
    /// When it cannot be written.
    fn save(&self) -> Result<Vec<u8>, StateError>;

    /// Takes a saved state.
    ///
    /// # Errors
    /// When it does not fit; the function is then as before, or reset.
    fn restore(&self, state: &[u8]) -> Result<(), StateError>;
}
