//! From the daemon's command to a shim in the background.
//!
//! The launching process forks once and waits for one line from the child: the container is
//! created, or why not. The child is the shim proper.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use cgroup::{Cgroup, CgroupPath, Layout};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use serde::{Deserialize, Serialize};

use super::config::{ConfigError, ShimConfig};
use super::durable::FileError;
use super::lock;
use super::server::{Server, ServerError};
use crate::spec::Spec;
use crate::{bundle, guard, sys};

/// The longest report of a shim to its launcher.
const MAX_REPORT: u64 = 1 << 20;

/// What the launcher prints: the container is created.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Launched {
    /// The container's first process.
    pub pid: i32,
    /// The shim.
    pub shim_pid: i32,
    /// What the user should know.
    pub warnings: Vec<String>,
}

/// Why there is no shim. Nothing is left behind.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LaunchError {
    /// `shim.json` cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A file operation failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// Another shim serves the directory.
    #[error("a shim already serves {}; talk to it, or stop its container first", dir.display())]
    Taken {
        /// The directory.
        dir: PathBuf,
    },
    /// A system call failed.
    #[error("cannot {action}")]
    System {
        /// What was tried.
        action: &'static str,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The shim could not make the container.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// The shim said why it could not, in the child.
    #[error("{text}")]
    Reported {
        /// What happened.
        text: String,
        /// As [`crate::program_status`].
        program_status: Option<u8>,
    },
    /// The shim died without a word.
    #[error("the shim died before the container was created; {} may say why", dir.join("shim.err").display())]
    Died {
        /// The directory.
        dir: PathBuf,
    },
}

/// Which process returns from [`launch`].
pub(crate) enum Role {
    /// The first one; the container is created.
    Launcher(Launched),
    /// The shim; all is over.
    Shim,
}

/// What a shim is to do, read and checked.
pub(super) struct Task {
    /// `shim.json`.
    pub config: ShimConfig,
    /// The bundle's absolute path.
    pub bundle: PathBuf,
    /// Its `config.json`.
    pub spec: Spec,
    /// What `shim.json` lists for the program, from descriptor 3 on; closed by the shim once the
    /// program's process has its copies.
    pub descriptors: Vec<OwnedFd>,
}

fn system(action: &'static str) -> impl Fn(Errno) -> LaunchError {
    move |errno| LaunchError::System {
        action,
        source: errno.into(),
    }
}

/// Forks the shim of `dir` and waits until its container is created.
pub(crate) fn launch(dir: &Path) -> Result<Role, LaunchError> {
    let dir = &std::path::absolute(dir).map_err(|e| FileError::new("find", dir, e))?;
    close_inherited();
    let config = ShimConfig::load(dir)?;
    let descriptors = open_for_program(&config.descriptors)?;
    let (bundle, spec) = bundle::load(&config.bundle).map_err(ServerError::from)?;
    if guard::is_exposed(&spec) {
        guard::protect().map_err(|source| LaunchError::System {
            action: "protect the runtime's own file",
            source,
        })?;
    }
    let (read, write) =
        rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(system("make a pipe"))?;
    match fork(config.shim_cgroup.as_deref()).map_err(system("fork"))? {
        None => {
            drop(read);
            serve(
                dir,
                Task {
                    config,
                    bundle,
                    spec,
                    descriptors,
                },
                write,
            );
            Ok(Role::Shim)
        }
        Some(_) => {
            drop(write);
            hear(dir, read).map(Role::Launcher)
        }
    }
}

/// Forks, straight into the control group if there can be one. `None` in the child.
fn fork(group: Option<&str>) -> Result<Option<sys::Child>, Errno> {
    if let Some(group) = group.and_then(open_group) {
        // SAFETY: this program has a single thread, so the child may use its copy of everything.
        let cloned = unsafe { sys::clone3(0, Some(group.as_fd())) };
        if cloned.is_ok() {
            return cloned;
        }
    }
    // SAFETY: as above.
    unsafe { sys::clone3(0, None) }
}

/// The group, made if it is missing. Where the host lets none be made, the shim stays where it is: it
/// works there as well.
fn open_group(path: &str) -> Option<OwnedFd> {
    let layout = Layout::detect().ok()?.only_v2();
    let path = CgroupPath::parse(path).ok()?;
    let opened = Cgroup::open(&layout, &path).or_else(|_| Cgroup::create(&layout, &path));
    opened.ok()?.clone_into_fd().ok()?
}

/// A shim outlives who launched it: it must not keep anything open that was left open by mistake.
fn close_inherited() {
    // SAFETY: this is the first thing this program does; it has opened nothing yet.
    unsafe { libc::close_range(3, libc::c_uint::MAX, 0) };
}

/// Opens what the program is to find open. Nothing else is open yet, so they get the numbers from 3 on
/// that the program expects; unlike all others they are kept over its execution.
fn open_for_program(paths: &[PathBuf]) -> Result<Vec<OwnedFd>, LaunchError> {
    let open = |(number, path): (i32, &PathBuf)| {
        let flags = OFlags::RDWR | OFlags::NOCTTY;
        let opened = rustix::fs::open(path, flags, Mode::empty());
        let fd = opened.map_err(|errno| FileError::new("open", path, errno.into()))?;
        if fd.as_raw_fd() != number {
            return Err(system("give the program its descriptors")(Errno::MFILE));
        }
        Ok(fd)
    };
    (3..).zip(paths).map(open).collect()
}

#[derive(Serialize, Deserialize)]
enum Report {
    Created(Launched),
    Failed {
        text: String,
        program_status: Option<u8>,
    },
}

fn hear(dir: &Path, read: OwnedFd) -> Result<Launched, LaunchError> {
    let mut line = Vec::new();
    // To the newline and no further: the container's process holds a copy of the pipe for a while.
    let read = BufReader::new(File::from(read).take(MAX_REPORT)).read_until(b'\n', &mut line);
    let died = LaunchError::Died {
        dir: dir.to_owned(),
    };
    if read.is_err() || line.pop() != Some(b'\n') {
        return Err(died);
    }
    match serde_json::from_slice(&line) {
        Ok(Report::Created(launched)) => Ok(launched),
        Ok(Report::Failed {
            text,
            program_status,
        }) => Err(LaunchError::Reported {
            text,
            program_status,
        }),
        Err(_) => Err(died),
    }
}

/// The shim's life: everything after the fork.
fn serve(dir: &Path, task: Task, report: OwnedFd) {
    let mut report = File::from(report);
    let say = |report: &mut File, what: Report| {
        let mut line = serde_json::to_vec(&what).unwrap_or_default();
        line.push(b'\n');
        let _ = report.write_all(&line);
    };
    let oom_score = task.config.oom_score_adj;
    match begin(dir, task) {
        Ok((server, launched)) => {
            say(&mut report, Report::Created(launched));
            drop(report);
            // What nobody has to wait for. The score only now: the container's own does not derive from it.
            if let Some(score) = oom_score {
                let _ = std::fs::write("/proc/self/oom_score_adj", score.to_string());
            }
            // The parsed configuration is gone by now.
            crate::heap::give_back();
            server.run();
        }
        Err(error) => {
            let failed = Report::Failed {
                text: crate::chain(&error),
                program_status: crate::program_status(&error),
            };
            say(&mut report, failed);
        }
    }
}

fn begin(dir: &Path, task: Task) -> Result<(Server, Launched), LaunchError> {
    rustix::process::setsid().map_err(system("start a session"))?;
    let Some(lock) = lock::take(dir)? else {
        return Err(LaunchError::Taken {
            dir: dir.to_owned(),
        });
    };
    detach(dir)?;
    rustix::process::set_child_subreaper(rustix::process::Pid::from_raw(1))
        .map_err(system("become the parent of orphans"))?;
    Server::create(dir, task, lock).map_err(LaunchError::from)
}

/// Lets go of the launcher's streams and directory; what a panic says goes to `shim.err`.
fn detach(dir: &Path) -> Result<(), LaunchError> {
    let path = dir.join("shim.err");
    let mut options = OpenOptions::new();
    let errors = options.append(true).create(true).mode(0o600).open(&path);
    let errors = errors.map_err(|e| FileError::new("open", &path, e))?;
    let null = Path::new("/dev/null");
    let null = OpenOptions::new()
        .read(true)
        .write(true)
        .open(null)
        .map_err(|e| FileError::new("open", null, e))?;
    let action = system("detach from the launcher");
    rustix::stdio::dup2_stdin(&null).map_err(&action)?;
    rustix::stdio::dup2_stdout(&null).map_err(&action)?;
    rustix::stdio::dup2_stderr(&errors).map_err(&action)?;
    rustix::process::chdir("/").map_err(&action)
}
