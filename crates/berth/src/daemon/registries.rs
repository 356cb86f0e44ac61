//! The registries file: mirrors, registries without TLS, certificate authorities. Credentials are
//! files of their own, as other tools write them.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use image::{Credentials, Mirror, RegistryConfig};
use node::Paths;
use serde::Deserialize;

/// Name of the file below the root when none is given.
const FILE: &str = "registries.json";

/// `registries.json`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct File {
    /// Replacements for registries, tried before them, in order.
    mirrors: Vec<FileMirror>,
    /// Registries (`host[:port]`) spoken to without TLS; loopback always may.
    insecure: Vec<String>,
    /// PEM files with additional certificate authorities.
    ca_files: Vec<PathBuf>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileMirror {
    registry: String,
    location: String,
}

/// Reads the file; one that was not asked for need not exist.
pub(super) fn load(asked: Option<&Path>, paths: &Paths) -> Result<RegistryConfig> {
    let path = asked.map_or_else(|| paths.root().join(FILE), Path::to_owned);
    let file = match std::fs::read(&path) {
        Ok(text) => serde_json::from_slice(&text)
            .with_context(|| format!("{} cannot be understood", path.display()))?,
        Err(error) if asked.is_none() && error.kind() == std::io::ErrorKind::NotFound => {
            File::default()
        }
        Err(error) => {
            return Err(error).with_context(|| format!("{} cannot be read", path.display()));
        }
    };
    let mirror = |one: FileMirror| Mirror {
        registry: one.registry,
        location: one.location,
    };
    Ok(RegistryConfig {
        mirrors: file.mirrors.into_iter().map(mirror).collect(),
        insecure: file.insecure,
        ca_files: file.ca_files,
        credentials: Credentials::of_user(paths.credentials()),
    })
}
