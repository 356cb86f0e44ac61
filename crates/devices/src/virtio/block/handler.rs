//! Serves one queue: takes requests, does them one after another, answers.

use std::{io, sync::Arc, time::Instant};

use memory::GuestMemory;
use rustix::event::epoll::EventFlags;

use super::{
    device::Shared,
    request::{Command, Geometry, Request, Status},
};
use crate::virtio::{
    Buffers, Chain, DeviceEvent, Events, Handler, Interrupt, QueueError, VirtQueue, fd,
};

const KICK: u64 = 0;

#[derive(Debug)]
pub(super) struct BlockHandler {
    pub(super) queue: VirtQueue,
    pub(super) shared: Arc<Shared>,
    pub(super) interrupt: Arc<dyn Interrupt>,
}

impl BlockHandler {
    fn serve(&mut self, events: &mut Events) -> Result<(), QueueError> {
        let mut wait = None;
        let shared = &self.shared;
        let queue = self.queue.index();
        self.queue.serve(|memory, chain| {
            wait = shared.limiter.admit(Instant::now());
            if wait.is_some() {
                return Ok(None);
            }
            let written = shared.execute(memory, chain);
            written
                .map(Some)
                .map_err(|part| QueueError::Request { queue, part })
        })?;
        if let Some(wait) = wait {
            events.wake_after(wait);
        }
        Ok(())
    }
}

impl Handler for BlockHandler {
    fn start(&mut self, events: &mut Events) -> Result<(), QueueError> {
        let watched = events.watch(fd(self.queue.kick()), KICK, EventFlags::IN);
        watched.map_err(|source| self.queue.unwatched(source))?;
        self.serve(events)
    }

    fn ready(
        &mut self,
        _token: u64,
        _flags: EventFlags,
        events: &mut Events,
    ) -> Result<(), QueueError> {
        self.serve(events)
    }

    fn timeout(&mut self, events: &mut Events) -> Result<(), QueueError> {
        self.serve(events)
    }

    fn interrupt(&self) -> &dyn Interrupt {
        &*self.interrupt
    }
}

impl Shared {
    /// Does one request and writes its status. The result is how many bytes were written, or which
    /// part of the request is missing.
    pub(super) fn execute(
        &self,
        memory: &GuestMemory,
        chain: &mut Chain,
    ) -> Result<u32, &'static str> {
        let disk = Geometry {
            bytes: self.disk.bytes(),
            read_only: self.read_only,
        };
        let mut request = Request::parse(memory, chain, disk)?;
        self.limiter.charge(request.data_bytes());
        let (status, written) = match request.command {
            Err(status) => (status, 0),
            Ok(command) => match self.run(memory, command) {
                Ok(written) => (Status::Ok, written),
                Err(error) => {
                    self.report(&error);
                    (Status::IoError, 0)
                }
            },
        };
        self.stats.finished(status == Status::Ok);
        let answered = request.status.write(memory, &[status as u8]);
        answered.map_err(|_| "status")?;
        Ok(written + 1)
    }

    fn run(&self, memory: &GuestMemory, command: Command) -> io::Result<u32> {
        match command {
            Command::Read { offset, data } => {
                let result = self.disk.read(&data.host(memory), offset);
                // Also when it failed: some of it may have been read.
                data.mark_dirty(memory, data.bytes());
                result?;
                self.stats.read(data.bytes());
                Ok(data.bytes() as u32)
            }
            Command::Write { offset, data } => {
                self.disk.write(&data.host(memory), offset)?;
                self.stats.wrote(data.bytes());
                Ok(0)
            }
            Command::Flush => self.disk.flush().map(|()| 0),
            Command::GetId { data } => Ok(self.get_id(memory, data)),
            Command::Discard(ranges) => {
                for range in ranges {
                    self.disk.discard(range)?;
                }
                Ok(0)
            }
            Command::WriteZeroes(ranges) => {
                for (range, unmap) in ranges {
                    self.disk.write_zeroes(range, unmap)?;
                }
                Ok(0)
            }
        }
    }

    fn get_id(&self, memory: &GuestMemory, mut data: Buffers) -> u32 {
        let bytes = data.bytes().min(self.serial.len() as u64) as usize;
        let written = data.write(memory, &self.serial[..bytes]);
        written.map_or(0, |()| bytes as u32)
    }

    fn report(&self, error: &io::Error) {
        let device = self.label.clone();
        let full = matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT));
        (self.host.event)(if full {
            DeviceEvent::DiskFull { device }
        } else {
            let reason = error.to_string();
            DeviceEvent::DiskFailed { device, reason }
        });
    }
}
