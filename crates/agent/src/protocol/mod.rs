//! The wire protocol between host and agent.
//!
//! One connection carries one request: the host sends a control frame with a [`Request`], the agent
//! answers with a control frame holding a [`Reply`]; for requests with streams, frames follow in both
//! directions until the agent's last control frame. A transport that cannot be closed and opened (a
//! console port) carries one request after the other.
//!
//! ```text
//!   most requests       host: Request              agent: Reply
//!   exec, attach        host: Request              agent: Reply::Started
//!                       host: Stdin*, ToProgram*   agent: Stdout*, Stderr*, then Reply::Exited
//!   read files          host: Request              agent: Data*, Data(empty), Reply::Done
//!   write files         host: Request, Data*, Data(empty)            agent: Reply::Done
//! ```
//! An empty `Stdin` or `Data` frame is the end of that stream. A [`Reply::Failed`] may come in place of
//! any reply and ends the request. Everything here is pure: no I/O, no clocks.

pub mod frame;

use serde::{Deserialize, Serialize, de::DeserializeOwned};

pub use frame::{Decoder, Frame, FrameError, Kind, MAX_CONTROL_BYTES, MAX_DATA_BYTES, encode};

/// Version of the protocol. An agent answers requests of exactly this version, all others with
/// [`ErrorKind::Version`].
pub const VERSION: u32 = 1;

/// What the host asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// [`VERSION`].
    pub version: u32,
    /// What to do.
    pub verb: Verb,
}

impl Request {
    /// A request of this library's version.
    #[must_use]
    pub const fn new(verb: Verb) -> Self {
        Self {
            version: VERSION,
            verb,
        }
    }
}

/// What can be asked of an agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verb {
    /// Who are you? Answered by [`Reply::Info`].
    Info,
    /// Runs a program beside what runs; streams follow.
    Exec(Program),
    /// Joins the streams of an application's program; streams follow.
    Attach,
    /// Waits until an application's program has ended; answered by [`Reply::Exited`].
    Wait,
    /// Sends a signal to an application's program, or to the init of a system.
    Signal {
        /// Its number.
        signal: i32,
    },
    /// Sends a file or directory as a tar stream.
    ReadFiles {
        /// Absolute path inside.
        path: String,
        /// Whether a symbolic link at the end of `path` is followed.
        follow: bool,
    },
    /// Unpacks a tar stream.
    WriteFiles {
        /// Absolute path of an existing directory inside.
        directory: String,
    },
    /// Stops the guest in good order: services first, then power off.
    Shutdown {
        /// Start again instead of powering off.
        reboot: bool,
        /// How long an application's program is given to end before it is killed, in milliseconds.
        grace_ms: u64,
    },
    /// Sets the clock, after the guest did not run for a while.
    SetTime {
        /// Nanoseconds since 1970.
        unix_ns: i64,
    },
    /// Holds back all writes to file systems on disks, so that disks may be copied.
    Freeze {
        /// After which the guest goes on by itself, in milliseconds.
        timeout_ms: u64,
    },
    /// Lets writes go on.
    Thaw,
    /// Makes the root file system as large as its disk.
    GrowRoot,
    /// What the guest uses; answered by [`Reply::Usage`].
    Usage,
    /// Its processes; answered by [`Reply::Processes`].
    Processes,
}

/// A program to run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    /// The program and its arguments; never empty.
    pub args: Vec<String>,
    /// `KEY=value`.
    #[serde(default)]
    pub env: Vec<String>,
    /// `user[:group]` by name or number, looked up in the guest's own files; root when `None`.
    #[serde(default)]
    pub user: Option<String>,
    /// Absolute path inside; `/` when empty.
    #[serde(default)]
    pub cwd: String,
    /// The size of its terminal; without, it has none.
    #[serde(default)]
    pub terminal: Option<Size>,
    /// Whether standard input stays open.
    #[serde(default)]
    pub stdin: bool,
}

/// Size of a terminal in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Size {
    /// Rows.
    pub rows: u16,
    /// Columns.
    pub cols: u16,
}

/// What the host says to a program that runs, in control frames after [`Reply::Started`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToProgram {
    /// Its terminal has another size.
    Resize(Size),
    /// A signal for it.
    Signal(i32),
}

/// What an agent answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// It is done.
    Done,
    /// It could not be done.
    Failed(Failure),
    /// The program runs; its streams follow.
    Started {
        /// Its process id inside.
        pid: u32,
    },
    /// The program has ended.
    Exited(Exit),
    /// Who answers.
    Info(Info),
    /// What the guest uses.
    Usage(Usage),
    /// Its processes.
    Processes(Vec<Process>),
}

/// How a program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Exit {
    /// With this exit code.
    Code(i32),
    /// By this signal.
    Signal(i32),
}

impl Exit {
    /// The exit code as shells tell it: 128 plus the signal when a signal ended it. Always 0 to 255.
    #[must_use]
    pub fn code(self) -> i32 {
        match self {
            Self::Code(code) => code & 0xff,
            Self::Signal(signal) => 128 + (signal & 0x7f),
        }
    }
}

/// Why a request failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What kind of failure, for programs.
    pub kind: ErrorKind,
    /// What happened, for people. Written by the guest: to be shown as text, never interpreted.
    pub message: String,
}

/// Kinds of failures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// The agent does not speak the request's version.
    Version,
    /// The request makes no sense.
    Invalid,
    /// The program, user or file does not exist.
    NotFound,
    /// The program is not one that can be run.
    NotExecutable,
    /// The guest is not in a state to do it.
    State,
    /// Something else; the message says it.
    #[serde(other)]
    Other,
}

/// Who an agent is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Info {
    /// Version of the agent's program.
    pub agent: String,
    /// Version of the protocol it speaks.
    pub protocol: u32,
    /// Release of the guest's kernel.
    pub kernel: String,
    /// `PRETTY_NAME` of its operating system.
    pub os: String,
    /// Its host name.
    pub hostname: String,
    /// Changes with every boot.
    pub boot_id: String,
    /// Since its kernel started, in milliseconds.
    pub uptime_ms: u64,
    /// Whether everything that starts at boot has started.
    pub ready: bool,
}

/// What a guest uses.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Time its processors did not idle since boot, in microseconds.
    pub cpu_us: u64,
    /// Memory it has, in bytes.
    pub memory_bytes: u64,
    /// Memory that is or could be made free, in bytes.
    pub memory_available_bytes: u64,
    /// Page cache and buffers, in bytes.
    pub memory_cache_bytes: u64,
    /// Size of the root file system, in bytes.
    pub disk_bytes: u64,
    /// Bytes taken of it.
    pub disk_used_bytes: u64,
    /// Number of processes, threads not counted.
    pub processes: u32,
    /// Average number of runnable tasks over one minute, in thousandths.
    pub load_1m_milli: u32,
}

/// A process inside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Its id inside.
    pub pid: u32,
    /// Its parent's.
    pub parent: u32,
    /// Its user.
    pub uid: u32,
    /// One letter, as in `/proc/<pid>/stat`.
    pub state: char,
    /// Processor time in microseconds.
    pub cpu_us: u64,
    /// Memory it has resident, in bytes.
    pub memory_bytes: u64,
    /// Its command line, or its name when it has none.
    pub command: String,
}

/// Most processes in a [`Reply::Processes`], most characters of a command line.
pub const MAX_PROCESSES: usize = 1024;
/// Most bytes of a command line in a [`Process`].
pub const MAX_COMMAND_BYTES: usize = 128;

/// What an agent tells its host unasked, on a connection of its own to [`crate::NOTICE_PORT`]; the host
/// answers each with [`Reply::Done`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Notice {
    /// Everything that starts at boot has started.
    Ready,
    /// An application's program has ended; the guest powers off next.
    Exited(Exit),
}

/// Encodes a message as a control frame.
///
/// # Errors
/// [`FrameError::TooLong`] when the message does not fit.
pub fn encode_control(message: &impl Serialize) -> Result<Vec<u8>, FrameError> {
    let json = serde_json::to_vec(message).map_err(FrameError::Json)?;
    let mut bytes = Vec::with_capacity(json.len() + frame::HEADER_BYTES);
    encode(Kind::Control, &json, &mut bytes)?;
    Ok(bytes)
}

/// Decodes the payload of a control frame.
///
/// # Errors
/// [`FrameError::Json`].
pub fn decode_control<T: DeserializeOwned>(payload: &[u8]) -> Result<T, FrameError> {
    serde_json::from_slice(payload).map_err(FrameError::Json)
}
