//! The runtime: a directory of containers.

use std::path::{Path, PathBuf};

use crate::container::Container;
use crate::create::{self, CreateError, CreateRequest, Created};
use crate::error::Failure;
use crate::state::{self, Dir, StateError};

/// All containers whose state lies below one directory.
#[derive(Clone, Debug)]
pub struct Runtime {
    root: PathBuf,
}

impl Runtime {
    /// The runtime whose state lies below `root`. Nothing is made until the first container is.
    pub fn new(root: impl Into<PathBuf>) -> Runtime {
        Runtime { root: root.into() }
    }

    /// Where state lies if the user says nothing: `/run/berth-oci` for root, below
    /// `$XDG_RUNTIME_DIR` for others.
    pub fn default_root() -> PathBuf {
        if rustix::process::geteuid().is_root() {
            return "/run/berth-oci".into();
        }
        match std::env::var_os("XDG_RUNTIME_DIR") {
            Some(dir) if Path::new(&dir).is_absolute() => Path::new(&dir).join("berth-oci"),
            _ => format!("/tmp/berth-oci-{}", rustix::process::geteuid().as_raw()).into(),
        }
    }

    /// The directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Makes a container. On success its process waits for [`Container::start`] (or runs, with
    /// [`crate::Launch::Now`]); on failure nothing is left.
    ///
    /// The calling process must have a single thread: the call forks. It becomes the parent of the
    /// container's first process, and nobody else reaps that.
    ///
    /// # Errors
    /// [`CreateError`] names the step and what the kernel said.
    pub fn create(&self, request: CreateRequest) -> Result<Created, CreateError> {
        create::create(&self.root, request)
    }

    /// Finds a container.
    ///
    /// # Errors
    /// [`StateError::NotFound`] if there is none of this id.
    pub fn open(&self, id: &str) -> Result<Container, StateError> {
        let dir = Dir::of(&self.root, id)?;
        match dir.read(&self.root)? {
            Some(record) => Ok(Container::new(&self.root, dir, record)),
            None => Err(StateError::Creating { id: id.into() }),
        }
    }

    /// Removes what a creator left that died before it recorded anything. For `delete --force`.
    ///
    /// # Errors
    /// When the directory cannot be removed.
    pub fn clear_remains(&self, id: &str) -> Result<(), StateError> {
        let dir = Dir::of(&self.root, id)?;
        match dir.read(&self.root) {
            Ok(Some(_)) => Ok(()),
            Ok(None) | Err(StateError::Damaged { .. }) => dir.remove(),
            Err(error) => Err(error),
        }
    }

    /// Ids of all containers, sorted. Those that vanish meanwhile are simply not found later.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn ids(&self) -> Result<Vec<String>, Failure> {
        state::ids(&self.root)
    }
}
