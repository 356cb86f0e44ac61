//! What virtual machines boot: kernels with their initramfs, and disks made from images.
//!
//! ```text
//!   ROOT/kernels/<key>/            a kernel of a distribution: vmlinuz, modules, initramfs
//!   ROOT/disks/sha256/<hex>/       the root disk of an image, under the image's digest
//! ```
//! Called by the daemon before a virtual machine starts. Both are derived: they can be made again at any
//! time, and the collector takes them with what they were made from. Knows nothing of instances, and
//! of the agent only that it is a program to be `/init`.

pub(crate) mod cpio;
mod disk;
mod kernel;
mod modules;

pub use cpio::config_archive;
pub use disk::{DiskError, RootDisk, copy_disk};
pub use kernel::{Kernel, KernelError, KernelRecipe};
pub use modules::ModuleError;
#[doc(hidden)]
pub use modules::fuzz_module_info;
