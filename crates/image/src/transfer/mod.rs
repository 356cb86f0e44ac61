//! Images in and out of files: archives, layouts, root file systems.
//!
//! `bundle` gives an archive or a directory one face, `import` reads the two formats through it,
//! `export` writes one archive that is both. Everything read here is hostile.

mod bundle;
mod export;
mod import;

pub use export::{ExportError, ExportFormat};
pub use import::{ImportError, ImportOptions};
