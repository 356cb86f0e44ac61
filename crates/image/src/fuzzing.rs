//! Entry points for fuzzers: each takes arbitrary bytes and must return, within limits, without a panic.
//!
//! Called by the fuzz targets of the workspace and by this crate's property tests. Not an API.

use crate::{
    limits::Limits,
    manifest::{Document, ImageConfig},
    reference::Reference,
};

/// A reference is parsed or refused; what is accepted is safe as a path and a URL component.
pub fn reference(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(reference) = text.parse::<Reference>() {
        let again = reference.to_string();
        assert_eq!(again.parse::<Reference>().as_ref(), Ok(&reference));
        assert!(!reference.repository().split('/').any(|part| matches!(part, "" | "." | "..")));
        assert!(again.is_ascii() && !again.contains(['\0', ' ', '%', '?', '#', '\\']));
    }
}

/// Manifests, indexes and configurations are parsed or refused.
pub fn manifest(data: &[u8]) {
    let limits = Limits::default();
    if let Ok(Document::Manifest(manifest)) = Document::parse(data, &limits) {
        assert!(manifest.layers.len() <= limits.layers);
    }
    if let Ok(config) = ImageConfig::parse(data, &limits) {
        assert!(config.rootfs.diff_ids.len() <= limits.layers);
    }
}
