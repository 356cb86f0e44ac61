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
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if let Ok(reference) = text.parse::<Reference>() {
        let again = reference.to_string();
        assert_eq!(again.parse::<Reference>().as_ref(), Ok(&reference));
        assert!(
            !reference
                .repository()
                .split('/')
                .any(|part| matches!(part, "" | "." | ".."))
        );
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

/// Challenges are understood or ignored.
pub fn auth_challenge(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data) {
        for challenge in crate::registry::parse_challenge(text) {
            assert!(format!("{challenge:?}").len() <= 8 * text.len() + 200);
        }
    }
}

/// A tar is unpacked or refused, and nothing appears outside the directory given for it.
///
/// `scratch` must be an empty directory; the caller compares its parent before and after.
pub fn tar_unpack(data: &[u8], scratch: &std::path::Path) {
    let limits = Limits {
        layer_bytes: 1 << 20,
        file_bytes: 1 << 20,
        entries: 1000,
        ..Limits::default()
    };
    let _ = crate::layer::unpack_for_fuzzing(data, scratch, &limits, &crate::job::Job::silent());
}

/// A kernel module says what it needs, or is refused.
pub fn module(data: &[u8]) {
    crate::vm::fuzz_module_info(data);
}

/// A qcow2 image is read or refused, within bounds.
pub fn qcow2(data: &[u8]) {
    crate::vm::machine::qcow2::fuzz(data);
}

/// A partition table is read or refused; what it names lies on the disk.
pub fn partitions(data: &[u8]) {
    crate::vm::machine::partition::fuzz(data);
}

/// A boot loader's configuration is read or refused.
pub fn boot_loader(data: &[u8]) {
    crate::vm::machine::loader::fuzz(data);
}

/// A disk is searched for what it boots.
pub fn disk(data: &[u8]) {
    crate::vm::machine::boot::fuzz(data);
}
