//! Container images: a content-addressed store shared by every instance of a host, and the ways in
//! and out of it.
//!
//! ```text
//!   registry ──pull──┐                          ┌──push──▶ registry
//!   archive ──import─┤   ┌───────────────────┐  ├─export─▶ archive, layout
//!   recipe ───build──┼──▶│ blobs  layers/fs  │──┤
//!   upper ───commit──┘   │ images  refs      │  └─layers─▶ overlay mount (by the runtime)
//!                        └───────────────────┘
//! ```
//!
//! Callers: the node (to run instances) and the daemon's image operations. The crate knows nothing of
//! instances: whoever collects garbage says what is in use. There is no database; everything is read
//! from files, so a store can be copied, and opened after any crash.
//!
//! **Blocking.** [`Store::pull`] and [`Store::push`] are async and block no runtime thread. Everything
//! else is synchronous: quick look-ups (`get`, `list`, `layers`, `config`, `tag`, `untag`, `hold`) read
//! a few small files; `open`, `gc`, `usage` and everything that takes a [`Job`] can take long and
//! belongs in `spawn_blocking`.
//!
//! An image's identity is the digest of its manifest for one platform. Layers are unpacked once, named
//! by their *diff id* (the digest of the uncompressed tar), with owners as in the image; the runtime
//! id-maps them. All of a store is readable by root only, since layers hold setuid programs and devices.
#![forbid(unsafe_code)]

mod assemble;
mod commit;
mod digest;
mod error;
#[doc(hidden)]
pub mod fuzzing;
mod job;
mod layer;
mod limits;
pub mod manifest;
mod platform;
mod pull;
mod push;
mod recipe;
mod reference;
mod registry;
mod store;
pub mod tar;
mod transfer;
pub mod vm;

pub use commit::{CommitError, CommitOptions};
pub use digest::{Digest, DigestError};
pub use error::StoreError;
pub use job::{Cancelled, Event, Job, LayerState, Phase};
pub use layer::{LayerError, TarError};
pub use limits::Limits;
pub use manifest::{Descriptor, ImageConfig, RunConfig};
pub use platform::{Platform, PlatformError};
pub use pull::{PullError, PullOptions, Pulled};
pub use push::{PushError, PushOptions, Pushed};
pub use recipe::{Built, DebianRecipe, Recipe, RecipeError};
pub use reference::{DEFAULT_REGISTRY, DEFAULT_TAG, LOCAL_REGISTRY, Reference, ReferenceError};
pub use registry::{Credential, Credentials, Mirror, Registries, RegistryConfig, RegistryError};
pub use store::{GcReport, Hold, Image, ImageUsage, InUse, LayerInfo, Store, Untagged, Usage};
pub use transfer::{ExportError, ExportFormat, ImportError, ImportOptions};
