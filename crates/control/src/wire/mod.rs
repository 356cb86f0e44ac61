//! Between wire types and internal ones. Nothing else of the crate knows both.

mod show;
mod spec;

pub(crate) use show::{detail, instance, network, operation, phase, token};
pub(crate) use spec::{from_wire, to_wire};
