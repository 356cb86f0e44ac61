//! The credentials file: what to show which daemon, kept from other users.

use std::{
    collections::BTreeMap,
    fmt,
    io::Read,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{
    address::Address,
    error::{ClientError, Result},
};

/// Most the file may take.
const MAX_FILE: u64 = 1 << 20;

/// The version of the format that is written and read.
const VERSION: u32 = 1;

/// What to show one daemon, and how to know it.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Credential {
    /// The token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// PEM file with the certificate authority that signed the daemon's certificate, trusted
    /// besides those of the system.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// SHA-256 of the daemon's certificate, as `sha256:<hex>`: exactly this one is trusted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<String>,
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credential")
            .field("ca_file", &self.ca_file)
            .field("fingerprint", &self.fingerprint)
            .finish_non_exhaustive()
    }
}

/// The file: `~/.config/berth/credentials.json`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Credentials {
    /// Version of the format.
    pub version: u32,
    /// By address, as [`Address`] prints it.
    pub hosts: BTreeMap<String, Credential>,
}

fn refuse(path: &Path, why: impl fmt::Display, hint: impl Into<String>) -> ClientError {
    ClientError::Config {
        message: format!(
            "the credentials file {} cannot be used: {why}",
            path.display()
        ),
        hint: hint.into(),
    }
}

impl Credentials {
    /// Where the file is: below `XDG_CONFIG_HOME`, else below `HOME`.
    #[must_use]
    pub fn default_path(env: &impl Fn(&str) -> Option<String>) -> Option<PathBuf> {
        let config = env("XDG_CONFIG_HOME")
            .map(PathBuf::from)
            .or_else(|| Some(PathBuf::from(env("HOME")?).join(".config")))?;
        Some(config.join("berth/credentials.json"))
    }

    /// Reads the file; none is an empty one.
    ///
    /// # Errors
    /// When others may read it, or when it is not of this format.
    pub fn load(path: &Path) -> Result<Self> {
        let file = match std::fs::File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Self::default());
            }
            Err(error) => return Err(refuse(path, error, "check its owner and mode")),
        };
        let mode = file
            .metadata()
            .map_err(|error| refuse(path, error, "check its owner and mode"))?
            .permissions()
            .mode();
        if mode & 0o077 != 0 {
            return Err(refuse(
                path,
                "other users may read or write it",
                format!("chmod 600 {}", path.display()),
            ));
        }
        let mut text = String::new();
        file.take(MAX_FILE)
            .read_to_string(&mut text)
            .map_err(|error| refuse(path, error, "check its owner and mode"))?;
        let example = r#"write {"version":1,"hosts":{"https://host:7443":{"token":"…"}}}"#;
        let read: Self =
            serde_json::from_str(&text).map_err(|error| refuse(path, error, example))?;
        if read.version != VERSION {
            let why = format!(
                "it has version {}, this client reads {VERSION}",
                read.version
            );
            return Err(refuse(path, why, "use the version of berth that wrote it"));
        }
        Ok(read)
    }

    /// What is kept for an address.
    #[must_use]
    pub fn of(&self, address: &Address) -> Credential {
        self.hosts
            .get(&address.to_string())
            .cloned()
            .unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_private_file_of_the_known_version_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("credentials.json");
        assert!(Credentials::load(&path).unwrap().hosts.is_empty());

        let write = |text: &str, mode: u32| {
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
            Credentials::load(&path)
        };
        let good = r#"{"version":1,"hosts":{"https://h:7443":{"token":"secret"}}}"#;
        let read = write(good, 0o600).unwrap();
        let credential = read.of(&"https://h".parse().unwrap());
        assert_eq!(credential.token.as_deref(), Some("secret"));
        assert!(!format!("{credential:?}").contains("secret"));
        assert_eq!(
            read.of(&"https://other".parse().unwrap()),
            Credential::default()
        );

        let shown = write(good, 0o640).unwrap_err();
        assert!(shown.hint().unwrap().starts_with("chmod 600"));
        assert!(write(r#"{"version":2,"hosts":{}}"#, 0o600).is_err());
        assert!(write(r#"{"version":1,"hosts":{},"x":1}"#, 0o600).is_err());
    }
}
