//! What is known of a container between commands: one directory per container below the runtime root.
//!
//! ```text
//! <root>/<id>/            made first: its existence is the claim on the id
//!        state.json       [`Record`], versioned; replaced by rename, so readers never see half a file
//!        start.sock       while created: the waiting process listens here
//!        seccomp.bpf      the compiled filter, for `exec`
//! ```
//!
//! Files are not fsynced: they describe processes of this boot, which do not survive what fsync
//! guards against. Whether a record is still true is decided by the process' start time, never by the
//! pid alone. Only this module reads and writes the directory.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use cgroup::CgroupPath;
use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, PidfdFlags};
use serde::{Deserialize, Serialize};

use crate::bundle;
use crate::error::{Context, Failure, Step};
use crate::spec::{Hooks, NamespaceKind, OCI_VERSION, Personality, Process, Spec, State, Status};

/// Version of the format of `state.json`.
const VERSION: u32 = 1;
/// Longest id.
const MAX_ID: usize = 255;

/// A container as it is remembered.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    version: u32,
    /// Its id.
    pub id: String,
    /// Absolute path of its bundle.
    pub bundle: PathBuf,
    /// Process id of its first process; 0 until that exists.
    pub pid: i32,
    /// When that process started, in clock ticks since boot: tells it from a later one with its id.
    pub start_ticks: u64,
    /// When the container was created, in seconds since 1970.
    pub created_unix: u64,
    /// User that created it.
    pub owner_uid: u32,
    /// Annotations of its configuration.
    pub annotations: BTreeMap<String, String>,
    /// Its control group.
    pub cgroup: CgroupPath,
    /// Namespaces other than the runtime's, which `exec` joins.
    pub namespaces: Vec<NamespaceKind>,
    /// Its process, for what `exec` inherits.
    pub process: Option<Process>,
    /// Hooks of later commands (`poststart`, `poststop`).
    pub hooks: Hooks,
    /// Where the seccomp listener goes: socket and metadata.
    pub listener: Option<(PathBuf, String)>,
    /// Whether a compiled filter lies beside this file.
    pub filtered: bool,
    /// How that is installed.
    #[serde(default)]
    filter_flags: Vec<seccomp::Flag>,
    /// Whether it runs with the rights of the owner of the runtime's own file ([`crate::guard`]).
    exposed: bool,
    /// Whether its first process is that of a pid namespace, so that nothing there survives it.
    #[serde(default)]
    owns_pids: bool,
    /// Its execution domain, which `exec` takes on.
    #[serde(default)]
    pub(crate) personality: Option<Personality>,
}

/// Why a container's state cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The id is no file name.
    #[error(
        "{id:?} is not a container id; use 1 to 255 of the characters A-Z a-z 0-9 _ + - . \
         (and not only dots)"
    )]
    BadId {
        /// The id.
        id: String,
    },
    /// The id is taken.
    #[error("container {id} already exists; delete it first or choose another id")]
    Exists {
        /// The id.
        id: String,
    },
    /// Nothing known.
    #[error("container {id} does not exist (in {}); `list` shows those that do", root.display())]
    NotFound {
        /// The id.
        id: String,
        /// The runtime root that was searched.
        root: PathBuf,
    },
    /// Its creator has not recorded anything yet, or died before it could.
    #[error(
        "container {id} is still being created; if its creator died, `delete --force` removes it"
    )]
    Creating {
        /// The id.
        id: String,
    },
    /// A file cannot be read or written.
    #[error("the state of container {id} cannot be used")]
    Io {
        /// The id.
        id: String,
        /// Which file and why.
        source: Failure,
    },
    /// The file is damaged.
    #[error(
        "the state of container {id} cannot be read; `delete --force` removes what is left of it"
    )]
    Damaged {
        /// The id.
        id: String,
        /// What is wrong with it.
        source: bundle::BundleError,
    },
    /// Written by a later version.
    #[error(
        "the state of container {id} has version {version}; this program reads up to {VERSION}"
    )]
    Newer {
        /// The id.
        id: String,
        /// The version found.
        version: u32,
    },
}

/// The directory of one container.
#[derive(Clone, Debug)]
pub(crate) struct Dir {
    pub id: String,
    pub path: PathBuf,
}

impl Dir {
    /// Names the directory of `id` below `root`, existing or not.
    pub(crate) fn of(root: &Path, id: &str) -> Result<Dir, StateError> {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '+' | '-' | '.');
        if id.is_empty()
            || id.len() > MAX_ID
            || !id.chars().all(plain)
            || id.chars().all(|c| c == '.')
        {
            return Err(StateError::BadId { id: id.into() });
        }
        Ok(Dir {
            id: id.into(),
            path: root.join(id),
        })
    }

    /// Claims the id by making the directory.
    pub(crate) fn claim(root: &Path, id: &str) -> Result<Dir, StateError> {
        let dir = Dir::of(root, id)?;
        let make = || std::fs::DirBuilder::new().mode(0o700).create(&dir.path);
        match make() {
            Ok(()) => return Ok(dir),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                return Err(StateError::Exists { id: id.into() });
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(dir.io(error, "make")),
        }
        std::fs::DirBuilder::new()
            .mode(0o700)
            .recursive(true)
            .create(root)
            .and_then(|()| make())
            .map_err(|error| dir.io(error, "make"))?;
        Ok(dir)
    }

    fn io(&self, error: std::io::Error, verb: &str) -> StateError {
        let what = format!("cannot {verb} {}", self.path.display());
        StateError::Io {
            id: self.id.clone(),
            source: Failure {
                what: what.into(),
                source: error,
                program: false,
            },
        }
    }

    /// Where the waiting process listens.
    pub(crate) fn socket(&self) -> PathBuf {
        self.path.join("start.sock")
    }

    /// Writes the first record, before anything outside the directory is made: whatever happens
    /// next, `delete` knows what to look for.
    pub(crate) fn write_first(&self, record: &Record) -> Result<(), StateError> {
        self.write_as("state.json", record)
    }

    /// Replaces the record.
    pub(crate) fn write(&self, record: &Record) -> Result<(), StateError> {
        self.write_as("state.json.new", record)?;
        std::fs::rename(
            self.path.join("state.json.new"),
            self.path.join("state.json"),
        )
        .map_err(|error| self.io(error, "write state.json in"))
    }

    fn write_as(&self, name: &str, record: &Record) -> Result<(), StateError> {
        let bytes = serde_json::to_vec(record)
            .map_err(|error| self.io(std::io::Error::other(error), "describe the container in"))?;
        let mut options = std::fs::OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        options
            .open(self.path.join(name))
            .and_then(|mut file| file.write_all(&bytes))
            .map_err(|error| self.io(error, "write state.json in"))
    }

    /// Reads the record; `None` if the container is still being created (or its creator died).
    pub(crate) fn read(&self, root: &Path) -> Result<Option<Record>, StateError> {
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        let path = self.path.join("state.json");
        let damaged = |source| StateError::Damaged {
            id: self.id.clone(),
            source,
        };
        match bundle::read_json::<Record>(&path) {
            Ok(record) if record.version <= VERSION => Ok(Some(record)),
            Ok(record) => Err(StateError::Newer {
                id: self.id.clone(),
                version: record.version,
            }),
            Err(bundle::BundleError::Read { source, .. })
                if source.kind() == std::io::ErrorKind::NotFound =>
            {
                if self.path.is_dir() {
                    Ok(None)
                } else {
                    Err(StateError::NotFound {
                        id: self.id.clone(),
                        root: root.into(),
                    })
                }
            }
            Err(error) => match bundle::read_json::<Versioned>(&path) {
                Ok(Versioned { version }) if version > VERSION => Err(StateError::Newer {
                    id: self.id.clone(),
                    version,
                }),
                // An empty or cut file: the creator died while writing its first record.
                _ if matches!(&error, bundle::BundleError::Json { source, .. } if source.is_eof()) => {
                    Ok(None)
                }
                _ => Err(damaged(error)),
            },
        }
    }

    /// Stores the compiled filter for `exec`.
    pub(crate) fn write_filter(&self, program: &seccomp::Program) -> Result<(), StateError> {
        let mut bytes = Vec::with_capacity(program.code.len() * 8);
        for instruction in &program.code {
            bytes.extend_from_slice(&instruction.code.to_le_bytes());
            bytes.extend_from_slice(&[instruction.jt, instruction.jf]);
            bytes.extend_from_slice(&instruction.k.to_le_bytes());
        }
        std::fs::write(self.path.join("seccomp.bpf"), bytes)
            .map_err(|error| self.io(error, "write seccomp.bpf in"))
    }

    /// Reads back the filter of `record`.
    pub(crate) fn read_filter(&self, record: &Record) -> Result<seccomp::Program, StateError> {
        let bytes = std::fs::read(self.path.join("seccomp.bpf"))
            .map_err(|error| self.io(error, "read seccomp.bpf in"))?;
        let code = bytes
            .chunks_exact(8)
            .map(|b| seccomp::Instruction {
                code: u16::from_le_bytes([b[0], b[1]]),
                jt: b[2],
                jf: b[3],
                k: u32::from_le_bytes([b[4], b[5], b[6], b[7]]),
            })
            .collect();
        Ok(seccomp::Program {
            code,
            flags: record.filter_flags.clone(),
            notifies: record.listener.is_some(),
            unknown: Vec::new(),
        })
    }

    /// Removes the directory: the id is free again.
    pub(crate) fn remove(&self) -> Result<(), StateError> {
        for name in ["start.sock", "seccomp.bpf", "state.json.new", "state.json"] {
            match rustix::fs::unlink(self.path.join(name)) {
                Ok(()) | Err(rustix::io::Errno::NOENT) => {}
                Err(errno) => return Err(self.io(errno.into(), "empty")),
            }
        }
        match rustix::fs::rmdir(&self.path) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
            Err(_) => std::fs::remove_dir_all(&self.path).map_err(|error| self.io(error, "remove")),
        }
    }
}

impl Record {
    /// What is known before the process exists.
    pub(crate) fn new(id: &str, bundle: &Path, spec: &Spec, cgroup: CgroupPath) -> Record {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        Record {
            version: VERSION,
            id: id.into(),
            bundle: bundle.into(),
            pid: 0,
            start_ticks: 0,
            created_unix: now.map_or(0, |now| now.as_secs()),
            owner_uid: rustix::process::geteuid().as_raw(),
            annotations: spec.annotations.clone(),
            cgroup,
            namespaces: spec
                .linux
                .namespaces
                .iter()
                .map(|namespace| namespace.kind)
                .collect(),
            process: spec.process.clone(),
            hooks: Hooks {
                poststart: spec.hooks.poststart.clone(),
                poststop: spec.hooks.poststop.clone(),
                ..Hooks::default()
            },
            listener: spec.linux.seccomp.as_ref().and_then(|policy| {
                let path = policy.listener_path.as_ref()?;
                Some((
                    path.into(),
                    policy.listener_metadata.clone().unwrap_or_default(),
                ))
            }),
            filtered: spec.linux.seccomp.is_some(),
            filter_flags: spec
                .linux
                .seccomp
                .as_ref()
                .map(|policy| policy.flags.clone())
                .unwrap_or_default(),
            exposed: crate::guard::is_exposed(spec),
            owns_pids: spec.linux.is_new(NamespaceKind::Pid),
            personality: spec.linux.personality.clone(),
        }
    }

    /// Whether an `exec` must protect the runtime's own file first.
    pub fn exposes_runtime(&self) -> bool {
        self.exposed
    }

    /// Whether all its processes end when the first one does.
    pub(crate) fn owns_pids(&self) -> bool {
        self.owns_pids
    }

    /// The state as the specification has it.
    pub fn state(&self, status: Status) -> State {
        State {
            oci_version: OCI_VERSION.into(),
            id: self.id.clone(),
            status,
            pid: if status == Status::Stopped {
                0
            } else {
                self.pid
            },
            bundle: self.bundle.clone(),
            annotations: self.annotations.clone(),
        }
    }

    /// A descriptor of the container's first process, if that still lives.
    pub fn pidfd(&self) -> Option<OwnedFd> {
        let pid = Pid::from_raw(self.pid)?;
        let fd = rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok()?;
        // The descriptor first, then the check: the process it names cannot change any more.
        let alive = process_start(self.pid).is_some_and(|(ticks, state)| {
            ticks == self.start_ticks && !matches!(state, b'Z' | b'X')
        });
        alive.then_some(fd)
    }
}

/// When a process started (clock ticks since boot) and the letter of its state (proc_pid_stat(5)).
pub(crate) fn process_start(pid: i32) -> Option<(u64, u8)> {
    let path = format!("/proc/{pid}/stat");
    let file = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let mut bytes = [0u8; 1024];
    let len = rustix::io::read(file.as_fd(), &mut bytes).ok()?;
    parse_stat(bytes.get(..len)?)
}

/// The name, in brackets, may contain anything: fields are counted from the last bracket.
fn parse_stat(stat: &[u8]) -> Option<(u64, u8)> {
    let after = stat.iter().rposition(|byte| *byte == b')')?;
    let mut fields = stat.get(after + 2..)?.split(|byte| *byte == b' ');
    let state = *fields.next()?.first()?;
    let ticks = std::str::from_utf8(fields.nth(18)?)
        .ok()?
        .trim()
        .parse()
        .ok()?;
    Some((ticks, state))
}

/// Ids of all containers below `root`, sorted.
pub(crate) fn ids(root: &Path) -> Step<Vec<String>> {
    let entries = match std::fs::read_dir(root) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.with(|| format!("cannot list {}", root.display()))?,
    };
    let mut ids: Vec<String> = entries
        .filter_map(|entry| entry.ok())
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    ids.sort();
    Ok(ids)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn start_time_is_found_behind_a_hostile_name() {
        let stat = b"7 (a) b (c)) S 1 7 7 0 -1 4194560 100 0 0 0 0 0 0 0 20 0 1 0 4242 1 2";
        assert_eq!(parse_stat(stat), Some((4242, b'S')));
        assert_eq!(parse_stat(b"7 (a"), None);
        assert!(process_start(std::process::id() as i32).is_some());
    }

    #[test]
    fn ids_that_are_no_file_names_are_refused() {
        for id in ["", ".", "..", "a/b", "a b", "é", &"x".repeat(256)] {
            assert!(
                matches!(Dir::of(Path::new("/x"), id), Err(StateError::BadId { .. })),
                "{id:?}"
            );
        }
        assert!(Dir::of(Path::new("/x"), "a.b_c+d-1").is_ok());
    }

    #[test]
    fn a_half_written_record_is_a_container_being_created() {
        let root = tempfile::tempdir().unwrap();
        let dir = Dir::claim(root.path(), "x").unwrap();
        assert!(matches!(
            Dir::claim(root.path(), "x"),
            Err(StateError::Exists { .. })
        ));
        assert!(dir.read(root.path()).unwrap().is_none());
        std::fs::write(dir.path.join("state.json"), b"{\"version\":1,\"id\"").unwrap();
        assert!(dir.read(root.path()).unwrap().is_none());
        std::fs::write(dir.path.join("state.json"), b"{\"version\":9}").unwrap();
        assert!(matches!(
            dir.read(root.path()),
            Err(StateError::Newer { version: 9, .. })
        ));
        std::fs::write(dir.path.join("state.json"), b"[]").unwrap();
        assert!(matches!(
            dir.read(root.path()),
            Err(StateError::Damaged { .. })
        ));
        dir.remove().unwrap();
        assert!(matches!(
            dir.read(root.path()),
            Err(StateError::NotFound { .. })
        ));
    }
}
