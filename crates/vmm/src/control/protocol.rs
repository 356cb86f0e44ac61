//! What is said on the control socket: a little-endian `u32` length, and as many bytes of JSON.
//!
//! [`VERSION`] counts incompatible changes. Fields may be added; unknown ones are ignored.

use devices::virtio::Limits as Rate;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::exit::StopReason;

/// The version spoken here.
pub const VERSION: u32 = 1;
/// The longest message, in bytes: [`CpuStats`] of as many vCPUs as a machine may have.
pub const MAX_MESSAGE: usize = 256 << 10;
const HEADER: usize = 4;

/// What a client asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum Request {
    /// First on every connection. Answer: [`Reply::Welcome`].
    Hello {
        /// The client's [`VERSION`].
        version: u32,
    },
    /// Answer: [`Reply::Status`].
    Status,
    /// Holds all vCPUs. On the answer none runs.
    Pause,
    /// Lets them run on.
    Resume,
    /// Presses the power button: a guest with an operating system shuts down.
    Stop,
    /// Resets the machine at once, as by the button.
    Reset,
    /// Ends the machine at once.
    Kill,
    /// Answer: [`Reply::Stats`].
    Stats,
    /// Answer: [`Reply::CpuStats`], or an error where the hardware executes the vCPUs.
    CpuStats,
    /// Changes limits while it runs.
    SetLimits(Limits),
    /// From now on events come on this connection.
    Subscribe,
}

/// Limits to change; what is left out stays.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// Of disks.
    pub disks: Vec<DiskLimits>,
    /// Of folders of the host, by their tags.
    pub shares: Vec<DiskLimits>,
    /// Of network cards.
    pub nets: Vec<NetLimits>,
    /// For each vCPU the CPUs of the host it may run on; empty for all.
    pub pinning: Option<Vec<Vec<u32>>>,
    /// How much memory the balloon is to take from the guest, in bytes.
    pub balloon_bytes: Option<u64>,
}

/// How fast a disk or a folder may be; what is left out is not limited. A limit of a kind that is not known here
/// is refused, since one that silently does not hold is worse than none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskLimits {
    /// Which one.
    pub id: String,
    /// What the guest reads.
    #[serde(default)]
    pub read: Rate,
    /// What it writes.
    #[serde(default)]
    pub write: Rate,
}

/// How fast a network card may be; as [`DiskLimits`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetLimits {
    /// Name of the tap or interface it is attached to.
    pub id: String,
    /// What the guest receives.
    #[serde(default)]
    pub receive: Rate,
    /// What it sends.
    #[serde(default)]
    pub transmit: Rate,
}

/// What is answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum Reply {
    /// To [`Request::Hello`].
    Welcome {
        /// The [`VERSION`] spoken here.
        version: u32,
        /// Name of the machine.
        name: String,
    },
    /// Done.
    Ok,
    /// Not done.
    Error {
        /// What happened, why, what to do.
        message: String,
    },
    /// To [`Request::Status`].
    Status(Status),
    /// To [`Request::Stats`].
    Stats(Stats),
    /// To [`Request::CpuStats`].
    CpuStats(CpuStats),
    /// After [`Request::Subscribe`], at any time.
    Event(Event),
}

/// How a machine is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// What it does.
    pub state: RunState,
    /// What executes its vCPUs.
    pub accel: String,
    /// How many it has.
    pub vcpus: u32,
    /// Size of its RAM.
    pub memory_bytes: u64,
    /// How often it was booted, 1 without a reset.
    pub boots: u32,
    /// Since this boot.
    pub uptime_ms: u64,
}

/// What a machine does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RunState {
    /// No guest code has run.
    Created,
    /// Its vCPUs run.
    Running,
    /// They are held.
    Paused,
    /// It is about to be gone.
    Stopped,
}

/// What a machine has used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// Of each vCPU's thread.
    pub vcpus: Vec<VcpuStats>,
    /// Of all threads together.
    pub cpu_time_ns: u64,
    /// Guest instructions of all vCPUs, where what executes them counts; lags behind a little.
    #[serde(default)]
    pub instructions: Option<u64>,
    /// Of RAM, that the host has given pages for.
    pub memory_resident_bytes: u64,
    /// What the guest says it lends by its balloon, if there is one.
    #[serde(default)]
    pub balloon_bytes: Option<u64>,
}

/// What a vCPU has used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VcpuStats {
    /// Of the host.
    pub cpu_time_ns: u64,
}

/// What the software CPU did how often since the machine was last booted. What is counted depends
/// on the version.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuStats {
    /// How often what happened.
    pub counters: Vec<Counter>,
    /// Forms of instructions that are translated into a call of the interpreter, and how often all
    /// vCPUs met one in what they translated; most frequent first, [`MAX_UNTRANSLATED`] at most.
    pub untranslated: Vec<Untranslated>,
}

/// How many entries [`CpuStats::untranslated`] has at most.
pub const MAX_UNTRANSLATED: usize = 64;

/// How often something happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counter {
    /// Such as `translations`.
    pub name: String,
    /// A sentence for people.
    pub meaning: String,
    /// On each vCPU.
    pub vcpus: Vec<u64>,
}

/// A form of instruction that is not translated.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Untranslated {
    /// Its name, such as `Fxsave_m512byte`.
    pub form: String,
    /// How often it was met.
    pub count: u64,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// The state changed.
    State {
        /// To what.
        state: RunState,
    },
    /// It is over; the last message.
    Stopped {
        /// Why.
        reason: StopReason,
    },
    /// A device has trouble.
    Device {
        /// Which, and what.
        message: String,
    },
}

/// The bytes on the wire are no message.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// It is longer than [`MAX_MESSAGE`].
    #[error("a message of {0} bytes; at most {MAX_MESSAGE} are accepted")]
    TooLong(usize),
    /// It is not JSON of the expected kind.
    #[error("a message that cannot be read")]
    Json(#[from] serde_json::Error),
}

/// The bytes of a message.
///
/// # Errors
/// When it would be too long.
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, WireError> {
    let mut bytes = vec![0; HEADER];
    serde_json::to_writer(&mut bytes, message)?;
    let length = bytes.len() - HEADER;
    let header = u32::try_from(length).ok().filter(|_| length <= MAX_MESSAGE);
    let header = header.ok_or(WireError::TooLong(length))?;
    bytes[..HEADER].copy_from_slice(&header.to_le_bytes());
    Ok(bytes)
}

/// Takes the first message off `bytes`, if it is there as a whole.
///
/// # Errors
/// When there cannot be one: the connection is of no use any more.
pub fn decode<T: DeserializeOwned>(bytes: &mut Vec<u8>) -> Result<Option<T>, WireError> {
    let Some(header) = bytes.first_chunk::<HEADER>() else {
        return Ok(None);
    };
    let length = u32::from_le_bytes(*header) as usize;
    if length > MAX_MESSAGE {
        return Err(WireError::TooLong(length));
    }
    let Some(message) = bytes.get(HEADER..HEADER + length) else {
        return Ok(None);
    };
    let message = serde_json::from_slice(message)?;
    bytes.drain(..HEADER + length);
    Ok(Some(message))
}
