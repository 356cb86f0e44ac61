//! Limits on everything that comes from outside.
//!
//! Owns the numbers; whoever parses or unpacks asks here first. The defaults let every image met in
//! practice through and stop what is built to exhaust a host.

/// Limits for metadata, layers and their entries. Sizes in bytes.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Manifest, index or token answer.
    pub manifest_bytes: u64,
    /// Image configuration.
    pub config_bytes: u64,
    /// Layers of one image. The kernel's overlay takes 500 lower directories.
    pub layers: usize,
    /// Entries of a multi-platform index.
    pub index_entries: usize,
    /// One layer as transferred.
    pub layer_blob_bytes: u64,
    /// One layer's tar stream once decompressed; stops compression bombs.
    pub layer_bytes: u64,
    /// A file's length, holes included.
    pub file_bytes: u64,
    /// Entries in one layer.
    pub entries: u64,
    /// Components of a path.
    pub depth: usize,
    /// Length of a path or a link target.
    pub path_bytes: usize,
    /// Extended headers (pax, GNU long names) of one entry together.
    pub header_bytes: usize,
    /// Extended attributes of one entry, names and values together.
    pub xattr_bytes: usize,
    /// Segments of one sparse file.
    pub sparse_segments: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            manifest_bytes: 4 << 20,
            config_bytes: 8 << 20,
            layers: 127,
            index_entries: 1024,
            layer_blob_bytes: 32 << 30,
            layer_bytes: 64 << 30,
            file_bytes: 1 << 40,
            entries: 1_000_000,
            depth: 256,
            path_bytes: 4096,
            header_bytes: 1 << 20,
            xattr_bytes: 128 << 10,
            sparse_segments: 64 << 10,
        }
    }
}
