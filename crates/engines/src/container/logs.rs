//! A container's log as lines on a channel. A thread reads: logs are files, and following them
//! waits on inotify.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use ::container::shim::{
    self, Stream,
    logs::{From, Logs, Record},
};
use bytes::Bytes;
use engine::{EngineError, LogLine, LogRequest, LogStream};
use model::InstanceId;
use tokio::sync::mpsc;

use super::{failed, timestamp};

/// Lines in flight.
const IN_FLIGHT: usize = 256;
/// How long to wait for a change before looking whether anybody still writes.
const PATIENCE: Duration = Duration::from_millis(250);

/// Opens a log and sends its lines.
pub(super) fn read(
    id: InstanceId,
    path: &Path,
    guest: PathBuf,
    request: LogRequest,
) -> Result<mpsc::Receiver<LogLine>, EngineError> {
    let since = request.since.map(|at| shim::Timestamp {
        seconds: at.as_millis() / 1000,
        nanos: (at.as_millis() % 1000) as u32 * 1_000_000,
    });
    let from = From {
        tail: request.tail,
        since,
        stream: request.stream.map(|stream| match stream {
            LogStream::Stdout => Stream::Stdout,
            LogStream::Stderr => Stream::Stderr,
        }),
    };
    let mut logs = Logs::open(path, from).map_err(|error| failed(id, "reading its log", error))?;
    if request.follow {
        logs.watch()
            .map_err(|error| failed(id, "watching its log", error))?;
    }
    let (sender, lines) = mpsc::channel(IN_FLIGHT);
    tokio::task::spawn_blocking(move || {
        if let Err(error) = send(&mut logs, &guest, request.follow, &sender) {
            tracing::warn!(%id, %error, "a log cannot be read on");
        }
    });
    Ok(lines)
}

fn send(
    logs: &mut Logs,
    guest: &Path,
    follow: bool,
    lines: &mpsc::Sender<LogLine>,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    loop {
        // Asked before reading: what is written until the writer goes is then still read.
        let writer = shim::holder(guest)?.is_some();
        while let Some(record) = logs.next_record()? {
            if lines.blocking_send(line(record)).is_err() {
                return Ok(());
            }
        }
        if !follow || !writer || lines.is_closed() {
            return Ok(());
        }
        wait(logs)?;
        logs.acknowledge();
    }
}

fn wait(logs: &mut Logs) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let changes = logs.watch()?;
    let patience = Timespec {
        tv_sec: 0,
        tv_nsec: i64::from(PATIENCE.subsec_nanos()),
    };
    match poll(&mut [PollFd::new(&changes, PollFlags::IN)], Some(&patience)) {
        Err(rustix::io::Errno::INTR) | Ok(_) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

fn line(record: Record) -> LogLine {
    LogLine {
        at: timestamp(record.at),
        stream: match record.stream {
            Stream::Stdout => LogStream::Stdout,
            Stream::Stderr => LogStream::Stderr,
        },
        text: Bytes::from(record.text),
        complete: record.whole,
    }
}
