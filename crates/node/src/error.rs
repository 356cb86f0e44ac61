//! Why the node could not do as asked.

use std::path::PathBuf;

pub(crate) use model::chain;

use crate::WiringError;

/// Why the node could not do as asked.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The store could not be read.
    #[error(transparent)]
    Table(#[from] store::TableError),
    /// The store could not be written.
    #[error(transparent)]
    Commit(#[from] store::CommitError),
    /// The engine refused or failed.
    #[error(transparent)]
    Engine(engine::EngineError),
    /// A network could not be brought in line.
    #[error(transparent)]
    Wiring(#[from] WiringError),
    /// The image is not there or cannot be read.
    #[error("the image {image:?} of this instance cannot be used")]
    Image {
        /// The image.
        image: String,
        /// Why.
        #[source]
        source: image::StoreError,
    },
    /// The kernel of virtual machines could not be made.
    #[error("there is no kernel for virtual machines")]
    Kernel(#[source] image::vm::KernelError),
    /// The root disk of a virtual machine could not be made.
    #[error("the disk of this virtual machine cannot be made")]
    Disk(#[source] image::vm::DiskError),
    /// A volume could not be made.
    #[error("a volume of this instance cannot be used")]
    Volume(#[from] volume::VolumeError),
    /// The spec asks for what the host or the image does not have; for the user.
    #[error("{0}")]
    Unusable(String),
    /// A file of the instance could not be written or read.
    #[error("cannot {action} {}", path.display())]
    File {
        /// What was being done.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
}

impl NodeError {
    /// The error and its causes on one line.
    #[must_use]
    pub fn chain(&self) -> String {
        chain(self)
    }

    pub(crate) fn file(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::File {
            action,
            path,
            source,
        }
    }
}
