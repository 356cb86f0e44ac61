//! What a shim and its clients say to each other on `DIR/shim.sock`. No I/O in here, so that
//! synchronous and asynchronous clients share it.
//!
//! A frame is a little-endian `u32` length of the payload, one byte of [`Kind`], and the payload.
//! A client says [`Request::Hello`] first. Then each request gets one [`Reply`], in order. After
//! the reply to [`Request::Attach`] or an attached [`Request::Exec`] the connection is a stream:
//! output frames one way, input frames the other, until a last [`Reply::Exited`]. On a stream the
//! client may still send `Resize`, `Signal`, `ExecResize` and `ExecSignal`; they are answered only
//! if they fail. Closing the connection detaches.
//!
//! ```text
//!  client                               shim
//!  Hello{version} ───────────────────►
//!                 ◄─────────────────── Welcome{version, instance, …}
//!  Attach{…}      ───────────────────►
//!                 ◄─────────────────── Ok
//!  stdin, resize  ◄─────────────────►  stdout, stderr
//!                 ◄─────────────────── Exited{code, …}
//! ```
//!
//! When the container is over the shim stays only until connected clients have read what they are
//! owed. A connection that is refused or breaks then is no mystery: the exit record is on disk.
//!
//! Versions: [`VERSION`] counts incompatible changes. Fields may be added; unknown ones are ignored.

use serde::{Deserialize, Serialize};

use super::clock::Timestamp;

/// The version spoken here.
pub const VERSION: u32 = 1;
/// The largest payload of a JSON frame, in bytes.
pub const MAX_MESSAGE: usize = 1 << 20;
/// The largest payload of a stream frame, in bytes.
pub const MAX_DATA: usize = 64 << 10;
/// Bytes before the payload.
pub const HEADER: usize = 5;

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// A [`Request`] or [`Reply`] as JSON.
    Message = 0,
    /// Input for the process.
    Stdin = 1,
    /// Output of the process; everything, if it has a terminal.
    Stdout = 2,
    /// Error output of the process.
    Stderr = 3,
    /// No more input; the payload is empty.
    StdinEof = 4,
}

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// What it carries.
    pub kind: Kind,
    /// The payload.
    pub payload: Vec<u8>,
}

/// What a client asks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Request {
    /// First on every connection. Answer: [`Reply::Welcome`].
    Hello {
        /// The client's [`VERSION`].
        version: u32,
    },
    /// Run the created container's program. Answer: [`Reply::Ok`].
    Start,
    /// Answer: [`Reply::State`].
    State,
    /// Send a signal to the container's first process, or to all.
    Signal {
        /// Signal number, 1 to 64.
        signal: i32,
        /// To every process of the container.
        #[serde(default)]
        all: bool,
    },
    /// Make this connection a stream of the container's input and output.
    Attach(Attach),
    /// The size of the container's terminal.
    Resize {
        /// Rows.
        rows: u16,
        /// Columns.
        cols: u16,
    },
    /// Run another program in the container.
    Exec(Box<Exec>),
    /// The size of an exec's terminal.
    ExecResize {
        /// The pid of [`Reply::Started`].
        pid: i32,
        /// Rows.
        rows: u16,
        /// Columns.
        cols: u16,
    },
    /// Send a signal to an exec's process.
    ExecSignal {
        /// The pid of [`Reply::Started`].
        pid: i32,
        /// Signal number, 1 to 64.
        signal: i32,
    },
    /// Freeze all processes.
    Pause,
    /// Thaw them.
    Resume,
    /// Change limits: `linux.resources` of the OCI specification.
    Update {
        /// The JSON.
        resources: serde_json::Value,
    },
    /// Answer: [`Reply::Stats`].
    Stats,
    /// Answer: [`Reply::Exited`], once it has.
    Wait,
}

/// Details of [`Request::Attach`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Attach {
    /// Whether this client will send input.
    pub stdin: bool,
    /// Rows and columns to set first.
    pub size: Option<(u16, u16)>,
    /// How many bytes of the log's end to send first, at most 512 KiB.
    pub tail_bytes: u32,
    /// Hold the container's output (and its log) back while this client is slow, instead of
    /// dropping the client. For a foreground `run`, whose output must be complete.
    pub lossless: bool,
    /// Tell the end at once, before it is recorded and cleaned up after. For a client that waits for what
    /// it needs of that by other means.
    pub end_at_once: bool,
}

/// Details of [`Request::Exec`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Exec {
    /// `process` of the OCI specification: args, env, cwd, user, terminal, consoleSize,
    /// capabilities, …. What is left out is as the container's own process has it.
    pub process: serde_json::Value,
    /// Whether this client will send input.
    #[serde(default)]
    pub stdin: bool,
    /// Do not make this connection a stream: the program gets `/dev/null` and lives on its own.
    #[serde(default)]
    pub detach: bool,
}

/// What the shim answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Reply {
    /// To [`Request::Hello`].
    Welcome {
        /// The shim's [`VERSION`].
        version: u32,
        /// The shim's own process.
        shim_pid: i32,
        /// The instance it serves.
        instance: String,
        /// The generation of its spec.
        generation: u64,
    },
    /// Done.
    Ok,
    /// Not done.
    Error(Failure),
    /// To [`Request::State`].
    State(Box<State>),
    /// To [`Request::Exec`].
    Started {
        /// The new process, as the host counts.
        pid: i32,
    },
    /// To [`Request::Stats`].
    Stats(Box<cgroup::Stats>),
    /// The process is gone; on a stream the last frame.
    Exited(Exited),
}

/// Why something was not done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// For programs.
    pub code: ErrorCode,
    /// For people: what happened, why, what to do.
    pub message: String,
}

/// Kinds of failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// The request is malformed or out of range.
    Invalid,
    /// It makes no sense now: not started yet, exited already.
    Conflict,
    /// There is no such exec.
    NotFound,
    /// The client speaks another version.
    Version,
    /// The client read too slowly and is dropped.
    Slow,
    /// Too many clients or execs.
    Limit,
    /// The kernel or the runtime refused.
    Failed,
    /// The program to run does not exist.
    ProgramNotFound,
    /// The program to run exists and cannot be executed.
    ProgramNotExecutable,
    /// Something a newer shim says.
    #[serde(other)]
    Other,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exited {
    /// Exit code; 128 + signal for one that was killed.
    pub code: i32,
    /// The signal that killed it.
    pub signal: Option<i32>,
    /// Whether the kernel killed some process of the container for want of memory.
    pub oom_killed: bool,
    /// When.
    pub at: Timestamp,
}

/// Where a container is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Made, waiting for [`Request::Start`].
    Created,
    /// Its program runs.
    Running,
    /// Frozen.
    Paused,
    /// Over; the shim goes soon.
    Exited,
}

/// The answer to [`Request::State`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// The instance.
    pub instance: String,
    /// The generation of its spec.
    pub generation: u64,
    /// Where it is.
    pub phase: Phase,
    /// Its first process, as the host counts.
    pub pid: i32,
    /// When it started.
    pub started_at: Option<Timestamp>,
    /// Clients attached.
    pub attached: u32,
    /// Execs running.
    pub execs: u32,
    /// Bytes of output that the log could not take (a full disk).
    pub log_dropped_bytes: u64,
    /// How it ended.
    pub exited: Option<Exited>,
}

/// Bytes that are no frame. The connection cannot go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProtocolError {
    /// A kind that is not known.
    #[error("the peer sent a frame of the unknown kind {0}; it may be of another version")]
    Kind(u8),
    /// A payload beyond the limit of its kind.
    #[error("the peer sent a frame of {len} bytes, more than the {limit} accepted")]
    TooLong {
        /// Its stated length.
        len: usize,
        /// The limit.
        limit: usize,
    },
    /// JSON that is not what was expected.
    #[error("the peer sent a message that cannot be understood: {0}")]
    Json(String),
}

impl Kind {
    fn from_byte(byte: u8) -> Result<Kind, ProtocolError> {
        Ok(match byte {
            0 => Kind::Message,
            1 => Kind::Stdin,
            2 => Kind::Stdout,
            3 => Kind::Stderr,
            4 => Kind::StdinEof,
            other => return Err(ProtocolError::Kind(other)),
        })
    }

    fn limit(self) -> usize {
        match self {
            Kind::Message => MAX_MESSAGE,
            Kind::Stdin | Kind::Stdout | Kind::Stderr => MAX_DATA,
            Kind::StdinEof => 0,
        }
    }
}

/// Appends a frame to `out`; data beyond [`MAX_DATA`] becomes several frames.
pub fn encode(kind: Kind, payload: &[u8], out: &mut Vec<u8>) {
    let mut one = |part: &[u8]| {
        out.extend_from_slice(&(part.len() as u32).to_le_bytes());
        out.push(kind as u8);
        out.extend_from_slice(part);
    };
    match kind {
        Kind::Message | Kind::StdinEof => one(payload),
        _ => payload.chunks(MAX_DATA).for_each(one),
    }
}

/// Appends a message frame to `out`.
///
/// # Errors
/// [`ProtocolError::TooLong`] for a message over [`MAX_MESSAGE`].
pub fn encode_message<T: Serialize>(message: &T, out: &mut Vec<u8>) -> Result<(), ProtocolError> {
    let start = out.len();
    out.extend_from_slice(&[0; HEADER]);
    serde_json::to_writer(&mut *out, message).map_err(|e| ProtocolError::Json(e.to_string()))?;
    let len = out.len() - start - HEADER;
    if len > MAX_MESSAGE {
        out.truncate(start);
        return Err(ProtocolError::TooLong {
            len,
            limit: MAX_MESSAGE,
        });
    }
    out[start..start + 4].copy_from_slice(&(len as u32).to_le_bytes());
    Ok(())
}

/// Reads the JSON of a message frame.
///
/// # Errors
/// [`ProtocolError::Json`].
pub fn decode_message<'a, T: Deserialize<'a>>(payload: &'a [u8]) -> Result<T, ProtocolError> {
    serde_json::from_slice(payload).map_err(|e| ProtocolError::Json(e.to_string()))
}

/// Takes frames out of a byte stream that arrives in pieces.
#[derive(Debug, Default)]
pub struct Decoder {
    bytes: Vec<u8>,
    taken: usize,
}

impl Decoder {
    /// Adds what arrived.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.taken > 0 {
            self.bytes.drain(..self.taken);
            self.taken = 0;
        }
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole frame, if there is one. Limits are checked as soon as the header is there.
    ///
    /// # Errors
    /// [`ProtocolError`]; the stream is then of no more use.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, ProtocolError> {
        let rest = &self.bytes[self.taken..];
        let Some((&[a, b, c, d, kind], rest)) = rest.split_first_chunk::<HEADER>() else {
            return Ok(None);
        };
        let kind = Kind::from_byte(kind)?;
        let (len, limit) = (u32::from_le_bytes([a, b, c, d]) as usize, kind.limit());
        if len > limit {
            return Err(ProtocolError::TooLong { len, limit });
        }
        let Some(payload) = rest.get(..len) else {
            return Ok(None);
        };
        let payload = payload.to_vec();
        self.taken += HEADER + len;
        if self.taken == self.bytes.len() {
            // Idle connections of 500 shims should hold nothing.
            *self = Decoder::default();
        }
        Ok(Some(Frame { kind, payload }))
    }

    /// Bytes held that are no whole frame yet.
    pub fn pending(&self) -> usize {
        self.bytes.len() - self.taken
    }
}

/// Fuzz target: any bytes as frames, and their payloads as messages.
#[doc(hidden)]
pub fn fuzz(data: &[u8]) {
    let mut decoder = Decoder::default();
    for piece in data.chunks(7) {
        decoder.push(piece);
        while let Ok(Some(frame)) = decoder.next_frame() {
            assert!(frame.payload.len() <= MAX_MESSAGE);
            let _ = decode_message::<Request>(&frame.payload);
            let _ = decode_message::<Reply>(&frame.payload);
        }
    }
    let _ = decode_message::<Request>(data);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip<T>(message: &T)
    where
        T: Serialize + for<'a> Deserialize<'a> + PartialEq + std::fmt::Debug,
    {
        let mut bytes = Vec::new();
        encode_message(message, &mut bytes).unwrap();
        let mut decoder = Decoder::default();
        let (first, last) = bytes.split_at(bytes.len() - 1);
        decoder.push(first);
        assert_eq!(decoder.next_frame(), Ok(None));
        decoder.push(last);
        let frame = decoder.next_frame().unwrap().unwrap();
        assert_eq!(&decode_message::<T>(&frame.payload).unwrap(), message);
        assert_eq!(decoder.pending(), 0);
    }

    #[test]
    fn messages_survive_and_their_json_is_pinned() {
        let exited = Exited {
            code: 137,
            signal: Some(9),
            oom_killed: true,
            at: Timestamp {
                seconds: 1,
                nanos: 2,
            },
        };
        round_trip(&Reply::Exited(exited));
        round_trip(&Request::Attach(Attach {
            size: Some((24, 80)),
            ..Attach::default()
        }));
        let json = serde_json::to_string(&Reply::Exited(exited)).unwrap();
        assert_eq!(
            json,
            r#"{"type":"exited","code":137,"signal":9,"oom_killed":true,"at":"1970-01-01T00:00:01.000000002Z"}"#
        );
        let json = serde_json::to_string(&Request::Signal {
            signal: 15,
            all: false,
        })
        .unwrap();
        assert_eq!(json, r#"{"type":"signal","signal":15,"all":false}"#);
        assert_eq!(
            decode_message::<Request>(br#"{"type":"attach","new_field":1}"#),
            Ok(Request::Attach(Attach::default()))
        );
    }

    #[test]
    fn limits_hold_before_the_payload_arrives() {
        let mut decoder = Decoder::default();
        decoder.push(&[0xff, 0xff, 0xff, 0xff, 1]);
        assert!(matches!(
            decoder.next_frame(),
            Err(ProtocolError::TooLong { .. })
        ));
        let mut decoder = Decoder::default();
        decoder.push(&[0, 0, 0, 0, 9]);
        assert_eq!(decoder.next_frame(), Err(ProtocolError::Kind(9)));
        let long = "x".repeat(MAX_MESSAGE);
        assert!(encode_message(&long, &mut Vec::new()).is_err());
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig { cases: 32, ..Default::default() })]

        #[test]
        fn data_survives_any_cutting(
            data in proptest::collection::vec(proptest::num::u8::ANY, 0..140_000),
            cut in 11usize..70_000,
        ) {
            let mut bytes = Vec::new();
            encode(Kind::Stdout, &data, &mut bytes);
            let (mut decoder, mut got) = (Decoder::default(), Vec::new());
            for piece in bytes.chunks(cut) {
                decoder.push(piece);
                while let Some(frame) = decoder.next_frame().unwrap() {
                    got.extend(frame.payload);
                }
            }
            proptest::prop_assert_eq!(got, data);
        }

        #[test]
        fn hostile_bytes_never_panic(data in proptest::collection::vec(0u8..6, 0..300)) {
            fuzz(&data);
        }
    }
}
