//! Small languages of flag values: `8080:80/udp`, `data:/var/lib:ro`, `nofile=1024:4096`.
//!
//! Called by clap, which puts the name of the flag before each message. A message says what would
//! be right. Nothing here does I/O but [`env::read_file`].

pub mod duration;
pub mod env;
pub mod mount;
pub mod port;
pub mod resource;

/// Splits `key=value`; the key is not empty.
pub fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write it as KEY=VALUE".into()),
    }
}

/// A label: `key=value`, or `key` alone for an empty value.
pub fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').unwrap_or((text, ""));
    if key.is_empty() {
        return Err("a label needs a key: write KEY=VALUE".into());
    }
    Ok((key.to_owned(), value.to_owned()))
}

/// A size, kept as it was written once it is known to be one.
pub fn size(text: &str) -> Result<String, String> {
    text.parse::<model::ByteSize>()
        .map(|_| text.to_owned())
        .map_err(|error| error.to_string())
}

/// A number of CPUs.
pub fn cpus(text: &str) -> Result<f64, String> {
    text.parse::<model::units::MilliCpus>()
        .map(|cpus| f64::from(cpus.0) / 1000.0)
        .map_err(|error| error.to_string())
}
