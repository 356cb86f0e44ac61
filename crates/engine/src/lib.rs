//! What runs instances, seen from above: the [`Engine`] trait, the fake that keeps it in memory,
//! and the conformance suite that every engine passes.
//!
//! The node speaks to engines only through this crate and knows of no implementation; engines
//! know of no record, no image and no network. An engine is handed a [`Guest`]: everything
//! resolved to paths, numbers and words.

#![forbid(unsafe_code)]

pub mod conformance;
mod error;
pub mod fake;
mod guest;
mod log;
mod session;
mod view;

use std::path::Path;

use async_trait::async_trait;
use bytes::Bytes;
use model::{
    InstanceId, Timestamp,
    instance::status::Usage,
    instance::{Limits, status::Exit},
};
use tokio::sync::{broadcast, mpsc};

pub use error::EngineError;
pub use guest::{
    Customization, Guest, GuestDevice, GuestMachine, GuestMount, GuestNetwork, GuestProcess,
    Interface, KernelModules, MountKind, OwnBoot, Root,
};
pub use log::{LogLine, LogRequest, LogStream};
pub use session::{Input, Output, Session, SessionEnd};
pub use view::RootView;

/// How far to bring a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Target {
    /// Set up; the program waits. Namespaces exist, so that a network can be attached.
    Prepared,
    /// The program runs.
    Running,
    /// The program is frozen.
    Paused,
}

/// Where a guest is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum GuestState {
    /// Nothing of it runs and nothing is left of a run.
    Absent,
    /// Set up; the program waits.
    Prepared,
    /// The program runs.
    Running,
    /// The program is frozen.
    Paused,
    /// The program has ended; [`Observed::exit`] says how. What is left is for
    /// [`Engine::remove`].
    Exited,
}

/// What an engine sees of a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    /// Whose.
    pub id: InstanceId,
    /// Generation it was last ensured with; 0 when absent.
    pub generation: u64,
    /// Where it is.
    pub state: GuestState,
    /// Process id of the program on the host.
    pub pid: Option<u32>,
    /// When the program was started.
    pub started_at: Option<Timestamp>,
    /// How the program ended.
    pub exit: Option<Exit>,
    /// What the run that ended used.
    pub usage: Usage,
}

impl Observed {
    /// Nothing of a guest.
    #[must_use]
    pub fn absent(id: InstanceId) -> Self {
        Self {
            id,
            generation: 0,
            state: GuestState::Absent,
            pid: None,
            started_at: None,
            exit: None,
            usage: Usage::default(),
        }
    }
}

/// Something an engine noticed by itself. It says where to look, not what is there: whoever
/// hears it observes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Changed {
    /// The guest to look at.
    pub id: InstanceId,
}

/// What an engine can do beyond running guests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Capabilities {
    /// Guests can be frozen.
    pub pause: bool,
    /// Limits can be changed while a guest runs.
    pub live_limits: bool,
    /// Programs can be run inside.
    pub exec: bool,
}

/// What a guest uses now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct GuestStats {
    /// Processor time of this run.
    pub cpu_ns: u64,
    /// Time this run was held back by its processor limit.
    pub throttled_ns: u64,
    /// Memory held, page cache that can be dropped at once not counted.
    pub memory_bytes: u64,
    /// Most memory held in this run.
    pub memory_peak_bytes: u64,
    /// Swap used.
    pub swap_bytes: u64,
    /// Times the kernel ended a process for want of memory.
    pub oom_kills: u64,
    /// Processes and threads.
    pub pids: u64,
    /// Bytes read from block devices in this run.
    pub read_bytes: u64,
    /// Bytes written to block devices in this run.
    pub write_bytes: u64,
}

/// What the software CPU of a virtual machine did how often since the machine was last booted. What
/// is counted depends on the version.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CpuStats {
    /// How often what happened.
    pub counters: Vec<CpuCounter>,
    /// Instructions that are not translated, those met most first.
    pub untranslated: Vec<Untranslated>,
}

/// How often something happened.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CpuCounter {
    /// Such as `translations`.
    pub name: String,
    /// A sentence for people.
    pub meaning: String,
    /// On each vCPU.
    pub vcpus: Vec<u64>,
}

/// A form of instruction that the software CPU does not translate.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Untranslated {
    /// Its name.
    pub form: String,
    /// How often it was met in what was translated.
    pub count: u64,
}

/// One process of a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestProcessInfo {
    /// Process id on the host.
    pub pid: u32,
    /// Process id inside.
    pub inner_pid: u32,
    /// User id inside.
    pub uid: u32,
    /// Processor time.
    pub cpu_ms: u64,
    /// Resident memory.
    pub rss_bytes: u64,
    /// State letter of `proc(5)`.
    pub state: char,
    /// Command line, arguments joined by spaces.
    pub command: String,
}

/// Runs guests. All calls are idempotent and may be repeated after a crash of the caller; a guest
/// lives on when the caller ends.
///
/// Calls about one guest are made one at a time by the caller; calls about different guests at
/// once.
#[async_trait]
pub trait Engine: Send + Sync + 'static {
    /// What it can do.
    fn capabilities(&self) -> Capabilities;

    /// Brings a guest to `target` with limits as in `guest`, and says what is there then. From
    /// [`GuestState::Exited`] it does not start again: [`Engine::remove`] comes first. A guest
    /// that is further than `Prepared` is not brought back to it.
    ///
    /// # Errors
    /// [`EngineError::Stale`] when a newer generation was ensured before, else what went wrong;
    /// what was begun is then taken away.
    async fn ensure(&self, guest: &Guest, target: Target) -> Result<Observed, EngineError>;

    /// What is there.
    ///
    /// # Errors
    /// When looking failed; never because nothing is there.
    async fn observe(&self, id: InstanceId) -> Result<Observed, EngineError>;

    /// Every guest of which anything is there, also those of an earlier run of the caller.
    ///
    /// # Errors
    /// When looking failed.
    async fn list(&self) -> Result<Vec<Observed>, EngineError>;

    /// Sends the program a signal. Nothing happens to a guest that does not run.
    ///
    /// # Errors
    /// When the signal could not be sent.
    async fn signal(&self, id: InstanceId, signal: i32) -> Result<(), EngineError>;

    /// Takes away all that is left of a guest: ends what runs, at once. Nothing to take away is
    /// no error. The guest's directory stays.
    ///
    /// # Errors
    /// When something could not be taken away; calling again goes on.
    async fn remove(&self, id: InstanceId) -> Result<(), EngineError>;

    /// What it notices from now on.
    fn events(&self) -> broadcast::Receiver<Changed>;

    /// What a guest uses now; `None` when it does not run.
    ///
    /// # Errors
    /// When looking failed.
    async fn stats(&self, id: InstanceId) -> Result<Option<GuestStats>, EngineError>;

    /// What the software CPU of a virtual machine that runs did so far.
    ///
    /// # Errors
    /// When it does not run, or no software CPU executes it.
    async fn cpu_stats(&self, id: InstanceId) -> Result<CpuStats, EngineError> {
        Err(no_machine(id))
    }

    /// Changes the limits of a guest that runs; nothing happens to one that does not.
    ///
    /// # Errors
    /// When the kernel refused one.
    async fn set_limits(&self, id: InstanceId, limits: &Limits) -> Result<(), EngineError>;

    /// Joins the input and output of the program.
    ///
    /// # Errors
    /// When it does not run.
    async fn attach(&self, id: InstanceId, stdin: bool) -> Result<Session, EngineError>;

    /// Runs another program inside.
    ///
    /// # Errors
    /// When the guest does not run or the program cannot be started.
    async fn exec(&self, id: InstanceId, process: &GuestProcess) -> Result<Session, EngineError>;

    /// What the program wrote, read back; works also when it has ended. Dropping the receiver
    /// ends it.
    ///
    /// # Errors
    /// When the log cannot be read; nothing written yet is no error.
    async fn logs(
        &self,
        id: InstanceId,
        directory: &Path,
        request: LogRequest,
    ) -> Result<mpsc::Receiver<LogLine>, EngineError>;

    /// The processes inside.
    ///
    /// # Errors
    /// When the guest does not run.
    async fn processes(&self, id: InstanceId) -> Result<Vec<GuestProcessInfo>, EngineError>;

    /// Opens the root file system: what the guest sees while it runs, else what it would start
    /// with, mounts aside. With `guest.root.read_only` a guest that does not run is opened for
    /// reading only; otherwise the caller keeps it from being ensured, and from being opened once
    /// more, until the view is dropped.
    ///
    /// # Errors
    /// When it cannot be opened, or the guest ended while it was.
    async fn open_root(&self, guest: &Guest) -> Result<RootView, EngineError>;

    /// A path inside a virtual machine that runs, as a tar archive in pieces; its root is nowhere
    /// on the host to be opened. The pieces are the guest's word.
    ///
    /// # Errors
    /// When it does not run, is no virtual machine, or the path cannot be read.
    async fn read_files(
        &self,
        id: InstanceId,
        path: &str,
    ) -> Result<mpsc::Receiver<Result<Bytes, EngineError>>, EngineError> {
        let _ = path;
        Err(no_machine(id))
    }

    /// Unpacks a tar archive below a directory inside a virtual machine that runs.
    ///
    /// # Errors
    /// As for [`Engine::read_files`]; what came before an entry that is refused stays.
    async fn write_files(
        &self,
        id: InstanceId,
        directory: &str,
        archive: mpsc::Receiver<Bytes>,
    ) -> Result<(), EngineError> {
        let _ = (directory, archive);
        Err(no_machine(id))
    }
}

fn no_machine(id: InstanceId) -> EngineError {
    EngineError::Refused {
        message: format!("instance {id} is no virtual machine of this engine"),
    }
}
