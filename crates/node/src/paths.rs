//! Where everything of one daemon is: below its root what lasts, below its run directory what
//! ends with the host's run. Nothing of it is anywhere else.

use std::path::{Path, PathBuf};

use model::InstanceId;

/// The directories of one daemon.
#[derive(Debug, Clone)]
pub struct Paths {
    root: PathBuf,
    run_dir: PathBuf,
}

impl Paths {
    /// For a root such as `/var/lib/berth` and a run directory such as `/run/berth`.
    #[must_use]
    pub fn new(root: impl Into<PathBuf>, run_dir: impl Into<PathBuf>) -> Self {
        Self {
            root: root.into(),
            run_dir: run_dir.into(),
        }
    }

    /// Everything that lasts.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Everything that ends with the host's run.
    #[must_use]
    pub fn run_dir(&self) -> &Path {
        &self.run_dir
    }

    /// The store.
    #[must_use]
    pub fn database(&self) -> PathBuf {
        self.root.join("berth.db")
    }

    /// Images.
    #[must_use]
    pub fn images(&self) -> PathBuf {
        self.root.join("images")
    }

    /// Passwords for registries.
    #[must_use]
    pub fn credentials(&self) -> PathBuf {
        self.root.join("credentials.json")
    }

    /// The default pool.
    #[must_use]
    pub fn pool(&self) -> PathBuf {
        self.root.join("pool")
    }

    /// Every instance's directory.
    #[must_use]
    pub fn instances(&self) -> PathBuf {
        self.root.join("instances")
    }

    /// One instance's directory: everything that defines it.
    #[must_use]
    pub fn instance(&self, id: InstanceId) -> PathBuf {
        self.instances().join(id.to_string())
    }

    /// Directories that are being deleted.
    #[must_use]
    pub fn trash(&self) -> PathBuf {
        self.root.join("trash")
    }

    /// Archives that are being imported.
    #[must_use]
    pub fn uploads(&self) -> PathBuf {
        self.root.join("uploads")
    }

    /// The daemon's socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.run_dir.join("berth.sock")
    }

    /// What the engine keeps of running guests.
    #[must_use]
    pub fn guests(&self) -> PathBuf {
        self.run_dir.join("guests")
    }
}
