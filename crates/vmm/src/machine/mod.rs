//! x

mod gate;

pub use gate::{Gate, OnStop, State};
