//! The device. It has no state to save.

use crate::Registers;

const COMMAND: u64 = 4;
const COMMAND_RESET: u8 = 0xfe;

/// The controller: five ports at [`I8042::BASE`], of which data and command are its own.
pub struct I8042 {
    reset: Box<dyn Fn() + Send + Sync>,
}

impl I8042 {
    /// First port.
    pub const BASE: u16 = 0x60;
    /// How many ports.
    pub const COUNT: u16 = 5;

    /// One that calls `reset` when the guest asks for it, from a vCPU's thread.
    #[must_use]
    pub fn new(reset: impl Fn() + Send + Sync + 'static) -> Self {
        Self {
            reset: Box::new(reset),
        }
    }
}

impl Registers for I8042 {
    /// Status: nothing to be read, ready for commands.
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if offset == COMMAND && data == [COMMAND_RESET] {
            (self.reset)();
        }
    }
}
