//! The API as others see it: wire types (version 1), the routes as data, and the OpenAPI
//! document made from both.
//!
//! The daemon serves exactly [`routes::ROUTES`], the client calls them, and the document in
//! `docs/openapi.json` is generated from them; a test keeps the three the same. This crate knows
//! nothing of how anything is done: wire types are converted to internal ones in `control`.

#![forbid(unsafe_code)]

#[cfg(feature = "client")]
pub mod client;
pub mod error;
pub mod openapi;
pub mod routes;
#[cfg(feature = "service")]
pub mod service;
pub mod stream;
pub mod types;

pub use error::{ErrorCode, Problem};
pub use types::*;
