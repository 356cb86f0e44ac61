//! A guest's root file system, opened for whoever copies files in or out.

use std::os::fd::OwnedFd;

use model::record::IdMap;

/// A guest's root as seen inside. Everything below it is the guest's and hostile: resolve paths
/// inside it only (`openat2` with `RESOLVE_IN_ROOT`), and follow no link out.
#[derive(Debug)]
pub struct RootView {
    /// The root directory, opened as a path. What it shows stays while it is open, also when the
    /// guest ends; it is nowhere in the host's mount table.
    pub directory: OwnedFd,
    /// How ids of files found here are the guest's: id `n` inside is `base + n` here. `None` when
    /// they are the same.
    pub idmap: Option<IdMap>,
    /// Absolute paths inside where something of the guest's is mounted when it runs, which this
    /// view does not show. Empty for a guest that runs.
    pub hidden: Vec<String>,
}
