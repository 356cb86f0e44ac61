//! virtio-entropy (virtio 1.2, 5.4): the host's random bytes. No features, no configuration space.

mod device;
mod handler;
#[cfg(test)]
mod tests;

pub use device::Entropy;
