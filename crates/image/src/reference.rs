//! Image references: `[registry/]repository[:tag][@digest]`, parsed strictly.
//!
//! Owns the grammar of the distribution specification as the field reads it: a first component is a
//! registry only when it contains a dot or a colon, or is `localhost`; `nginx` means
//! `docker.io/library/nginx:latest`. A reference also becomes a file name in the store, so nothing is
//! accepted here that would not be safe as one. Knows nothing of what is stored or reachable.

use std::{fmt, str::FromStr};

use crate::digest::{Digest, DigestError};

/// The registry that a bare name means.
pub const DEFAULT_REGISTRY: &str = "docker.io";
/// The registry part of images made on this host (recipes, imports, commits); never contacted.
pub const LOCAL_REGISTRY: &str = "localhost";
/// The tag that a reference without tag and digest means.
pub const DEFAULT_TAG: &str = "latest";

const MAX_NAME: usize = 255;
const MAX_TAG: usize = 128;

/// A fully qualified image reference. Construct it by parsing; see [`Reference::candidates`] for how
/// short names are looked up locally.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// Why a text is not an image reference. The message says which part is wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// Nothing given.
    #[error("the image name is empty; give one like `debian:12`")]
    Empty,
    /// Longer than registry and repository may be together.
    #[error("the image name is longer than 255 characters")]
    TooLong,
    /// The registry is not `host` or `host:port`.
    #[error("{0:?} is not a registry (`host` or `host:port`)")]
    Registry(String),
    /// A path component has characters outside the grammar.
    #[error(
        "{0:?} is not a repository name: lower-case letters, digits and single separators `.`, `_`, `__`, `-` \
         between them, components divided by `/`"
    )]
    Repository(String),
    /// The tag is outside the grammar.
    #[error(
        "{0:?} is not a tag: letters, digits, `_`, `.`, `-`, at most 128, not starting with `.` or `-`"
    )]
    Tag(String),
    /// The digest after `@` is malformed.
    #[error(transparent)]
    Digest(#[from] DigestError),
}

impl Reference {
    /// The registry as written, `host` or `host:port`; `docker.io` when none was given.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The repository path inside the registry, e.g. `library/nginx`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag; `None` only when a digest was given without one.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The pinned digest, if any.
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// Whether this names an image of this host, which no registry serves.
    pub fn is_local(&self) -> bool {
        self.registry == LOCAL_REGISTRY
    }

    /// A reference of this host: `localhost/<name>:<tag>`.
    ///
    /// # Errors
    /// When name or tag break the grammar.
    pub fn local(name: &str, tag: &str) -> Result<Self, ReferenceError> {
        format!("{LOCAL_REGISTRY}/{name}:{tag}").parse()
    }

    /// The same repository pinned to a digest, without a tag.
    pub fn with_digest(&self, digest: Digest) -> Self {
        Self {
            tag: None,
            digest: Some(digest),
            ..self.clone()
        }
    }

    /// What a user's text may mean, in the order to look it up in the store: a name without a registry
    /// is first an image of this host, then one of the default registry. The last one is what to pull.
    ///
    /// # Errors
    /// As for parsing.
    pub fn candidates(text: &str) -> Result<Vec<Self>, ReferenceError> {
        let full: Self = text.parse()?;
        if split_registry(text).0.is_some() {
            return Ok(vec![full]);
        }
        let bare = text.split(['@', ':']).next().unwrap_or(text);
        let local = Self {
            registry: LOCAL_REGISTRY.into(),
            repository: bare.into(),
            ..full.clone()
        };
        Ok(vec![local, full])
    }

    /// The shortest text that parses back to this reference and, for an image of this host, finds it.
    pub fn familiar(&self) -> String {
        let repository = match self.registry.as_str() {
            DEFAULT_REGISTRY => match self.repository.strip_prefix("library/") {
                Some(bare) if !bare.contains('/') => bare.to_owned(),
                _ => self.repository.clone(),
            },
            LOCAL_REGISTRY => self.repository.clone(),
            other => format!("{other}/{}", self.repository),
        };
        format!("{repository}{}", self.suffix())
    }

    fn suffix(&self) -> String {
        let mut text = String::new();
        if let Some(tag) = &self.tag {
            text.push(':');
            text.push_str(tag);
        }
        if let Some(digest) = &self.digest {
            text.push('@');
            text.push_str(&digest.to_string());
        }
        text
    }
}

/// Splits off the registry when the first component can only be one.
fn split_registry(text: &str) -> (Option<&str>, &str) {
    match text.split_once('/') {
        Some((first, rest)) if first.contains(['.', ':']) || first == LOCAL_REGISTRY => {
            (Some(first), rest)
        }
        _ => (None, text),
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        if text.is_empty() {
            return Err(ReferenceError::Empty);
        }
        if text.len() > MAX_NAME + MAX_TAG + 80 {
            return Err(ReferenceError::TooLong);
        }
        let (name, digest) = match text.split_once('@') {
            Some((name, digest)) => (name, Some(digest.parse::<Digest>()?)),
            None => (text, None),
        };
        let (registry, rest) = split_registry(name);
        let (repository, tag) = match rest.split_once(':') {
            Some((repository, tag)) => (repository, Some(tag)),
            None => (rest, None),
        };
        let registry = match registry {
            Some("index.docker.io") | None => DEFAULT_REGISTRY,
            Some(registry) => registry,
        };
        check_registry(registry)?;
        check_repository(repository)?;
        if let Some(tag) = tag {
            check_tag(tag)?;
        }
        let repository = if registry == DEFAULT_REGISTRY && !repository.contains('/') {
            format!("library/{repository}")
        } else {
            repository.to_owned()
        };
        if registry.len() + 1 + repository.len() > MAX_NAME {
            return Err(ReferenceError::TooLong);
        }
        let tag = match (tag, &digest) {
            (None, None) => Some(DEFAULT_TAG.to_owned()),
            (tag, _) => tag.map(str::to_owned),
        };
        Ok(Self {
            registry: registry.to_owned(),
            repository,
            tag,
            digest,
        })
    }
}

/// `host[:port]`: dot-separated labels, or a bracketed IPv6 address.
pub(crate) fn check_registry(text: &str) -> Result<(), ReferenceError> {
    let bad = || ReferenceError::Registry(text.to_owned());
    let port = if let Some(rest) = text.strip_prefix('[') {
        let (address, port) = rest.split_once(']').ok_or_else(bad)?;
        address.parse::<std::net::Ipv6Addr>().map_err(|_| bad())?;
        port
    } else {
        let end = text.find(':').unwrap_or(text.len());
        let label_ok = |label: &str| {
            !label.is_empty()
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'-')
        };
        if !text[..end].split('.').all(label_ok) {
            return Err(bad());
        }
        &text[end..]
    };
    match port.strip_prefix(':') {
        None if port.is_empty() => Ok(()),
        Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) => match digits.parse::<u16>() {
            Ok(1..) => Ok(()),
            _ => Err(bad()),
        },
        _ => Err(bad()),
    }
}

fn check_repository(text: &str) -> Result<(), ReferenceError> {
    let alnum = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let component_ok = |part: &str| {
        let bytes = part.as_bytes();
        let edges =
            bytes.first().is_some_and(|&b| alnum(b)) && bytes.last().is_some_and(|&b| alnum(b));
        edges
            && part
                .split(|c: char| c.is_ascii() && alnum(c as u8))
                .all(|sep| matches!(sep, "" | "." | "_" | "__") || sep.bytes().all(|b| b == b'-'))
    };
    if text.split('/').all(component_ok) {
        Ok(())
    } else {
        Err(ReferenceError::Repository(text.to_owned()))
    }
}

fn check_tag(text: &str) -> Result<(), ReferenceError> {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let bytes = text.as_bytes();
    let ok = bytes.len() <= MAX_TAG
        && bytes.first().is_some_and(|&b| word(b))
        && bytes.iter().all(|&b| word(b) || b == b'.' || b == b'-');
    if ok {
        Ok(())
    } else {
        Err(ReferenceError::Tag(text.to_owned()))
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}{}", self.registry, self.repository, self.suffix())
    }
}

impl fmt::Debug for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl serde::Serialize for Reference {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Reference {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn short_names_mean_what_the_field_means() {
        let digest = format!("sha256:{}", "ab".repeat(32));
        for (text, full) in [
            ("nginx", "docker.io/library/nginx:latest"),
            ("nginx:1.25", "docker.io/library/nginx:1.25"),
            ("me/app", "docker.io/me/app:latest"),
            ("index.docker.io/nginx", "docker.io/library/nginx:latest"),
            ("localhost/x", "localhost/x:latest"),
            ("localhost:5000/x:y", "localhost:5000/x:y"),
            ("[::1]:5000/x:y", "[::1]:5000/x:y"),
            ("quay.io/a/b__c/d-e:t", "quay.io/a/b__c/d-e:t"),
            (
                &format!("nginx@{digest}"),
                &format!("docker.io/library/nginx@{digest}"),
            ),
            (
                &format!("nginx:1@{digest}"),
                &format!("docker.io/library/nginx:1@{digest}"),
            ),
        ] {
            assert_eq!(
                text.parse::<Reference>().unwrap().to_string(),
                full,
                "{text}"
            );
        }
    }

    #[test]
    fn rejects_what_the_grammar_forbids() {
        for text in [
            "",
            "/",
            "a//b",
            "Nginx",
            "a/../b",
            "..",
            "a:",
            "a:.x",
            "a:-x",
            "a@sha256:12",
            "a b",
            "a.b:70000/x",
            "a.b:0/x",
            "-a.b/x",
            "[::g]/x",
            "a..b/x/y",
            "a/b._c",
            "x:y:z",
            "http://a/b",
            "a/b/",
            "é",
            "a\0b",
        ] {
            assert!(text.parse::<Reference>().is_err(), "{text:?}");
        }
        assert_eq!(
            "a".repeat(300).parse::<Reference>(),
            Err(ReferenceError::TooLong)
        );
    }

    #[test]
    fn names_without_registry_are_looked_up_on_this_host_first() {
        let names = |text| -> Vec<String> {
            Reference::candidates(text)
                .unwrap()
                .iter()
                .map(ToString::to_string)
                .collect()
        };
        assert_eq!(
            names("debian"),
            ["localhost/debian:latest", "docker.io/library/debian:latest"]
        );
        assert_eq!(names("a/b:1"), ["localhost/a/b:1", "docker.io/a/b:1"]);
        assert_eq!(names("quay.io/b:1"), ["quay.io/b:1"]);
        assert_eq!(
            Reference::local("debian", "12").unwrap().familiar(),
            "debian:12"
        );
    }

    proptest! {
        #[test]
        fn display_parses_back_to_the_same_reference(
            registry in prop::option::of("[a-z0-9]{1,9}\\.[a-z]{2,3}(:[1-9][0-9]{1,3})?"),
            repository in "[a-z0-9]{1,8}(/[a-z0-9]{1,8}((\\.|_|__|-{1,3})[a-z0-9]{1,4}){0,2}){0,3}",
            tag in prop::option::of("[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}"),
            digest in prop::option::of("[0-9a-f]{64}"),
        ) {
            let mut text = registry.map(|r| r + "/").unwrap_or_default() + &repository;
            if let Some(tag) = tag { text = text + ":" + &tag; }
            if let Some(digest) = digest { text = text + "@sha256:" + &digest; }
            let first: Reference = text.parse().unwrap();
            prop_assert_eq!(&first.to_string().parse::<Reference>().unwrap(), &first);
            if !first.is_local() {
                prop_assert_eq!(&first.familiar().parse::<Reference>().unwrap(), &first);
            }
        }

        #[test]
        fn any_text_is_parsed_or_refused_and_never_unsafe_as_a_path(text in "\\PC{0,60}") {
            crate::fuzzing::reference(text.as_bytes());
        }
    }
}
