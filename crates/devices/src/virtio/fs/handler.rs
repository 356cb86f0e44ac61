//! Serves the queues: requests out of them, answers back into them.

use std::{sync::Arc, time::Instant};

use memory::GuestMemory;
use rustix::{event::epoll::EventFlags, io::Errno};

use super::{
    Folder,
    fuse::{
        Header, IN_HEADER, MAX_ARGUMENTS, MAX_IO, OUT_HEADER, Operation, Reply, Request, WRITE_IN,
    },
    rates::Rates,
};
use crate::virtio::{
    Buffers, Chain, Events, Handler, Interrupt, QueueError, Served, VirtQueue, fd,
};

/// What serves a folder's queues.
#[derive(Debug)]
pub(super) struct FsHandler {
    /// That of priority first.
    pub(super) queues: Vec<VirtQueue>,
    pub(super) folder: Folder,
    rates: Arc<Rates>,
    interrupt: Arc<dyn Interrupt>,
    scratch: Scratch,
}

/// Kept from request to request.
#[derive(Debug, Default)]
struct Scratch {
    arguments: Vec<u8>,
    reply: Reply,
}

impl FsHandler {
    pub(super) fn new(
        queues: Vec<VirtQueue>,
        folder: Folder,
        rates: Arc<Rates>,
        interrupt: Arc<dyn Interrupt>,
    ) -> Self {
        Self {
            queues,
            folder,
            rates,
            interrupt,
            scratch: Scratch::default(),
        }
    }

    fn serve(&mut self, events: &mut Events) -> Result<(), QueueError> {
        let Self {
            queues,
            folder,
            rates,
            scratch,
            ..
        } = self;
        for queue in queues {
            let index = queue.index();
            queue.serve_in_time(|memory, chain| {
                let malformed = |part| QueueError::Request { queue: index, part };
                let header = header(memory, chain).map_err(malformed)?;
                let limiter = rates.limiter(&header);
                if let Some(wait) = limiter.and_then(|it| it.admit(Instant::now())) {
                    events.wake_after(wait);
                    return Ok(Served::NotNow);
                }
                let (length, content) = scratch
                    .serve(header, folder, memory, chain)
                    .map_err(malformed)?;
                if let Some(limiter) = limiter {
                    limiter.charge(content);
                }
                Ok(Served::Done(length))
            })?;
        }
        Ok(())
    }
}

impl Handler for FsHandler {
    fn start(&mut self, events: &mut Events) -> Result<(), QueueError> {
        for queue in &self.queues {
            let watched = events.watch(fd(queue.kick()), queue.index().into(), EventFlags::IN);
            watched.map_err(|source| queue.unwatched(source))?;
        }
        self.serve(events)
    }

    fn ready(&mut self, _: u64, _: EventFlags, events: &mut Events) -> Result<(), QueueError> {
        self.serve(events)
    }

    fn timeout(&mut self, events: &mut Events) -> Result<(), QueueError> {
        self.serve(events)
    }

    fn interrupt(&self) -> &dyn Interrupt {
        &*self.interrupt
    }
}

/// Takes the header of a request. What has no room for one is no request at all.
fn header(memory: &GuestMemory, chain: &mut Chain) -> Result<Header, &'static str> {
    let mut bytes = [0; IN_HEADER];
    let read = chain.readable.read(memory, &mut bytes);
    read.map_err(|_| "header")?;
    Ok(Header::parse(&bytes))
}

impl Scratch {
    /// Serves a request; says how many bytes its answer has, and how many of content went either way.
    /// What has no room for the header of an answer is no request.
    fn serve(
        &mut self,
        header: Header,
        folder: &mut Folder,
        memory: &GuestMemory,
        chain: &mut Chain,
    ) -> Result<(u32, u64), &'static str> {
        let Self { arguments, reply } = self;
        reply.clear();
        let request = take(header, memory, &mut chain.readable, arguments);
        if let Ok(request) = &request
            && is_silent(&request.operation)
        {
            // Nobody waits to hear of a mistake.
            let _ = folder.call(request, 0, reply);
            return Ok((0, 0));
        }
        let mut head = chain
            .writable
            .take(OUT_HEADER as u64)
            .map_err(|_| "answer")?;
        let answered = request.and_then(|it| answer(&it, folder, memory, chain, reply));
        let (bytes, content, error) = match answered {
            Ok(Answered { bytes, content }) => (bytes, content, 0),
            Err(error) => (0, 0, -error.raw_os_error()),
        };
        let length = u32::try_from(OUT_HEADER + bytes).unwrap_or(u32::MAX);
        let mut bytes = [0; OUT_HEADER];
        bytes[..4].copy_from_slice(&length.to_le_bytes());
        bytes[4..8].copy_from_slice(&error.to_le_bytes());
        bytes[8..].copy_from_slice(&header.unique.to_le_bytes());
        head.write(memory, &bytes).map_err(|_| "answer")?;
        Ok((length, content))
    }
}

/// Takes a request out of guest memory; of one that writes to a file, the content stays there.
fn take<'a>(
    header: Header,
    memory: &GuestMemory,
    readable: &mut Buffers,
    arguments: &'a mut Vec<u8>,
) -> Result<Request<'a>, Errno> {
    let most = if header.is_write() {
        WRITE_IN
    } else {
        MAX_ARGUMENTS + 1
    };
    let left = usize::try_from(readable.bytes()).unwrap_or(usize::MAX);
    arguments.clear();
    arguments.resize(left.min(most), 0);
    readable.read(memory, arguments).map_err(|_| Errno::INVAL)?;
    Request::parse(header, arguments)
}

/// Whether a request is never answered.
fn is_silent(operation: &Operation<'_>) -> bool {
    use Operation::{BatchForget, Forget, Interrupt};
    matches!(operation, Forget { .. } | BatchForget { .. } | Interrupt)
}

/// What became of a request.
struct Answered {
    /// Bytes of the answer behind its header.
    bytes: usize,
    /// Bytes of a file that were read or written.
    content: u64,
}

/// Does what is asked and puts the answer behind its header.
fn answer(
    request: &Request<'_>,
    folder: &mut Folder,
    memory: &GuestMemory,
    chain: &mut Chain,
    reply: &mut Reply,
) -> Result<Answered, Errno> {
    let room = chain.writable.bytes();
    let mut content = 0;
    match request.operation {
        Operation::Read {
            handle,
            offset,
            size,
        } => {
            let wanted = room.min(size.min(MAX_IO).into());
            let buffers = chain.writable.take(wanted).map_err(|_| Errno::INVAL)?;
            let bytes = folder.read(handle, offset, memory, &buffers)?;
            let content = bytes as u64;
            return Ok(Answered { bytes, content });
        }
        Operation::Write {
            handle,
            offset,
            size,
            kill_privileges,
        } => {
            if size > MAX_IO {
                return Err(Errno::INVAL);
            }
            let buffers = chain.readable.take(size.into()).map_err(|_| Errno::INVAL)?;
            let written = folder.write((handle, offset), kill_privileges, memory, &buffers)?;
            // Not more than was asked for, which is a number of 32 bits.
            reply.count(written as u32);
            content = written as u64;
        }
        _ => {
            folder.call(request, usize::try_from(room).unwrap_or(usize::MAX), reply)?;
            if let (Operation::CopyRange { .. }, Some(count)) =
                (&request.operation, reply.bytes().first_chunk())
            {
                content = u32::from_le_bytes(*count).into();
            }
        }
    }
    let bytes = reply.bytes();
    chain
        .writable
        .write(memory, bytes)
        .map_err(|_| Errno::OVERFLOW)?;
    let bytes = bytes.len();
    Ok(Answered { bytes, content })
}
