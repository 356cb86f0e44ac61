//! Images.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Name and password for a registry, for one request; never stored by the daemon.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RegistryAuth {
    /// User name.
    pub username: String,
    /// Password or access token.
    pub password: String,
}

impl std::fmt::Debug for RegistryAuth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RegistryAuth")
            .field("username", &self.username)
            .finish_non_exhaustive()
    }
}

/// Body of a pull request.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ImagePull {
    /// What to fetch.
    pub reference: String,
    /// Platform such as `linux/arm64`; the host's when absent.
    pub platform: Option<String>,
    /// Credentials; those the daemon is configured with when absent.
    pub auth: Option<RegistryAuth>,
}

/// Body of a push request.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ImagePush {
    /// The local image.
    pub image: String,
    /// Where to; the image's own reference when absent.
    pub reference: Option<String>,
    /// Credentials; those the daemon is configured with when absent.
    pub auth: Option<RegistryAuth>,
}

/// A recipe built in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Recipe {
    /// A static busybox.
    Busybox,
    /// Debian, by mmdebstrap.
    Debian,
}

/// Body of a build request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ImageBuild {
    /// The recipe.
    pub recipe: Recipe,
    /// Name of the image made; the recipe's own when absent.
    #[serde(default)]
    pub name: Option<String>,
    /// Debian: the release, such as `bookworm`; the host's when absent.
    #[serde(default)]
    pub suite: Option<String>,
    /// Debian: packages besides the base system.
    #[serde(default)]
    pub packages: Vec<String>,
    /// Debian: whether an init and its services are inside, for a system container.
    #[serde(default)]
    pub system: bool,
    /// Whether a virtual machine boots it: with an init that finds its devices, and with kernel,
    /// initial file system, agent and disk made at once.
    #[serde(default)]
    pub vm: bool,
    /// Makes it anew even when an image of the same recipe is there.
    #[serde(default)]
    pub fresh: bool,
}

/// Body of a tag request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ImageTag {
    /// The image.
    pub image: String,
    /// Its new name.
    pub reference: String,
}

/// An image in a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Image {
    /// Name and tag; empty for an image without a name.
    pub reference: String,
    /// Digest of its manifest.
    pub digest: String,
    /// Platform, such as `linux/amd64`.
    pub platform: String,
    /// Size of its layers, unpacked.
    pub size_bytes: u64,
    /// When it was made (RFC 3339).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_at: Option<String>,
    /// Instances made from it.
    pub instances: u64,
}

/// One layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ImageLayer {
    /// Digest of the blob as transferred.
    pub digest: String,
    /// Digest of the layer unpacked.
    pub diff_id: String,
    /// Size as transferred.
    pub size_bytes: u64,
}

/// One image, whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ImageDetail {
    /// As in a list.
    #[serde(flatten)]
    pub image: Image,
    /// Layers, base first.
    pub layers: Vec<ImageLayer>,
    /// Entrypoint.
    pub entrypoint: Vec<String>,
    /// Command.
    pub command: Vec<String>,
    /// Environment, `KEY=value`.
    pub env: Vec<String>,
    /// User.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Working directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workdir: Option<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
}

/// What one image takes on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ImageDfRow {
    /// Name and tag.
    pub reference: String,
    /// Digest of its manifest.
    pub digest: String,
    /// All its layers.
    pub size_bytes: u64,
    /// What only this image has: freed when it goes.
    pub unique_bytes: u64,
    /// What it shares with others.
    pub shared_bytes: u64,
}

/// What images take on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ImageDf {
    /// One row an image.
    pub images: Vec<ImageDfRow>,
    /// What is on disk, everything stored once.
    pub total_bytes: u64,
    /// What it would be with nothing shared.
    pub apparent_bytes: u64,
    /// What a collection would free.
    pub reclaimable_bytes: u64,
}

/// What a collection did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ImageGc {
    /// Bytes freed.
    pub freed_bytes: u64,
    /// Blobs and layers removed.
    pub removed: u64,
}
