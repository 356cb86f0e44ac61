//! A guest's root for whoever copies files: through its first process while it lives, else an
//! overlay of its own, mounted nowhere.

use ::container::Overlay;
use engine::{EngineError, Guest, RootView};
use rustix::fs::{CWD, Mode, OFlags};

use super::failed;

/// The root of a guest whose first process is `pid`, everything mounted in it included.
pub(super) fn live(guest: &Guest, pid: u32) -> Result<RootView, EngineError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened = rustix::fs::openat(CWD, format!("/proc/{pid}/root"), flags, Mode::empty());
    Ok(RootView {
        directory: opened.map_err(|errno| match errno {
            rustix::io::Errno::NOENT | rustix::io::Errno::SRCH => {
                EngineError::NotRunning { id: guest.id }
            }
            errno => failed(guest.id, "opening its root", std::io::Error::from(errno)),
        })?,
        idmap: guest.idmap,
        hidden: Vec::new(),
    })
}

/// The root of a guest that does not run, with ids as on disk. To read it, its changes are one
/// more layer, so that nothing on disk is touched and many may read at once.
pub(super) fn at_rest(guest: &Guest) -> Result<RootView, EngineError> {
    let root = &guest.root;
    // As the shim mounts it: nothing on disk is read differently.
    let options = vec!["redirect_dir=off".to_owned(), "metacopy=off".to_owned()];
    let overlay = if root.read_only {
        Overlay {
            options,
            lower: std::iter::once(&root.upper)
                .chain(&root.layers)
                .cloned()
                .collect(),
            ..Overlay::default()
        }
    } else {
        Overlay {
            lower: root.layers.clone(),
            upper: Some(root.upper.clone()),
            work: Some(root.work.clone()),
            options,
            ..Overlay::default()
        }
    };
    let directory = overlay
        .open_detached()
        .map_err(|error| failed(guest.id, "opening its root", error))?;
    Ok(RootView {
        directory,
        idmap: None,
        hidden: guest.mounts.iter().map(|it| it.target.clone()).collect(),
    })
}
