//! The state of the x87 and vector units of one vCPU, and when they may be used.
//!
//! `native` computes on it, `system` tells it the control registers, a saved vCPU carries its bytes.
//! It knows no instruction.

mod access;
mod state;

pub use access::{Unit, Vector};
pub(in crate::soft) use state::{AREA_BYTES, HEADER, YMM_HIGH, array};
pub use state::{Area, MXCSR_MASK, VectorState};
