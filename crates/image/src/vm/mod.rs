//! What virtual machines boot: kernels with their initramfs, disks made from images, and disks that boot
//! by themselves.
//!
//! ```text
//!   ROOT/kernels/sha256/<key>/     a kernel of a distribution: vmlinuz, vmlinux, modules, initramfs
//!   ROOT/disks/sha256/<hex>/       the root disk of an image, under the image's digest
//! ```
//! Called by the daemon before a virtual machine starts. Both are derived: they can be made again at any
//! time. The collector takes a disk with its image, and a kernel that is neither the newest nor in use. Knows nothing of instances, and
//! of the agent only that it is a program to be `/init`.

pub(crate) mod cpio;
mod disk;
mod kernel;
pub(crate) mod machine;
mod modules;
mod seed;

pub use cpio::{agent_archive, config_archive};
pub use disk::{DiskError, RootDisk, copy_disk};
pub use kernel::{Kernel, KernelError, KernelRecipe};
pub use machine::{BootError, MachineImageError, OwnBoot, Qcow2Error};
pub use modules::ModuleError;
pub(crate) use modules::fuzz_module_info;
pub use seed::{Seed, SeedInterface};
