//! Content digests: the names of everything the store holds.
//!
//! Owns the `sha256:<hex>` syntax of the OCI image specification (descriptor.md, "Digests") and the
//! hasher behind it. Only SHA-256 is accepted: a digest is also a file name and a trust anchor here,
//! and a second algorithm would give one piece of content two names. Never touches files.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256};

/// A SHA-256 content digest, written `sha256:<64 lower-case hex digits>`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);

/// Why a text is not a digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DigestError {
    /// The algorithm is missing or is not `sha256`.
    #[error(
        "digest {0:?} does not use sha256; only `sha256:` followed by 64 hex digits is supported"
    )]
    Algorithm(String),
    /// The hexadecimal part has the wrong length or alphabet.
    #[error("digest {0:?} must be `sha256:` followed by 64 lower-case hex digits")]
    Hex(String),
}

impl Digest {
    /// Digest of bytes held in memory.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// The 64 hexadecimal digits without the algorithm: the file name in the store.
    pub fn hex(&self) -> String {
        hex::encode(self.0)
    }

    /// The first 12 hexadecimal digits, for people.
    pub fn short(&self) -> String {
        hex::encode(&self.0[..6])
    }

    /// Reads the 64 hexadecimal digits without the algorithm.
    ///
    /// # Errors
    /// [`DigestError::Hex`] for anything but 64 lower-case hexadecimal digits.
    pub fn from_hex(text: &str) -> Result<Self, DigestError> {
        let bad = || DigestError::Hex(text.chars().take(80).collect());
        if text.len() != 64 || text.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(bad());
        }
        let mut raw = [0; 32];
        hex::decode_to_slice(text, &mut raw).map_err(|_| bad())?;
        Ok(Self(raw))
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        match text.strip_prefix("sha256:") {
            Some(hex) => Self::from_hex(hex),
            None => Err(DigestError::Algorithm(text.chars().take(80).collect())),
        }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// A running digest of a stream.
#[derive(Clone, Default)]
pub(crate) struct Hasher(Sha256);

impl Hasher {
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    pub(crate) fn finish(self) -> Digest {
        Digest(self.0.finalize().into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_only_the_canonical_form() {
        let empty = Digest::of(b"");
        let text = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(empty.to_string(), text);
        assert_eq!(text.parse::<Digest>().unwrap(), empty);
        let upper = text.to_uppercase().replace("SHA", "sha");
        for bad in [
            "",
            "sha256:",
            "sha256:00",
            "md5:00",
            "sha512:00",
            &upper,
            &text[7..],
        ] {
            assert!(bad.parse::<Digest>().is_err(), "{bad}");
        }
    }
}
