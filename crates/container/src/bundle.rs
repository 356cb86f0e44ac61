//! From a bundle directory to a [`Spec`]: bytes, limits, JSON.
//!
//! Called by the commands and by the shim. The file is hostile: its size is capped before it is read,
//! its depth by the JSON parser (128), and a value of the wrong type is reported by the name of its
//! field. What the values must satisfy is checked by [`crate::validate`]. Never writes.

use std::io::Read;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

use crate::spec::{Process, Spec};
use crate::validate::{self, Invalid};

/// Largest `config.json` or `process.json` accepted. Real ones have 5 to 60 KiB.
pub const MAX_CONFIG_BYTES: u64 = 4 << 20;

/// Why a bundle could not be read.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// The bundle directory cannot be used.
    #[error("cannot open the bundle {}; it must be a directory with a config.json", path.display())]
    Directory {
        /// The directory asked for.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file is larger than any real one.
    #[error("{} is larger than {MAX_CONFIG_BYTES} bytes; no real configuration is", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// Not JSON, or a value has the wrong type.
    #[error("{}: field `{field}` is not what the specification asks for", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// The field by its JSON path.
        field: String,
        /// What the parser says.
        source: serde_json::Error,
    },
    /// Well-formed, but against the specification or beyond what this runtime does.
    #[error("{} cannot be used", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// Which field and why.
        source: Invalid,
    },
}

/// Loads and validates the configuration of the bundle at `dir`. Returns the bundle's absolute path too.
///
/// # Errors
/// [`BundleError`] names the file, and the field where there is one.
pub fn load(dir: &Path) -> Result<(PathBuf, Spec), BundleError> {
    load_config(dir, Path::new("config.json"))
}

/// As [`load`], with another name of the configuration file (relative to the bundle).
///
/// # Errors
/// As [`load`].
pub fn load_config(dir: &Path, config: &Path) -> Result<(PathBuf, Spec), BundleError> {
    let bundle = dir
        .canonicalize()
        .map_err(|source| BundleError::Directory {
            path: dir.to_owned(),
            source,
        })?;
    let path = bundle.join(config);
    let text = read(&path)?;
    let spec: Spec = parse_file(&path, &text)?;
    validate::spec(&spec).map_err(|source| BundleError::Invalid { path, source })?;
    Ok((bundle, spec))
}

/// Loads and validates a process description, as `exec --process` takes it.
///
/// # Errors
/// [`BundleError`] names the field.
pub fn load_process(path: &Path) -> Result<Process, BundleError> {
    let process: Process = read_json(path)?;
    validate::process(&process, "").map_err(|source| BundleError::Invalid {
        path: path.into(),
        source,
    })?;
    Ok(process)
}

/// Reads a JSON file within the size limit.
///
/// # Errors
/// [`BundleError`] names the field.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, BundleError> {
    parse_file(path, &read(path)?)
}

fn read(path: &Path) -> Result<Vec<u8>, BundleError> {
    let fail = |source| BundleError::Read {
        path: path.to_owned(),
        source,
    };
    let file = std::fs::File::open(path).map_err(fail)?;
    let mut bytes = Vec::with_capacity(32 << 10);
    file.take(MAX_CONFIG_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(fail)?;
    if bytes.len() as u64 > MAX_CONFIG_BYTES {
        return Err(BundleError::TooLarge {
            path: path.to_owned(),
        });
    }
    Ok(bytes)
}

fn parse_file<T: DeserializeOwned>(path: &Path, bytes: &[u8]) -> Result<T, BundleError> {
    parse(bytes).map_err(|(field, source)| BundleError::Json {
        path: path.into(),
        field,
        source,
    })
}

/// Parses JSON; on failure says which field. The common case pays nothing for that: only a text that
/// failed is parsed again with the path tracked.
pub(crate) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, (String, serde_json::Error)> {
    serde_json::from_slice(bytes).map_err(|first| {
        let mut json = serde_json::Deserializer::from_slice(bytes);
        match serde_path_to_error::deserialize::<_, T>(&mut json) {
            Ok(_) => (".".to_owned(), first),
            Err(error) => (error.path().to_string(), error.into_inner()),
        }
    })
}
