//! The verbs: everything done to instances.

mod boot;
pub mod console;
mod cpu_stats;
pub mod create;
pub mod edit;
pub mod exec;
pub mod files;
mod foreground;
pub mod list;
pub mod logs;
mod past;
pub mod power;
pub mod set;
pub mod spec;
pub mod stats;
