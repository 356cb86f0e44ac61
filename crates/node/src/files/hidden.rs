//! Where a guest at rest has its mounts when it runs: what lies there on disk is never seen
//! inside, so it is neither copied out nor written to.

use std::os::fd::AsFd;

use engine::RootView;
use rustix::fs::OFlags;

use super::{FilesError, names, resolve};

/// The mount points of a view, as they read and, where they exist, as they are.
#[derive(Debug, Default)]
pub(super) struct Hidden {
    points: Vec<(String, Option<Identity>)>,
}

/// Which file it is.
pub(super) type Identity = (u64, u64);

impl Hidden {
    pub(super) fn of(view: &RootView) -> Self {
        let point = |path: &String| {
            let opened = resolve(view.directory.as_fd(), path, OFlags::PATH | OFlags::CLOEXEC);
            let stat = opened.ok().and_then(|file| rustix::fs::fstat(file).ok());
            (path.clone(), stat.as_ref().map(identity))
        };
        Self {
            points: view.hidden.iter().map(point).collect(),
        }
    }

    /// The mount point a file is, if it is one.
    pub(super) fn at(&self, stat: &rustix::fs::Stat) -> Option<&str> {
        let wanted = Some(identity(stat));
        let found = self.points.iter().find(|(_, it)| *it == wanted);
        found.map(|(path, _)| path.as_str())
    }

    /// Refuses a path that reads as one at or below a mount point; `shown` is it for people.
    pub(super) fn check(&self, path: &[&str], shown: &str) -> Result<(), FilesError> {
        for (mount, _) in &self.points {
            let mount_names = names(mount);
            if path.starts_with(&mount_names) {
                return Err(Self::refuse(shown, mount));
            }
        }
        Ok(())
    }

    /// Refuses a file that is a mount point.
    pub(super) fn check_file(
        &self,
        stat: &rustix::fs::Stat,
        shown: &[u8],
    ) -> Result<(), FilesError> {
        match self.at(stat) {
            Some(mount) => Err(Self::refuse(&image::tar::display(shown), mount)),
            None => Ok(()),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.points.is_empty()
    }

    fn refuse(path: &str, mount: &str) -> FilesError {
        FilesError::Hidden {
            path: path.to_owned(),
            mount: mount.to_owned(),
        }
    }
}

fn identity(stat: &rustix::fs::Stat) -> Identity {
    (stat.st_dev, stat.st_ino)
}
