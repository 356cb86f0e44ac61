//! Garbage collection: takes what no name, no user and no operation under way needs.
//!
//! Mark and sweep under the exclusive store lock, where sweeping only renames; the slow removal happens
//! afterwards. Image records go first, so a crash never leaves a record without content.

use std::{
    collections::HashSet,
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use serde::Serialize;

use super::{Lease, Store, durable};
use crate::{
    digest::Digest,
    error::{StoreError, at},
};

/// What the store's users need, as far as the store cannot know.
#[derive(Clone, Debug, Default)]
pub struct InUse {
    /// Images of instances.
    pub images: HashSet<Digest>,
    /// Layers (by diff id) mounted by instances whose image may be gone.
    pub layers: HashSet<Digest>,
    /// Kernels that virtual machines were started with.
    pub kernels: HashSet<Digest>,
}

/// What a collection removed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct GcReport {
    /// Images without name and user.
    pub images: Vec<Digest>,
    /// Unpacked layers, by diff id.
    pub layers: Vec<Digest>,
    /// Blobs removed.
    pub blobs: usize,
    /// Disk space given back, in bytes as the file system counts.
    pub freed_bytes: u64,
}

/// Everything that must stay.
struct Marked {
    images: HashSet<Digest>,
    blobs: HashSet<Digest>,
    layers: HashSet<Digest>,
}

impl Store {
    /// Removes images that have no name and are not in `in_use`, and all content no image needs.
    /// Content of operations under way stays, in whatever process they run. Blocks.
    ///
    /// # Errors
    /// [`StoreError`]; what was not removed is taken by the next collection.
    pub fn gc(&self, in_use: &InUse) -> Result<GcReport, StoreError> {
        self.recover_leases()?;
        let trash = self.lease()?;
        let mut report = GcReport::default();
        let mut doomed = Vec::new();
        {
            let _lock = self.lock_exclusive()?;
            let marked = self.mark(in_use)?;
            for record in self.image_records()? {
                if !marked.images.contains(&record.manifest) {
                    durable::remove(&self.image_path(&record.manifest))?;
                    report.images.push(record.manifest);
                }
            }
            let layers = self.root().join("layers/sha256");
            for digest in sweep(&layers, &marked.layers, &trash, &mut doomed)? {
                report.layers.push(digest);
            }
            let blobs = self.root().join("blobs/sha256");
            report.blobs = sweep(&blobs, &marked.blobs, &trash, &mut doomed)?.len();
            sweep(&self.idle_parts(), &HashSet::new(), &trash, &mut doomed)?;
            // Made from images, to be made again when needed.
            let disks = self.root().join("disks/sha256");
            sweep(&disks, &marked.images, &trash, &mut doomed)?;
            let kernels = self.root().join("kernels/sha256");
            let mut kept = self.latest_kernels()?;
            kept.extend(in_use.kernels.iter().chain(&marked.blobs));
            sweep(&kernels, &kept, &trash, &mut doomed)?;
            self.forget_recipes(&marked.images)?;
        }
        for path in doomed {
            report.freed_bytes += remove_counting(&path).map_err(at("remove", &path))?;
        }
        report.images.sort();
        report.layers.sort();
        Ok(report)
    }

    fn mark(&self, in_use: &InUse) -> Result<Marked, StoreError> {
        let pins = self.pinned()?;
        let mut images: HashSet<Digest> =
            self.refs()?.into_iter().map(|(_, image)| image).collect();
        images.extend(&in_use.images);
        images.extend(&pins);
        // A pin names a blob, a layer or an image; it protects whichever exists.
        let mut marked = Marked {
            blobs: pins.clone(),
            layers: pins,
            images,
        };
        marked.layers.extend(&in_use.layers);
        for record in self.image_records()? {
            if marked.images.contains(&record.manifest) {
                marked.blobs.extend([record.manifest, record.config]);
                marked
                    .blobs
                    .extend(record.layers.iter().map(|layer| layer.blob));
                marked
                    .layers
                    .extend(record.layers.iter().map(|layer| layer.diff_id));
            }
        }
        Ok(marked)
    }

    /// Drops cached recipe results whose image is gone.
    fn forget_recipes(&self, images: &HashSet<Digest>) -> Result<(), StoreError> {
        let dir = self.root().join("recipes");
        for entry in fs::read_dir(&dir).map_err(at("list", &dir))? {
            let path = entry.map_err(at("list", &dir))?.path();
            if let Some(result) = durable::read_json::<crate::recipe::CachedResult>(&path)?
                && !images.contains(&result.image)
            {
                durable::remove(&path)?;
            }
        }
        Ok(())
    }
}

/// Moves everything not in `keep` out of `dir` and into the trash.
fn sweep(
    dir: &Path,
    keep: &HashSet<Digest>,
    trash: &Lease,
    doomed: &mut Vec<PathBuf>,
) -> Result<Vec<Digest>, StoreError> {
    let mut taken = Vec::new();
    for entry in fs::read_dir(dir).map_err(at("list", dir))? {
        let entry = entry.map_err(at("list", dir))?;
        let digest = entry
            .file_name()
            .to_str()
            .and_then(|name| Digest::from_hex(name).ok());
        if digest.is_some_and(|digest| keep.contains(&digest)) {
            continue;
        }
        let to = trash.fresh_path("trash");
        fs::rename(entry.path(), &to).map_err(at("remove", entry.path()))?;
        doomed.push(to);
        taken.extend(digest);
    }
    durable::sync_dir(dir)?;
    Ok(taken)
}

/// Removes a file or a tree; answers the disk space it took, hard links counted once.
fn remove_counting(path: &Path) -> io::Result<u64> {
    let meta = fs::symlink_metadata(path)?;
    if !meta.is_dir() {
        fs::remove_file(path)?;
        // The last link frees the blocks.
        return Ok(if meta.nlink() == 1 {
            meta.blocks() * 512
        } else {
            0
        });
    }
    let mut freed = meta.blocks() * 512;
    let mut stack = vec![path.to_owned()];
    while let Some(dir) = stack.pop() {
        for entry in fs::read_dir(&dir)? {
            let entry = entry?;
            let meta = entry.metadata()?;
            freed += meta.blocks() * 512 / if meta.is_dir() { 1 } else { meta.nlink() };
            if meta.is_dir() {
                stack.push(entry.path());
            }
        }
    }
    fs::remove_dir_all(path)?;
    Ok(freed)
}
