//! What is left of the keyboard controller: the command that resets the machine (IBM PC AT
//! Technical Reference, 8042). There is no keyboard and no mouse.

mod device;
#[cfg(test)]
mod tests;

pub use device::I8042;
