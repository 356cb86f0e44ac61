//! Serves the queues: requests out of them, answers back into them.

use std::sync::Arc;

use memory::GuestMemory;
use rustix::{event::epoll::EventFlags, io::Errno};

use super::{
    Folder,
    fuse::{
        Header, IN_HEADER, MAX_ARGUMENTS, MAX_IO, OUT_HEADER, Operation, Reply, Request, WRITE_IN,
    },
};
use crate::virtio::{Buffers, Chain, Events, Handler, Interrupt, QueueError, VirtQueue, fd};

/// What serves a folder's queues.
#[derive(Debug)]
pub(super) struct FsHandler {
    /// That of priority first.
    pub(super) queues: Vec<VirtQueue>,
    pub(super) folder: Folder,
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
        interrupt: Arc<dyn Interrupt>,
    ) -> Self {
        Self {
            queues,
            folder,
            interrupt,
            scratch: Scratch::default(),
        }
    }

    fn serve(&mut self) -> Result<(), QueueError> {
        let Self {
            queues,
            folder,
            scratch,
            ..
        } = self;
        for queue in queues {
            let index = queue.index();
            queue.serve(|memory, chain| {
                let served = scratch.serve(folder, memory, chain);
                let no_room = |part| QueueError::Request { queue: index, part };
                served.map(Some).map_err(no_room)
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
        self.serve()
    }

    fn ready(&mut self, _: u64, _: EventFlags, _: &mut Events) -> Result<(), QueueError> {
        self.serve()
    }

    fn interrupt(&self) -> &dyn Interrupt {
        &*self.interrupt
    }
}

impl Scratch {
    /// Serves a request; says how many bytes its answer has. What has no room for the headers is no
    /// request at all.
    fn serve(
        &mut self,
        folder: &mut Folder,
        memory: &GuestMemory,
        chain: &mut Chain,
    ) -> Result<u32, &'static str> {
        let mut bytes = [0; IN_HEADER];
        chain
            .readable
            .read(memory, &mut bytes)
            .map_err(|_| "header")?;
        let header = Header::parse(&bytes);
        let Self { arguments, reply } = self;
        reply.clear();
        let request = take(header, memory, &mut chain.readable, arguments);
        if let Ok(request) = &request
            && is_silent(&request.operation)
        {
            // Nobody waits to hear of a mistake.
            let _ = folder.call(request, 0, reply);
            return Ok(0);
        }
        let mut head = chain
            .writable
            .take(OUT_HEADER as u64)
            .map_err(|_| "answer")?;
        let answered = request.and_then(|it| answer(&it, folder, memory, chain, reply));
        let (bytes, error) = match answered {
            Ok(bytes) => (bytes, 0),
            Err(error) => (0, -error.raw_os_error()),
        };
        let length = u32::try_from(OUT_HEADER + bytes).unwrap_or(u32::MAX);
        let mut bytes = [0; OUT_HEADER];
        bytes[..4].copy_from_slice(&length.to_le_bytes());
        bytes[4..8].copy_from_slice(&error.to_le_bytes());
        bytes[8..].copy_from_slice(&header.unique.to_le_bytes());
        head.write(memory, &bytes).map_err(|_| "answer")?;
        Ok(length)
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

/// Does what is asked and puts the answer behind its header; says how many bytes it has.
fn answer(
    request: &Request<'_>,
    folder: &mut Folder,
    memory: &GuestMemory,
    chain: &mut Chain,
    reply: &mut Reply,
) -> Result<usize, Errno> {
    let room = chain.writable.bytes();
    match request.operation {
        Operation::Read {
            handle,
            offset,
            size,
        } => {
            let wanted = room.min(size.min(MAX_IO).into());
            let buffers = chain.writable.take(wanted).map_err(|_| Errno::INVAL)?;
            return folder.read(handle, offset, memory, &buffers);
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
            let content = chain.readable.take(size.into()).map_err(|_| Errno::INVAL)?;
            let written = folder.write((handle, offset), kill_privileges, memory, &content)?;
            // Not more than was asked for, which is a number of 32 bits.
            reply.count(written as u32);
        }
        _ => folder.call(request, usize::try_from(room).unwrap_or(usize::MAX), reply)?,
    }
    let bytes = reply.bytes();
    chain
        .writable
        .write(memory, bytes)
        .map_err(|_| Errno::OVERFLOW)?;
    Ok(bytes.len())
}
