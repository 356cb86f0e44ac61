//! [`Pool`] for directories.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::record::{self, ReadError, VERSION, VolumeRecord};
use super::{DirectoryPool, PROJECTS, sync_directory};
use crate::{
    Capabilities, Enforcement, Kind, Pool, Populated, Space, Usage, VolumeError, VolumeId,
    VolumeInfo, VolumeSpec, quota, tree,
};

/// Turns an I/O error on `path` into the volume's.
fn io(
    id: &VolumeId,
    doing: &'static str,
    path: &Path,
) -> impl Fn(std::io::Error) -> VolumeError + use<> {
    let (id, path) = (id.clone(), path.to_owned());
    move |source| VolumeError::Io {
        id: id.clone(),
        doing,
        path: path.clone(),
        source,
    }
}

impl Pool for DirectoryPool {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            quota: self.quota.clone(),
        }
    }

    fn ensure(&self, id: &VolumeId, spec: &VolumeSpec) -> Result<VolumeInfo, VolumeError> {
        let freeing = self.changing();
        match self.load(id)? {
            Some(record) if record.size_bytes == spec.size_bytes => {
                // A crash may have come between writing the record and setting the limit.
                self.apply_limit(id, &record)?;
                Ok(self.describe(id, &record))
            }
            Some(record) => self.set_size(id, record, spec.size_bytes),
            None => self.create(id, spec, &freeing),
        }
    }

    fn remove(&self, id: &VolumeId) -> Result<bool, VolumeError> {
        let home = self.home(id);
        let doomed = self.scratch("trash");
        let project = {
            let mut freeing = self.changing();
            // A damaged record must not keep its volume from being removed.
            let project = self
                .load(id)
                .ok()
                .flatten()
                .and_then(|record| record.project);
            match fs::rename(&home, &doomed) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
                Err(error) => return Err(io(id, "remove", &home)(error)),
            }
            freeing.extend(project);
            project
        };
        self.sync_volumes(id)?;
        self.steps.pass().map_err(io(id, "remove", &home))?;
        // It is gone for good; what cannot be freed now is freed when the pool is next opened.
        if self.discard(&doomed)
            && let Some(project) = project
        {
            self.release_project(id, project);
        }
        Ok(true)
    }

    fn info(&self, id: &VolumeId) -> Result<Option<VolumeInfo>, VolumeError> {
        Ok(self.load(id)?.map(|record| self.describe(id, &record)))
    }

    fn list(&self) -> Result<Vec<VolumeInfo>, VolumeError> {
        let mut volumes = Vec::new();
        for id in self.ids()? {
            // One removed meanwhile is simply not listed.
            volumes.extend(self.info(&id)?);
        }
        Ok(volumes)
    }

    fn usage(&self, id: &VolumeId) -> Result<Usage, VolumeError> {
        let record = self
            .load(id)?
            .ok_or_else(|| VolumeError::Missing { id: id.clone() })?;
        self.measure(id, &record)
    }

    fn resize(&self, id: &VolumeId, size_bytes: Option<u64>) -> Result<VolumeInfo, VolumeError> {
        let _changing = self.changing();
        let record = self
            .load(id)?
            .ok_or_else(|| VolumeError::Missing { id: id.clone() })?;
        self.set_size(id, record, size_bytes)
    }

    fn populate(
        &self,
        id: &VolumeId,
        image_root: BorrowedFd<'_>,
        path: &Path,
    ) -> Result<Populated, VolumeError> {
        let record = self
            .load(id)?
            .ok_or_else(|| VolumeError::Missing { id: id.clone() })?;
        let data = self.data(id);
        let handle = File::open(&data).map_err(io(id, "open", &data))?;
        if !tree::is_empty(handle.as_fd()).map_err(|e| io(id, "read", &data)(e.into()))? {
            return Ok(Populated::NotEmpty);
        }
        let below = path.strip_prefix("/").unwrap_or(path);
        let below = if below.as_os_str().is_empty() {
            Path::new(".")
        } else {
            below
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let source = match rustix::fs::openat2(image_root, below, flags, Mode::empty(), resolve) {
            Ok(source) => source,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(Populated::NoSource),
            Err(errno) => return Err(io(id, "open in the image", path)(errno.into())),
        };
        self.replace_data(id, &record, source.as_fd())
    }

    fn space(&self) -> Result<Space, VolumeError> {
        let stat = rustix::fs::statvfs(&self.root).map_err(|errno| VolumeError::Pool {
            path: self.root.clone(),
            doing: "measure the free space",
            source: errno.into(),
        })?;
        Ok(Space {
            total_bytes: stat.f_blocks.saturating_mul(stat.f_frsize),
            free_bytes: stat.f_bavail.saturating_mul(stat.f_frsize),
        })
    }
}

impl DirectoryPool {
    fn home(&self, id: &VolumeId) -> PathBuf {
        self.root
            .join("volumes")
            .join(id.kind().as_str())
            .join(id.name())
    }

    fn data(&self, id: &VolumeId) -> PathBuf {
        self.home(id).join("data")
    }

    fn load(&self, id: &VolumeId) -> Result<Option<VolumeRecord>, VolumeError> {
        let path = self.home(id).join("volume.json");
        let damaged = |reason| VolumeError::Record {
            id: id.clone(),
            path: path.clone(),
            reason,
        };
        match record::read::<VolumeRecord>(&path) {
            Ok(found) if found.version > VERSION => Err(damaged(format!(
                "version {} is newer than this program",
                found.version
            ))),
            Ok(found) if found.kind != id.kind() || found.name != id.name() => {
                Err(damaged("it is another volume's".to_owned()))
            }
            Ok(found) => Ok(Some(found)),
            Err(ReadError::Empty) if !durable(id) => Ok(Some(self.lost_record(id))),
            Err(ReadError::Empty) => Err(damaged("it is empty".to_owned())),
            Err(ReadError::Io(error)) if error.kind() == ErrorKind::NotFound => {
                let lost = !durable(id) && self.data(id).exists();
                Ok(lost.then(|| self.lost_record(id)))
            }
            Err(ReadError::Io(error)) => Err(io(id, "read", &path)(error)),
            Err(ReadError::Damaged(reason)) => Err(damaged(reason)),
        }
    }

    /// What is known of a root whose record a power loss took: all but its limit, which the next
    /// [`Pool::ensure`] sets.
    fn lost_record(&self, id: &VolumeId) -> VolumeRecord {
        let project = File::open(self.data(id))
            .ok()
            .and_then(|data| quota::project(data).ok());
        let project = project.filter(|project| *project >= self.record.first_project);
        let spec = VolumeSpec {
            size_bytes: None,
            uid: 0,
            gid: 0,
            mode: 0o755,
        };
        VolumeRecord::new(id, &spec, project)
    }

    fn describe(&self, id: &VolumeId, record: &VolumeRecord) -> VolumeInfo {
        let quota = match (record.size_bytes, record.project, &self.quota) {
            (None, ..) => Enforcement::Unlimited,
            (Some(_), Some(_), Enforcement::Enforced) => Enforcement::Enforced,
            (Some(_), None, Enforcement::Enforced) => Enforcement::Unsupported {
                reason: "the volume was made before the file system had project quotas".to_owned(),
            },
            (Some(_), _, unsupported) => unsupported.clone(),
        };
        VolumeInfo {
            id: id.clone(),
            size_bytes: record.size_bytes,
            quota,
            path: self.data(id),
        }
    }

    fn ids(&self) -> Result<BTreeSet<VolumeId>, VolumeError> {
        let mut ids = BTreeSet::new();
        for kind in Kind::ALL {
            let path = self.root.join("volumes").join(kind.as_str());
            let pool = |source| VolumeError::Pool {
                path: path.clone(),
                doing: "list the volumes",
                source,
            };
            for entry in fs::read_dir(&path).map_err(pool)? {
                let name = entry.map_err(pool)?.file_name();
                match name.to_str().map(|name| VolumeId::new(kind, name)) {
                    Some(Ok(id)) => drop(ids.insert(id)),
                    _ => tracing::warn!(?name, path = %path.display(), "not a volume"),
                }
            }
        }
        Ok(ids)
    }

    fn create(
        &self,
        id: &VolumeId,
        spec: &VolumeSpec,
        freeing: &BTreeSet<u32>,
    ) -> Result<VolumeInfo, VolumeError> {
        let scratch = self.scratch("new");
        let home = self.home(id);
        let project = match self.quota {
            Enforcement::Enforced => Some(self.free_project(id, freeing)?),
            _ => None,
        };
        let record = VolumeRecord::new(id, spec, project);
        let step = || self.steps.pass().map_err(io(id, "make", &home));
        make_directory(&scratch).map_err(io(id, "make", &scratch))?;
        step()?;
        self.make_data(id, &scratch.join("data"), &record)?;
        step()?;
        let path = scratch.join("volume.json");
        record::write_first(&path, &record, durable(id)).map_err(io(id, "write", &path))?;
        step()?;
        if durable(id) {
            sync_directory(&scratch).map_err(io(id, "write", &scratch))?;
        }
        fs::rename(&scratch, &home).map_err(io(id, "make", &home))?;
        step()?;
        self.sync_volumes(id)?;
        Ok(self.describe(id, &record))
    }

    /// Makes an empty data directory as the record wants it, under its quota.
    fn make_data(
        &self,
        id: &VolumeId,
        data: &Path,
        record: &VolumeRecord,
    ) -> Result<(), VolumeError> {
        make_directory(data).map_err(io(id, "make", data))?;
        chown(data, Some(record.uid), Some(record.gid)).map_err(io(
            id,
            "set the owner of",
            data,
        ))?;
        let mode = fs::Permissions::from_mode(record.mode);
        fs::set_permissions(data, mode).map_err(io(id, "set the mode of", data))?;
        if let Some(project) = record
            .project
            .filter(|_| self.quota == Enforcement::Enforced)
        {
            let limit = |errno: Errno| io(id, "limit the size of", data)(errno.into());
            let handle = File::open(data).map_err(io(id, "open", data))?;
            quota::set_project(&handle, project).map_err(limit)?;
            quota::set_limit(&handle, project, record.size_bytes.unwrap_or(0)).map_err(limit)?;
        }
        if durable(id) {
            sync_directory(data).map_err(io(id, "write", data))
        } else {
            Ok(())
        }
    }

    /// Makes it durable which volumes of the kind there are.
    fn sync_volumes(&self, id: &VolumeId) -> Result<(), VolumeError> {
        let parent = self.root.join("volumes").join(id.kind().as_str());
        if durable(id) {
            sync_directory(&parent).map_err(io(id, "write", &parent))
        } else {
            Ok(())
        }
    }

    /// A project id that no volume has, nor one whose files (`freeing`) are still being freed.
    fn free_project(&self, id: &VolumeId, freeing: &BTreeSet<u32>) -> Result<u32, VolumeError> {
        let mut taken = freeing.clone();
        for other in self.ids()? {
            // A damaged record of another volume must not keep this one from being made.
            taken.extend(
                self.load(&other)
                    .ok()
                    .flatten()
                    .and_then(|record| record.project),
            );
        }
        let first = self.record.first_project;
        let mut candidates = first..first.saturating_add(PROJECTS);
        candidates
            .find(|project| !taken.contains(project))
            .ok_or_else(|| {
                io(id, "find a project id for", &self.root)(std::io::Error::other("all are in use"))
            })
    }

    fn set_size(
        &self,
        id: &VolumeId,
        record: VolumeRecord,
        size_bytes: Option<u64>,
    ) -> Result<VolumeInfo, VolumeError> {
        if let Some(wanted_bytes) = size_bytes {
            let used_bytes = self.measure(id, &record)?.bytes;
            if used_bytes > wanted_bytes {
                return Err(VolumeError::TooSmall {
                    id: id.clone(),
                    used_bytes,
                    wanted_bytes,
                });
            }
        }
        let record = VolumeRecord {
            size_bytes,
            ..record
        };
        let path = self.home(id).join("volume.json");
        record::write(&path, &record, durable(id)).map_err(io(id, "write", &path))?;
        self.apply_limit(id, &record)?;
        Ok(self.describe(id, &record))
    }

    fn apply_limit(&self, id: &VolumeId, record: &VolumeRecord) -> Result<(), VolumeError> {
        let (Some(project), Enforcement::Enforced) = (record.project, &self.quota) else {
            return Ok(());
        };
        let data = self.data(id);
        let handle = File::open(&data).map_err(io(id, "open", &data))?;
        quota::set_limit(&handle, project, record.size_bytes.unwrap_or(0))
            .map_err(|errno| io(id, "limit the size of", &data)(errno.into()))
    }

    fn measure(&self, id: &VolumeId, record: &VolumeRecord) -> Result<Usage, VolumeError> {
        let data = self.data(id);
        let handle = File::open(&data).map_err(io(id, "open", &data))?;
        let usage = match (record.project, &self.quota) {
            (Some(project), Enforcement::Enforced) => quota::usage(&handle, project),
            _ => tree::measure(handle.as_fd()),
        };
        usage.map_err(|errno| io(id, "measure", &data)(errno.into()))
    }

    /// Copies `source` beside the volume's empty data directory and puts the copy in its place.
    fn replace_data(
        &self,
        id: &VolumeId,
        record: &VolumeRecord,
        source: BorrowedFd<'_>,
    ) -> Result<Populated, VolumeError> {
        let scratch = self.scratch("new");
        let data = self.data(id);
        self.make_data(id, &scratch, record)?;
        let handle = File::open(&scratch).map_err(io(id, "open", &scratch))?;
        let copied = tree::copy(source, handle.as_fd()).map_err(|error| match error {
            tree::CopyError::Refused { path, reason } => VolumeError::Refused {
                id: id.clone(),
                path,
                reason,
            },
            tree::CopyError::Failed { path, errno } => {
                io(id, "copy from the image", &path)(errno.into())
            }
        });
        let placed = copied.and_then(|copied| {
            let failed = io(id, "fill", &data);
            self.steps.pass().map_err(&failed)?;
            // One call for the whole tree instead of one for each file.
            rustix::fs::syncfs(&handle).map_err(|errno| failed(errno.into()))?;
            let _changing = self.changing();
            match fs::rename(&scratch, &data) {
                Ok(()) => sync_directory(&self.home(id)).map_err(&failed)?,
                // Somebody filled it meanwhile.
                Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty => {
                    return Ok(Populated::NotEmpty);
                }
                Err(error) => return Err(failed(error)),
            }
            Ok(Populated::Copied(copied))
        });
        if !matches!(placed, Ok(Populated::Copied(_))) {
            self.discard(&scratch);
        }
        placed
    }

    /// Takes the limit off a removed volume's project id, which may then be given to another.
    fn release_project(&self, id: &VolumeId, project: u32) {
        if self.quota == Enforcement::Enforced
            && let Err(error) =
                File::open(&self.root).and_then(|root| Ok(quota::set_limit(&root, project, 0)?))
        {
            tracing::warn!(volume = %id, %error, "the removed volume's limit stays recorded");
        }
        self.changing().remove(&project);
    }

    /// Removes what lies at `path` in `new` or `trash`; what stays is removed when the pool is
    /// next opened. Says whether all is gone.
    fn discard(&self, path: &Path) -> bool {
        let parent = path.parent().unwrap_or(&self.root);
        let removed = File::open(parent).and_then(|handle| {
            let name = path
                .file_name()
                .unwrap_or_default()
                .as_encoded_bytes()
                .to_vec();
            let name = std::ffi::CString::new(name)?;
            Ok(tree::remove(handle.as_fd(), name, &mut || {
                self.scratch_name()
            })?)
        });
        if let Err(error) = &removed {
            tracing::warn!(path = %path.display(), %error, "left for the next start");
        }
        removed.is_ok()
    }
}

/// Whether the kind's promise of durability is worth waiting for the disk.
fn durable(id: &VolumeId) -> bool {
    match id.kind() {
        Kind::Named => true,
        Kind::Root => false,
    }
}

fn make_directory(path: &Path) -> Result<(), std::io::Error> {
    fs::DirBuilder::new().mode(0o700).create(path)
}
