//! The kinds of operations: changes that acquire or give back several things, all or nothing.

use serde::{Deserialize, Serialize};

/// What an operation does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OperationKind {
    /// Makes an instance.
    InstanceCreate,
    /// Deletes an instance.
    InstanceDelete,
    /// Fetches an image from a registry.
    ImagePull,
    /// Sends an image to a registry.
    ImagePush,
    /// Makes an image from a built-in recipe.
    ImageBuild,
    /// Makes an image from a file.
    ImageImport,
}

impl OperationKind {
    /// Every kind.
    pub const ALL: [Self; 6] = [
        Self::InstanceCreate,
        Self::InstanceDelete,
        Self::ImagePull,
        Self::ImagePush,
        Self::ImageBuild,
        Self::ImageImport,
    ];

    /// The name stored and written on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::InstanceCreate => "instance_create",
            Self::InstanceDelete => "instance_delete",
            Self::ImagePull => "image_pull",
            Self::ImagePush => "image_push",
            Self::ImageBuild => "image_build",
            Self::ImageImport => "image_import",
        }
    }
}
