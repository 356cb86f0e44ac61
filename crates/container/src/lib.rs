//! The OCI runtime: from a bundle to a running container and back to nothing.
//!
//! A library first: the shim creates, starts and deletes containers in its own process, and
//! `berth oci` is a thin command line over the same calls ([`oci_cli`]). Follows the OCI runtime
//! specification 1.3.0.
//!
//! ```text
//!   bundle ──► Spec ──► Runtime::create ──► Container ──► start · exec · kill · pause · update ──► delete
//!                           │
//!              parent: create.rs ◄── channel ──► child: init.rs ─► mounts ─► process ─► execve
//! ```
//!
//! The design, in a few decisions:
//! - One clone3 per container, straight into its namespaces (and its v2 control group); no intermediate
//!   process, no helper is executed, no /proc is walked.
//! - All mounts are made by descriptor inside the child's own mount namespace. The host's mount table
//!   never changes, so there is nothing to leak.
//! - Every path of an image is resolved by the kernel inside the root, without magic links.
//! - The container cannot reach this program's file for writing: see [`guard`].
//!
//! Knows nothing of images, networks or instances. `create`, `exec` and hooks fork: callers must be
//! single-threaded.

pub mod bundle;
mod caps;
mod cgroups;
mod channel;
mod container;
mod create;
mod error;
mod exec;
pub mod guard;
pub mod heap;
mod hooks;
mod idmap;
mod init;
mod limits;
mod mounts;
mod namespaces;
pub mod oci_cli;
mod pid_file;
mod process;
mod runtime;
mod seccomp_filter;
pub mod shim;
pub mod spec;
mod state;
mod sys;
mod tail;
mod terminal;
pub mod validate;

#[doc(hidden)]
pub mod fuzzing;

pub use container::{Container, Delete, OperationError};
pub use create::{CreateError, CreateRequest, Created, Launch, Stdio, request_for_bundle};
pub use error::{Failure, PROGRAM_NOT_EXECUTABLE, PROGRAM_NOT_FOUND, chain, program_status};
pub use exec::{ExecError, ExecRequest, Executed};
pub use mounts::{MAX_LAYERS, Overlay, Rootfs};
pub use runtime::Runtime;
pub use state::{Record, StateError};
pub use tail::Detachment;
pub use terminal::send_console;
