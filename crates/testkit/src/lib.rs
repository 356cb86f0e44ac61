//! What tests of several crates share: loud skips, network namespaces, a registry, and a daemon of
//! their own that can be killed at any moment and leaves nothing behind.
//!
//! Called from tests only. Whatever is made here is removed when dropped, also when a test fails;
//! nothing outside of it is ever touched.
//!
//! | type | is |
//! |---|---|
//! | [`Netns`] | a network namespace with loopback |
//! | [`Registry`] | Debian's `docker-registry` inside one |
//! | [`Daemon`] | `berth daemon` with a root, a prefix and a network namespace of its own |
//! | [`images()`], [`images_of`] | images made once and lent to many daemons |
//! | [`Terminal`] | a pseudo-terminal to press keys at |
//! | [`leftovers()`] | what a daemon or its guests left on the host |

#![forbid(unsafe_code)]

mod daemon;
mod images;
mod leftovers;
mod netns;
mod process;
mod registry;
mod skip;
mod terminal;

pub use daemon::{Daemon, Said};
pub use images::{images, images_of};
pub use leftovers::leftovers;
pub use netns::Netns;
pub use process::Background;
pub use registry::Registry;
pub use skip::{lacks, skip};
pub use terminal::{Terminal, code_of};
