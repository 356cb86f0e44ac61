//! How a device's state becomes bytes where its type is not known, as for PCI functions. The
//! machine that stores them answers for versions and checksums.

use serde::{Serialize, de::DeserializeOwned};

/// Why a saved state cannot be taken, or none can be given.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// It does not have the shape that this device saves.
    #[error("the saved state of {device} cannot be read")]
    Shape {
        /// Which device.
        device: &'static str,
        /// Why.
        source: serde_json::Error,
    },
    /// It belongs to a device that was made differently.
    #[error("the saved state of {device} does not fit it: {reason}")]
    Mismatch {
        /// Which device.
        device: &'static str,
        /// What differs.
        reason: String,
    },
}

/// The bytes of a state.
///
/// # Errors
/// When the type has something that cannot be written, such as a map with keys that are no text.
pub fn encode<T: Serialize>(device: &'static str, state: &T) -> Result<Vec<u8>, StateError> {
    serde_json::to_vec(state).map_err(|source| StateError::Shape { device, source })
}

/// The state of bytes that [`encode`] made.
///
/// # Errors
/// When they are not of this type.
pub fn decode<T: DeserializeOwned>(device: &'static str, bytes: &[u8]) -> Result<T, StateError> {
    serde_json::from_slice(bytes).map_err(|source| StateError::Shape { device, source })
}
