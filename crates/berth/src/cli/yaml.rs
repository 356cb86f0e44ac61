//! YAML out and in. The only place that names the library.

use serde::{Serialize, de::DeserializeOwned};

use super::exit::{Failure, Outcome};

/// Writes a document.
pub fn write(thing: &impl Serialize) -> Outcome<String> {
    let mut text = serde_saphyr::to_string(thing).map_err(|error| {
        Failure::error(format!("the output cannot be written as YAML: {error}"))
    })?;
    if !text.ends_with('\n') {
        text.push('\n');
    }
    Ok(text)
}

/// Reads a document. The message of an error names line and column.
pub fn read<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    serde_saphyr::from_str(text).map_err(|error| error.to_string())
}
