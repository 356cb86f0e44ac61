//! Linux kernels as distributions ship them (`vmlinuz`): real-mode code, a header, a decompressor, and
//! the kernel proper in compressed form.
//!
//! ```text
//!  file ─ header ─► payload ─ decompress ─► vmlinux, an ELF file
//! ```
//! Where kernels come in, `image` keeps what [`vmlinux`] returns, so that no machine decompresses it
//! again; `vmm` asks it for those that were never kept. Files are hostile. Nothing here reads ELF, and
//! nothing knows of machines.
//!
//! Source: the kernel's `Documentation/arch/x86/boot.rst`.

#![forbid(unsafe_code)]

mod decompress;
mod header;
#[cfg(test)]
mod tests;

pub use decompress::Compression;
pub use header::{BzImage, HEADER, HEADER_END};

/// Why a file is no kernel as they are shipped.
#[derive(Debug, thiserror::Error)]
pub enum BzImageError {
    /// It is damaged, or something else.
    #[error("{0}; give it an x86-64 bzImage or vmlinux")]
    Format(&'static str),
    /// It decompresses to garbage.
    #[error("what is in it ({compression:?}) cannot be decompressed")]
    Decompress {
        /// How it says it is compressed.
        compression: Compression,
        /// What the decoder says.
        source: std::io::Error,
    },
    /// It is too large to be one.
    #[error("it is larger than {limit} bytes")]
    TooLarge {
        /// What is accepted.
        limit: u64,
    },
}

/// Whether this is how an ELF file begins.
#[must_use]
pub fn is_elf(start: &[u8]) -> bool {
    start.starts_with(b"\x7fELF")
}

/// The kernel of `file` as an ELF file, to be kept and booted from without decompressing it each time;
/// `None` when it is one already, or can decompress only itself.
///
/// # Errors
/// When it is no kernel, is damaged, or decompresses to more than 512 MiB.
pub fn vmlinux(file: &[u8]) -> Result<Option<Vec<u8>>, BzImageError> {
    if is_elf(file) {
        return Ok(None);
    }
    BzImage::parse(file)?.vmlinux(file)
}
