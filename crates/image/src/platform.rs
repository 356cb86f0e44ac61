//! Platforms: which entry of a multi-platform index fits.
//!
//! Owns names of operating systems, architectures and variants as the OCI image index uses them
//! (GOOS/GOARCH), and the order of preference on a host. Reads nothing but its arguments and the
//! architecture this program was built for.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// `os/architecture[/variant]`, e.g. `linux/arm64/v8`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Platform {
    /// GOOS, e.g. `linux`.
    pub os: String,
    /// GOARCH, e.g. `amd64`.
    pub architecture: String,
    /// CPU variant, e.g. `v8` for arm64 or `v3` for amd64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

/// The text is not `os/architecture[/variant]`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a platform; write it as `linux/amd64` or `linux/arm64/v8`")]
pub struct PlatformError(String);

impl Platform {
    /// The platform this program runs on.
    pub fn host() -> Self {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", None),
            "x86" => ("386", None),
            "aarch64" => ("arm64", Some("v8")),
            "arm" => ("arm", Some("v7")),
            "powerpc64" => ("ppc64le", None),
            "loongarch64" => ("loong64", None),
            other => (other, None),
        };
        Self {
            os: "linux".into(),
            architecture: architecture.into(),
            variant: variant.map(str::to_owned),
        }
    }

    /// How well content for `offered` runs where `self` is wanted: `None` not at all, else higher is
    /// better. A newer variant than the wanted one never fits, an older one does, the nearest wins.
    pub(crate) fn fit(&self, offered: &Self) -> Option<u32> {
        if self.os != offered.os || self.architecture != offered.architecture {
            return None;
        }
        let wanted = variant_level(&self.architecture, self.variant.as_deref())?;
        let found = variant_level(&offered.architecture, offered.variant.as_deref())?;
        (found <= wanted).then_some(found)
    }
}

/// The level of a CPU variant; no variant means the architecture's baseline.
fn variant_level(architecture: &str, variant: Option<&str>) -> Option<u32> {
    match (architecture, variant.unwrap_or_default()) {
        ("amd64", "") => Some(1),
        ("arm64", "") => Some(8),
        ("arm", "") => Some(7),
        (_, "") => Some(0),
        (_, text) => text.strip_prefix('v')?.split('.').next()?.parse().ok(),
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant
            .as_ref()
            .map_or(Ok(()), |variant| write!(f, "/{variant}"))
    }
}

impl FromStr for Platform {
    type Err = PlatformError;

    fn from_str(text: &str) -> Result<Self, PlatformError> {
        let bad = || PlatformError(text.chars().take(80).collect());
        let parts: Vec<&str> = text.split('/').collect();
        let word = |part: &&str| {
            !part.is_empty()
                && part.len() <= 32
                && part
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
        };
        if !(2..=3).contains(&parts.len()) || !parts.iter().all(word) {
            return Err(bad());
        }
        Ok(Self {
            os: parts[0].into(),
            architecture: parts[1].into(),
            variant: parts.get(2).map(|part| (*part).to_owned()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_variant_not_newer_than_wanted_wins() {
        let p = |text: &str| text.parse::<Platform>().unwrap();
        assert!(
            p("linux/arm/v7").fit(&p("linux/arm/v6")) < p("linux/arm/v7").fit(&p("linux/arm/v7"))
        );
        assert_eq!(p("linux/arm/v6").fit(&p("linux/arm/v7")), None);
        assert!(p("linux/arm64/v8").fit(&p("linux/arm64")).is_some());
        assert_eq!(p("linux/amd64").fit(&p("linux/amd64/v3")), None);
        assert!(p("linux/amd64/v3").fit(&p("linux/amd64")).is_some());
        assert_eq!(p("linux/amd64").fit(&p("linux/arm64")), None);
        assert_eq!(p("linux/amd64").fit(&p("windows/amd64")), None);
    }
}
