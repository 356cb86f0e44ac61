//! Control groups v2, v1 and hybrid behind one interface.
//!
//! The `container` crate and its shim are the callers. They detect a [`Layout`] once, make a
//! [`Cgroup`] per container, put a process in, [`Cgroup::apply`] limits, read [`Stats`] and remove
//! the group at the end. Which kernel interface answers is this crate's secret: callers state what
//! they want in [`Resources`], in units, and get an error that names the limit and the controller
//! where the host cannot give it.
//!
//! What this crate never does: mount, unmount or remount anything; touch a group outside the path
//! it was given (except to enable controllers in the parents of a v2 group); fork; print; know
//! what a container is.
//!
//! ```text
//!  Layout ──► Cgroup ──► add / clone_into_fd      processes enter
//!                   ├──► apply(Resources)         limits (plan: pure, then written)
//!                   ├──► freeze / thaw / kill     control
//!                   ├──► stats / pids / watch_oom observation
//!                   └──► delete                   the end
//! ```

mod apply;
mod control;
mod controller;
pub mod convert;
mod delegate;
pub mod devices;
mod events;
mod file;
mod group;
mod layout;
mod parse;
mod path;
mod resources;
mod stats;

#[doc(hidden)]
pub mod fuzzing;

pub use apply::ApplyError;
pub use control::{FreezeError, KillError};
pub use controller::{Controller, ControllerSet};
pub use delegate::{DelegateError, SubtreeError};
pub use devices::{Access, DeviceKind, DeviceRule};
pub use events::{OomWatch, WatchError};
pub use file::FileError;
pub use group::{Cgroup, CreateError, DeleteError, JoinError, Refusal};
pub use layout::{Hierarchy, Layout, LayoutError, Mode};
pub use path::{CgroupPath, PathError};
pub use resources::{
    BlockIo, Cpu, CpuWeight, DeviceRate, DeviceWeight, HugePages, InterfacePriority, Limit, Memory,
    Network, Rdma, Resources,
};
pub use stats::{CpuStats, HugePageStats, IoStats, MemoryStats, PidsStats, Stats, StatsError};
