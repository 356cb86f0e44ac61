//! Before the loop: the container, its pipes and the socket are made, or nothing is.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::session::Pipes;
use crate::bundle::BundleError;
use crate::shim::FileError;
use crate::shim::config::{Rootfs, ShimConfig};
use crate::spec::Spec;
use crate::{CreateError, CreateRequest, Created, Launch, Overlay, Runtime};

/// Why a shim could not begin. Nothing is left behind.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServerError {
    /// The bundle cannot be used.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// `shim.json` and `config.json` contradict each other.
    #[error(
        "shim.json says {field} is {shim}, and the bundle's config.json says {bundle}; write both alike"
    )]
    Mismatch {
        /// Which field.
        field: &'static str,
        /// In `shim.json`.
        shim: String,
        /// In `config.json`.
        bundle: String,
    },
    /// The container cannot be made.
    #[error(transparent)]
    Create(#[from] CreateError),
    /// A file operation failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// A system call failed.
    #[error("the shim cannot {action}")]
    System {
        /// What was tried.
        action: &'static str,
        /// What the kernel said.
        source: std::io::Error,
    },
}

pub(super) fn system(action: &'static str) -> impl Fn(Errno) -> ServerError {
    move |errno| ServerError::System {
        action,
        source: errno.into(),
    }
}

/// Makes the container as configured; returns our ends of its pipes. `descriptors` are open from 3 on, and
/// are the program's alone afterwards.
pub(super) fn container(
    config: &ShimConfig,
    bundle: PathBuf,
    mut spec: Spec,
    descriptors: Vec<OwnedFd>,
) -> Result<(Created, [Option<OwnedFd>; 3]), ServerError> {
    if config.default_seccomp {
        let sets = spec
            .process
            .as_ref()
            .and_then(|process| process.capabilities.as_ref());
        let capabilities = sets.map_or(&[][..], |sets| &sets.bounding);
        spec.linux.seccomp = Some(seccomp::default_profile(capabilities));
    }
    let terminal = spec
        .process
        .as_ref()
        .is_some_and(|process| process.terminal);
    check("the terminal", config.terminal, terminal)?;
    check(
        "the control group",
        &config.cgroup,
        &spec.linux.cgroups_path,
    )?;
    let pipes = if terminal {
        Pipes::none()
    } else {
        Pipes::new(config.stdin_open)
    };
    let (theirs, ours) = pipes.map_err(system("make pipes"))?.split();
    let mut request = CreateRequest::new(&config.instance, bundle, spec);
    request.stdio = theirs;
    request.launch = Launch::OnStart;
    request.die_with_parent = true;
    request.rootfs = rootfs(&config.rootfs);
    request.preserve_fds = u32::try_from(descriptors.len()).unwrap_or(u32::MAX);
    let created = Runtime::new(&config.state_root).create(request)?;
    Ok((created, ours))
}

fn check<T: PartialEq + ToString>(
    field: &'static str,
    shim: T,
    bundle: T,
) -> Result<(), ServerError> {
    if shim == bundle {
        return Ok(());
    }
    Err(ServerError::Mismatch {
        field,
        shim: shim.to_string(),
        bundle: bundle.to_string(),
    })
}

fn rootfs(rootfs: &Rootfs) -> crate::Rootfs {
    match rootfs {
        Rootfs::Dir => crate::Rootfs::Bundle,
        Rootfs::Overlay {
            lower,
            upper,
            work,
            idmap,
        } => crate::Rootfs::Overlay(Overlay {
            lower: lower.clone(),
            upper: Some(upper.clone()),
            work: Some(work.clone()),
            idmap: *idmap,
            // An upper directory can become an image layer: no redirects or half copies in it.
            options: vec!["redirect_dir=off".to_owned(), "metacopy=off".to_owned()],
        }),
    }
}

/// Listens at `path`, in place of a dead shim's socket.
pub(super) fn listen(path: &Path) -> Result<OwnedFd, ServerError> {
    let fail = system("listen on its socket");
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
        .map_err(&fail)?;
    match rustix::fs::unlink(path) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(errno) => return Err(fail(errno)),
    }
    let short = crate::container::short_path(path).map_err(|failure| ServerError::System {
        action: "listen on its socket",
        source: failure.source,
    })?;
    let address = SocketAddrUnix::new(short.path()).map_err(&fail)?;
    // The mode counts from the start: nobody else may connect before a chmod.
    let umask = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
    let bound = rustix::net::bind(&socket, &address);
    rustix::process::umask(umask);
    bound.map_err(&fail)?;
    rustix::net::listen(&socket, 64).map_err(&fail)?;
    Ok(socket)
}
