//! The command line against a daemon that is not one: whole sessions, exit codes,
//! streams, a real terminal.
//!
//! The sessions are written down in `sessions/`; after a change that is meant, run with
//! `BERTH_BLESS=1` and read the difference.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod codes;
mod complete;
mod docs;
mod fake;
mod programs;
mod session_text;
mod sessions;
mod terminal;
