//! Where a daemon is, and what to show it: flags, environment and credentials file in one place.

use std::{fmt, path::PathBuf, str::FromStr};

use super::{
    credentials::{Credential, Credentials},
    error::{ClientError, Result},
};

/// The run directory of a daemon that was told nothing else.
const DEFAULT_RUN_DIR: &str = "/run/berth";

/// The port of a daemon when its address names none.
const DEFAULT_PORT: u16 = 7443;

/// Where a daemon listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// `unix:///path`: a Unix socket.
    Unix(PathBuf),
    /// `https://host:port`.
    Https {
        /// Name or address; an IPv6 address without brackets.
        host: String,
        /// TCP port.
        port: u16,
    },
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Https { host, port } if host.contains(':') => {
                write!(f, "https://[{host}]:{port}")
            }
            Self::Https { host, port } => write!(f, "https://{host}:{port}"),
        }
    }
}

fn bad_address(text: &str, why: &str) -> ClientError {
    ClientError::Config {
        message: format!("{text:?} is not the address of a daemon: {why}"),
        hint: "write unix:///run/berth/berth.sock or https://host:port".into(),
    }
}

impl FromStr for Address {
    type Err = ClientError;

    fn from_str(text: &str) -> Result<Self> {
        if let Some(path) = text.strip_prefix("unix://") {
            return if path.starts_with('/') {
                Ok(Self::Unix(PathBuf::from(path)))
            } else {
                Err(bad_address(text, "the path of the socket must be absolute"))
            };
        }
        if text.starts_with("http://") {
            return Err(bad_address(
                text,
                "plain HTTP would show the token to everyone on the way",
            ));
        }
        let Some(rest) = text.strip_prefix("https://") else {
            return Err(bad_address(
                text,
                "it starts with neither unix:// nor https://",
            ));
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (host, port) =
            split_port(rest).ok_or_else(|| bad_address(text, "the port is not a number"))?;
        let plain = |c: char| c.is_ascii_alphanumeric() || "-._:%".contains(c);
        if host.is_empty() || !host.chars().all(plain) {
            return Err(bad_address(text, "the host is not a name or an address"));
        }
        Ok(Self::Https {
            host: host.to_owned(),
            port,
        })
    }
}

/// `host:port`, `[v6]:port`, or either without a port.
fn split_port(text: &str) -> Option<(&str, u16)> {
    if let Some(rest) = text.strip_prefix('[') {
        let (host, rest) = rest.split_once(']')?;
        return match rest.strip_prefix(':') {
            Some(port) => Some((host, port.parse().ok()?)),
            None if rest.is_empty() => Some((host, DEFAULT_PORT)),
            None => None,
        };
    }
    match text.split_once(':') {
        Some((host, port)) => Some((host, port.parse().ok()?)),
        None => Some((text, DEFAULT_PORT)),
    }
}

/// All a client needs to know before its first request.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where the daemon is.
    pub address: Address,
    /// Token, certificate authority and fingerprint, for `https`.
    pub credential: Credential,
}

impl Config {
    /// A daemon on a Unix socket; needs no credentials.
    #[must_use]
    pub fn unix(path: impl Into<PathBuf>) -> Self {
        Self {
            address: Address::Unix(path.into()),
            credential: Credential::default(),
        }
    }

    /// Finds the daemon: `host` (the `--host` flag), else `BERTH_HOST`, else the socket below
    /// `BERTH_RUN_DIR`, else the one of the usual daemon. For `https` the token comes from
    /// `BERTH_TOKEN`, the trust from `BERTH_CA_FILE` or `BERTH_FINGERPRINT`, and what is in none of
    /// them from the credentials file. `env` reads an environment variable.
    ///
    /// # Errors
    /// When the address or the credentials file cannot be understood.
    pub fn resolve(host: Option<&str>, env: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let set = |name: &str| env(name).filter(|value| !value.is_empty());
        let named = host.map(str::to_owned).or_else(|| set("BERTH_HOST"));
        let address = match named {
            Some(text) => text.parse()?,
            None => {
                let run_dir = set("BERTH_RUN_DIR").unwrap_or_else(|| DEFAULT_RUN_DIR.into());
                Address::Unix(PathBuf::from(run_dir).join("berth.sock"))
            }
        };
        let mut credential = Credential::default();
        if let Address::Https { .. } = address {
            if let Some(path) = Credentials::default_path(&set) {
                credential = Credentials::load(&path)?.of(&address);
            }
            credential.token = set("BERTH_TOKEN").or(credential.token);
            credential.ca_file = set("BERTH_CA_FILE")
                .map(PathBuf::from)
                .or(credential.ca_file);
            credential.fingerprint = set("BERTH_FINGERPRINT").or(credential.fingerprint);
        }
        Ok(Self {
            address,
            credential,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_read_and_print() {
        for (text, printed) in [
            ("unix:///run/x.sock", "unix:///run/x.sock"),
            ("https://host", "https://host:7443"),
            ("https://host:1/", "https://host:1"),
            ("https://[fd00::1]:99", "https://[fd00::1]:99"),
        ] {
            let address: Address = text.parse().unwrap();
            assert_eq!(address.to_string(), printed);
            assert_eq!(printed.parse::<Address>().unwrap(), address);
        }
        for bad in [
            "",
            "host",
            "unix://rel",
            "http://host",
            "https://",
            "https://h:x",
            "https://h:1/path",
            "https://a b",
            "https://[::1",
            "https://user@h",
        ] {
            let error = bad.parse::<Address>().unwrap_err();
            assert!(error.hint().is_some(), "{bad}");
        }
    }

    #[test]
    fn the_flag_beats_the_environment_which_beats_the_default() {
        let env = |name: &str| match name {
            "BERTH_HOST" => Some("unix:///from/env".to_owned()),
            "BERTH_RUN_DIR" => Some("/elsewhere".to_owned()),
            _ => None,
        };
        let at = |host, env: &dyn Fn(&str) -> Option<String>| {
            Config::resolve(host, env).unwrap().address.to_string()
        };
        assert_eq!(at(Some("unix:///flag"), &env), "unix:///flag");
        assert_eq!(at(None, &env), "unix:///from/env");
        let only_dir = |name: &str| env(name).filter(|_| name == "BERTH_RUN_DIR");
        assert_eq!(at(None, &only_dir), "unix:///elsewhere/berth.sock");
        assert_eq!(at(None, &|_| None), "unix:///run/berth/berth.sock");
    }
}
