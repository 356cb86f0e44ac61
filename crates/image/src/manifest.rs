//! Manifests, indexes and image configurations: JSON from outside, parsed into types once.
//!
//! Follows the OCI image specification 1.1 (manifest.md, image-index.md, config.md, descriptor.md) and
//! Docker's schema 2. The bytes as received stay the truth (their digest is the name); these types
//! are what we read from them and what we write for images made here. Never reads files.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};

use crate::{digest::Digest, limits::Limits, platform::Platform};

/// Media types this crate reads and writes.
pub mod media {
    /// OCI image manifest.
    pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    /// OCI image index.
    pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
    /// OCI image configuration.
    pub const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
    /// OCI layer, plain tar.
    pub const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
    /// OCI layer, gzip.
    pub const LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
    /// OCI layer, zstd.
    pub const LAYER_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
    /// Docker image manifest, schema 2.
    pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
    /// Docker manifest list.
    pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
    /// Docker image configuration.
    pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
    /// Docker layer, gzip.
    pub const DOCKER_LAYER_GZIP: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
    /// Docker layer, plain tar.
    pub const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";
    /// The `Accept` header of a manifest request.
    pub(crate) const ACCEPT: &str = concat!(
        "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, ",
        "application/vnd.docker.distribution.manifest.v2+json, ",
        "application/vnd.docker.distribution.manifest.list.v2+json"
    );
}

/// Reference to content: what it is, its name, its length.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// Media type of the content.
    #[serde(default)]
    pub media_type: String,
    /// Digest of the content.
    pub digest: Digest,
    /// Length in bytes.
    pub size: u64,
    /// Platform, in the entries of an index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// Free annotations.
    #[serde(
        default,
        deserialize_with = "nullable",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub annotations: BTreeMap<String, String>,
}

impl Descriptor {
    /// A descriptor without platform and annotations.
    pub fn new(media_type: &str, digest: Digest, size: u64) -> Self {
        Self {
            media_type: media_type.to_owned(),
            digest,
            size,
            platform: None,
            annotations: BTreeMap::new(),
        }
    }
}

/// An image manifest for one platform.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Always 2.
    pub schema_version: u32,
    /// OCI or Docker manifest media type.
    #[serde(default)]
    pub media_type: String,
    /// The image configuration.
    pub config: Descriptor,
    /// The layers, lowest first.
    pub layers: Vec<Descriptor>,
    /// Free annotations.
    #[serde(
        default,
        deserialize_with = "nullable",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub annotations: BTreeMap<String, String>,
}

/// A multi-platform index (Docker: manifest list).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    /// Always 2.
    pub schema_version: u32,
    /// OCI index or Docker list media type.
    #[serde(default)]
    pub media_type: String,
    /// One entry per platform (and attestations, which have the platform `unknown/unknown`).
    pub manifests: Vec<Descriptor>,
}

/// Either kind of document that a tag may point to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Document {
    /// One image.
    Manifest(Manifest),
    /// Several, by platform.
    Index(Index),
}

/// Why a manifest, an index or a configuration was refused.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// More bytes than the limit.
    #[error("the {what} has more than {limit} bytes")]
    TooLarge {
        /// Which document.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
    /// Not JSON, or a field is missing or has the wrong type.
    #[error("the {what} is malformed")]
    Json {
        /// Which document.
        what: &'static str,
        /// What the parser says.
        #[source]
        source: serde_json::Error,
    },
    /// Docker's schema 1, unsupported since Docker 26.
    #[error(
        "the image uses Docker's old schema 1 format; ask its publisher to push it again with a current tool"
    )]
    Schema1,
    /// Both an image and an index, or neither: different readers would see different images.
    #[error("the manifest is neither clearly an image nor clearly an index")]
    Ambiguous,
    /// Too many layers or index entries.
    #[error("the {what} lists {count} entries; at most {limit} are accepted")]
    TooMany {
        /// Which document.
        what: &'static str,
        /// Entries found.
        count: usize,
        /// The limit.
        limit: usize,
    },
    /// The configuration does not describe the manifest's layers.
    #[error("the image has {layers} layers but its configuration names {diff_ids}")]
    LayerCount {
        /// Layers in the manifest.
        layers: usize,
        /// Layers in the configuration.
        diff_ids: usize,
    },
    /// A layer format we do not know, or not a layer at all.
    #[error("the layer {digest} has the unsupported type {media_type:?}")]
    LayerType {
        /// The layer.
        digest: Digest,
        /// Its media type.
        media_type: String,
    },
    /// Not a container image: an artifact such as a Helm chart or a signature.
    #[error("this is not a container image but an artifact of type {0:?}")]
    NotAnImage(String),
    /// Nothing in the index fits.
    #[error("the image is not published for {wanted}; it has: {offered}")]
    Platform {
        /// What was wanted.
        wanted: Platform,
        /// What there is.
        offered: String,
    },
}

impl Document {
    /// Parses what a registry or a layout calls a manifest.
    ///
    /// # Errors
    /// [`ManifestError`], limits first.
    pub fn parse(bytes: &[u8], limits: &Limits) -> Result<Self, ManifestError> {
        #[derive(Deserialize)]
        struct Shape {
            #[serde(rename = "schemaVersion")]
            schema_version: u32,
            manifests: Option<serde::de::IgnoredAny>,
            layers: Option<serde::de::IgnoredAny>,
            config: Option<serde::de::IgnoredAny>,
        }
        check_size("manifest", bytes, limits.manifest_bytes)?;
        let json = |source| ManifestError::Json {
            what: "manifest",
            source,
        };
        let shape: Shape = serde_json::from_slice(bytes).map_err(json)?;
        if shape.schema_version == 1 {
            return Err(ManifestError::Schema1);
        }
        match (
            shape.manifests.is_some(),
            shape.layers.is_some() || shape.config.is_some(),
        ) {
            (true, false) => {
                let index: Index = serde_json::from_slice(bytes).map_err(json)?;
                check_count("index", index.manifests.len(), limits.index_entries)?;
                Ok(Self::Index(index))
            }
            (false, true) => {
                let manifest: Manifest = serde_json::from_slice(bytes).map_err(json)?;
                check_count("manifest", manifest.layers.len(), limits.layers)?;
                Ok(Self::Manifest(manifest))
            }
            _ => Err(ManifestError::Ambiguous),
        }
    }
}

impl Manifest {
    /// The manifest's media type, filled in from its configuration when the optional field is absent.
    pub fn effective_media_type(&self) -> &str {
        match self.media_type.as_str() {
            "" if self.config.media_type == media::DOCKER_CONFIG => media::DOCKER_MANIFEST,
            "" => media::MANIFEST,
            given => given,
        }
    }

    /// Refuses artifacts and unknown layer formats.
    pub(crate) fn check(&self) -> Result<(), ManifestError> {
        let config = self.config.media_type.as_str();
        if !matches!(
            config,
            "" | media::CONFIG | media::DOCKER_CONFIG | "application/octet-stream"
        ) {
            return Err(ManifestError::NotAnImage(
                config.chars().take(120).collect(),
            ));
        }
        let known = |media_type: &str| {
            matches!(
                media_type,
                media::LAYER
                    | media::LAYER_GZIP
                    | media::LAYER_ZSTD
                    | media::DOCKER_LAYER
                    | media::DOCKER_LAYER_GZIP
                    | "application/vnd.docker.image.rootfs.diff.tar.zstd"
                    | "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
                    | "application/vnd.oci.image.layer.nondistributable.v1.tar"
                    | "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
                    | "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd"
            )
        };
        match self.layers.iter().find(|layer| !known(&layer.media_type)) {
            None => Ok(()),
            Some(layer) => Err(ManifestError::LayerType {
                digest: layer.digest,
                media_type: layer.media_type.chars().take(120).collect(),
            }),
        }
    }
}

impl Index {
    /// The entry that fits `wanted` best; the first of equals.
    ///
    /// # Errors
    /// [`ManifestError::Platform`] naming what is offered.
    pub fn select(&self, wanted: &Platform) -> Result<&Descriptor, ManifestError> {
        let mut best: Option<(u32, &Descriptor)> = None;
        for entry in &self.manifests {
            // Without a platform the index has been written for one image only (`podman save`, layouts).
            let fit = entry
                .platform
                .as_ref()
                .map_or(Some(0), |offered| wanted.fit(offered));
            if let Some(fit) = fit
                && best.is_none_or(|(level, _)| fit > level)
            {
                best = Some((fit, entry));
            }
        }
        best.map(|(_, entry)| entry).ok_or_else(|| {
            let offered: Vec<String> = (self.manifests.iter())
                .filter_map(|entry| entry.platform.as_ref())
                .filter(|platform| platform.os != "unknown")
                .map(ToString::to_string)
                .take(32)
                .collect();
            ManifestError::Platform {
                wanted: wanted.clone(),
                offered: offered.join(", "),
            }
        })
    }
}

/// An image configuration: how to run it, and which layers it is made of.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageConfig {
    /// RFC 3339 time of creation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// GOARCH.
    #[serde(default, deserialize_with = "nullable")]
    pub architecture: String,
    /// GOOS.
    #[serde(default, deserialize_with = "nullable")]
    pub os: String,
    /// CPU variant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
    /// How to run a container of it.
    #[serde(default, deserialize_with = "nullable")]
    pub config: RunConfig,
    /// The layers.
    pub rootfs: RootFs,
    /// How each layer came to be.
    #[serde(
        default,
        deserialize_with = "nullable",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub history: Vec<History>,
}

/// The layers of an image by the digest of their uncompressed tar.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootFs {
    /// Always `layers`.
    #[serde(rename = "type", default)]
    pub kind: String,
    /// Lowest first.
    #[serde(default, deserialize_with = "nullable")]
    pub diff_ids: Vec<Digest>,
}

/// One step of an image's making.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    /// RFC 3339 time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// What was done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_by: Option<String>,
    /// Free text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
    /// The step made no layer.
    #[serde(
        default,
        deserialize_with = "nullable",
        skip_serializing_if = "std::ops::Not::not"
    )]
    pub empty_layer: bool,
}

/// Defaults for a container of an image (config.md, "config").
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct RunConfig {
    /// `user[:group]`, names or numbers.
    #[serde(
        deserialize_with = "nullable",
        skip_serializing_if = "String::is_empty"
    )]
    pub user: String,
    /// Ports listened on, `80/tcp`.
    #[serde(
        deserialize_with = "nullable",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub exposed_ports: BTreeMap<String, Empty>,
    /// `NAME=value`.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// Start of the command line.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub entrypoint: Vec<String>,
    /// Rest of the command line, replaceable by the user.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub cmd: Vec<String>,
    /// Paths that want a volume.
    #[serde(
        deserialize_with = "nullable",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub volumes: BTreeMap<String, Empty>,
    /// Working directory.
    #[serde(
        deserialize_with = "nullable",
        skip_serializing_if = "String::is_empty"
    )]
    pub working_dir: String,
    /// Labels.
    #[serde(
        deserialize_with = "nullable",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub labels: BTreeMap<String, String>,
    /// Signal that asks the main process to stop, e.g. `SIGTERM` or `15`.
    #[serde(
        deserialize_with = "nullable",
        skip_serializing_if = "String::is_empty"
    )]
    pub stop_signal: String,
    /// Health check (Docker's extension).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub healthcheck: Option<Healthcheck>,
}

/// An empty JSON object: the value of the sets in [`RunConfig`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Empty {}

/// A health check; durations in nanoseconds, 0 means the default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Healthcheck {
    /// `["NONE"]`, `["CMD", args…]` or `["CMD-SHELL", command]`.
    #[serde(deserialize_with = "nullable")]
    pub test: Vec<String>,
    /// Time between checks, ns.
    #[serde(skip_serializing_if = "is_zero")]
    pub interval: i64,
    /// Time a check may take, ns.
    #[serde(skip_serializing_if = "is_zero")]
    pub timeout: i64,
    /// Grace time after start, ns.
    #[serde(skip_serializing_if = "is_zero")]
    pub start_period: i64,
    /// Time between checks during the grace time, ns.
    #[serde(skip_serializing_if = "is_zero")]
    pub start_interval: i64,
    /// Failures in a row before the container is unhealthy.
    #[serde(skip_serializing_if = "is_zero")]
    pub retries: i64,
}

impl ImageConfig {
    /// Parses a configuration.
    ///
    /// # Errors
    /// [`ManifestError`], limits first.
    pub fn parse(bytes: &[u8], limits: &Limits) -> Result<Self, ManifestError> {
        check_size("image configuration", bytes, limits.config_bytes)?;
        let config: Self = serde_json::from_slice(bytes).map_err(|source| ManifestError::Json {
            what: "image configuration",
            source,
        })?;
        check_count(
            "image configuration",
            config.rootfs.diff_ids.len(),
            limits.layers,
        )?;
        Ok(config)
    }

    /// The platform the image was built for.
    pub fn platform(&self) -> Platform {
        Platform {
            os: self.os.clone(),
            architecture: self.architecture.clone(),
            variant: self.variant.clone().filter(|variant| !variant.is_empty()),
        }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_zero(number: &i64) -> bool {
    *number == 0
}

/// Go writes `null` for an empty list or map.
fn nullable<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

fn check_size(what: &'static str, bytes: &[u8], limit: u64) -> Result<(), ManifestError> {
    if bytes.len() as u64 > limit {
        return Err(ManifestError::TooLarge { what, limit });
    }
    Ok(())
}

fn check_count(what: &'static str, count: usize, limit: usize) -> Result<(), ManifestError> {
    if count > limit {
        return Err(ManifestError::TooMany { what, count, limit });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
