//! What a shim is told to do: `DIR/shim.json`, written by the daemon before it launches one.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::durable::{self, FileError};

/// The version of the format written here.
pub const CONFIG_VERSION: u32 = 1;
/// The name of the file.
pub const CONFIG_FILE: &str = "shim.json";
const MAX_BYTES: u64 = 1 << 20;

/// One container's shim.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShimConfig {
    /// [`CONFIG_VERSION`].
    pub version: u32,
    /// The instance, also the container's id for the runtime.
    pub instance: String,
    /// The generation of its spec.
    pub generation: u64,
    /// The bundle: a directory with `config.json`.
    pub bundle: PathBuf,
    /// Where the root file system comes from.
    pub rootfs: Rootfs,
    /// Whether the program's standard streams are a terminal; must agree with `process.terminal`.
    pub terminal: bool,
    /// Whether input stays open for whoever attaches, else it is `/dev/null`.
    pub stdin_open: bool,
    /// Where output is kept; `None` keeps none.
    pub log: Option<LogConfig>,
    /// The file that gets the [`super::ExitRecord`].
    pub exit_record: PathBuf,
    /// The runtime's state root.
    pub state_root: PathBuf,
    /// The control group, as `linux.cgroupsPath`; must agree with it.
    pub cgroup: String,
    /// The control group of version 2 that the shim itself lives in, as an absolute path; that of its
    /// launcher if absent. A service manager that ends the daemon then does not meet its shims.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shim_cgroup: Option<String>,
    /// Install the default system call filter for the process's capabilities; the bundle then names
    /// none. Spares every start writing and reading the policy as JSON.
    #[serde(default)]
    pub default_seccomp: bool,
    /// Files of the host that the program finds open for reading and writing, as descriptors 3 and on:
    /// devices it could not open itself.
    #[serde(default)]
    pub descriptors: Vec<PathBuf>,
    /// How the kernel rates the shim itself when memory runs out, -1000 to 1000.
    pub oom_score_adj: Option<i16>,
}

/// Where the root file system comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Rootfs {
    /// `root.path` of the bundle.
    Dir,
    /// An overlay that exists in the container's mount namespace only.
    Overlay {
        /// Read-only layers, topmost first.
        lower: Vec<PathBuf>,
        /// The writable layer.
        upper: PathBuf,
        /// The overlay's work directory, on the file system of `upper`.
        work: PathBuf,
        /// Map the ids on disk through the container's user namespace.
        idmap: bool,
    },
}

/// Where output is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogConfig {
    /// The current file; older ones have `.1`, `.2`, … appended.
    pub path: PathBuf,
    /// A file of this many bytes is put aside; 0 never.
    pub max_bytes: u64,
    /// How many files are kept, the current one included; at least 1.
    pub max_files: u32,
}

/// Why `shim.json` cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// It cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// It is not what it should be.
    #[error("{} cannot be understood", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What the parser said.
        source: serde_json::Error,
    },
    /// It was written by another version.
    #[error(
        "{} has version {version}, and this shim reads {CONFIG_VERSION}; upgrade the daemon and \
         its runtime together", path.display()
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        version: u64,
    },
}

impl ShimConfig {
    /// Reads `dir/shim.json`.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn load(dir: &Path) -> Result<ShimConfig, ConfigError> {
        let path = dir.join(CONFIG_FILE);
        let bytes = durable::read(&path, MAX_BYTES)?;
        let json = |source| ConfigError::Json {
            path: path.clone(),
            source,
        };
        #[derive(Deserialize)]
        struct Versioned {
            version: u64,
        }
        let Versioned { version } = serde_json::from_slice(&bytes).map_err(json)?;
        if version != u64::from(CONFIG_VERSION) {
            return Err(ConfigError::Version { path, version });
        }
        serde_json::from_slice(&bytes).map_err(json)
    }

    /// Writes `dir/shim.json`; for the daemon. Without fsync: it is the request for a process of this
    /// boot, and what defines the instance is kept elsewhere.
    ///
    /// # Errors
    /// [`ConfigError::File`].
    pub fn save(&self, dir: &Path) -> Result<(), ConfigError> {
        let path = dir.join(CONFIG_FILE);
        let json = |source| ConfigError::Json {
            path: path.clone(),
            source,
        };
        let bytes = serde_json::to_vec_pretty(self).map_err(json)?;
        Ok(durable::replace(&path, &bytes)?)
    }
}
