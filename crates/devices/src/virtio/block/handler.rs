//! Serves one queue: takes requests, does them or has them done, answers.

use std::{
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use memory::GuestMemory;
use rustix::event::epoll::EventFlags;

use super::{
    device::Shared,
    held::Held,
    request::{Command, Direction, Geometry, Request, Status},
    ring::{Flight, Ring, Transfer},
};
use crate::virtio::{
    Buffers, Chain, DeviceEvent, Events, Handler, Interrupt, QueueError, Served, VirtQueue, fd,
};

const KICK: u64 = 0;
const DONE: u64 = 1;

#[derive(Debug)]
pub(super) struct BlockHandler {
    pub(super) queue: VirtQueue,
    pub(super) held: Held,
    pub(super) ring: Option<Ring>,
    pub(super) shared: Arc<Shared>,
    pub(super) interrupt: Arc<dyn Interrupt>,
}

impl BlockHandler {
    fn serve(&mut self, events: &mut Events) -> Result<(), QueueError> {
        let mut wait = self.release()?;
        let (shared, ring, held) = (&self.shared, &mut self.ring, &mut self.held);
        let (queue, most) = (self.queue.index(), usize::from(self.queue.size()));
        self.queue.serve_in_time(|memory, chain| {
            // A driver that breaks the rules could have more under way than its queue holds.
            if held.len() >= most || ring.as_ref().is_some_and(|it| !it.has_room()) {
                return Ok(Served::NotNow);
            }
            let missing = |part| QueueError::Request { queue, part };
            let head = chain.head;
            let request = shared.parse(memory, chain).map_err(missing)?;
            let direction = request.direction();
            let due = shared.limiter(direction).admit(Instant::now());
            if due.is_some() || !held.is_clear(direction) {
                wait = sooner(wait, due);
                held.push(head, request);
                return Ok(Served::Taken);
            }
            let served = shared.execute(memory, head, request, ring.as_mut());
            served.map_err(missing)
        })?;
        if let Some(ring) = ring {
            ring.submit().map_err(|source| QueueError::Host {
                queue,
                what: "submit requests to the kernel",
                source,
            })?;
        }
        if let Some(wait) = wait {
            events.wake_after(wait);
        }
        Ok(())
    }

    /// Does what a limit held back and no longer does; says when to look again for the rest.
    fn release(&mut self) -> Result<Option<Duration>, QueueError> {
        let mut wait = None;
        let memory = self.queue.memory().clone();
        for direction in Direction::ALL {
            while !self.held.is_clear(direction) {
                let due = self.shared.limiter(direction).admit(Instant::now());
                if due.is_some() || self.ring.as_ref().is_some_and(|it| !it.has_room()) {
                    wait = sooner(wait, due);
                    break;
                }
                self.execute_held(&memory, direction)?;
            }
        }
        Ok(wait)
    }

    fn execute_held(
        &mut self,
        memory: &GuestMemory,
        direction: Direction,
    ) -> Result<(), QueueError> {
        let Some((head, request)) = self.held.pop(direction) else {
            return Ok(());
        };
        let served = self
            .shared
            .execute(memory, head, request, self.ring.as_mut());
        match served.map_err(|part| self.queue.no_room(part))? {
            Served::Done(written) => self.queue.complete(head, written),
            _ => Ok(()),
        }
    }

    /// Does at once all that is held back.
    fn release_all(&mut self) -> Result<(), QueueError> {
        let memory = self.queue.memory().clone();
        for direction in Direction::ALL {
            while !self.held.is_clear(direction) {
                if let Some(ring) = &self.ring
                    && !ring.has_room()
                {
                    ring.wait();
                    self.finish()?;
                }
                self.execute_held(&memory, direction)?;
            }
        }
        self.queue.notify()
    }

    /// Answers what the kernel is done with.
    fn finish(&mut self) -> Result<(), QueueError> {
        let Some(ring) = &mut self.ring else {
            return Ok(());
        };
        // Fails when nobody rang: nothing to forget.
        let _ = ring.done().read();
        let memory = self.queue.memory().clone();
        while let Some((flight, result)) = ring.finished() {
            let head = flight.head;
            let written = self.shared.land(&memory, flight, result);
            let written = written.map_err(|part| self.queue.no_room(part))?;
            self.queue.complete(head, written)?;
        }
        self.queue.notify()
    }
}

impl Handler for BlockHandler {
    fn start(&mut self, events: &mut Events) -> Result<(), QueueError> {
        let mut watched = events.watch(fd(self.queue.kick()), KICK, EventFlags::IN);
        if let Some(ring) = &self.ring {
            watched = watched.and_then(|()| events.watch(fd(ring.done()), DONE, EventFlags::IN));
        }
        watched.map_err(|source| self.queue.unwatched(source))?;
        self.serve(events)
    }

    fn ready(
        &mut self,
        token: u64,
        _flags: EventFlags,
        events: &mut Events,
    ) -> Result<(), QueueError> {
        if token == DONE {
            self.finish()?;
        }
        self.serve(events)
    }

    fn timeout(&mut self, events: &mut Events) -> Result<(), QueueError> {
        self.serve(events)
    }

    /// Waits for what is under way: it reads and writes guest memory. What a limit holds back has
    /// left the queue, and is not to be lost with it: it is done now.
    fn stop(&mut self) {
        if let Err(error) = self.release_all() {
            self.interrupt.needs_reset(&error);
        }
        while self.ring.as_ref().is_some_and(Ring::wait) {
            if let Err(error) = self.finish() {
                // The rings are broken; what is under way still has to end.
                self.interrupt.needs_reset(&error);
            }
        }
    }

    fn interrupt(&self) -> &dyn Interrupt {
        &*self.interrupt
    }
}

/// The shorter of two times to wait.
fn sooner(one: Option<Duration>, other: Option<Duration>) -> Option<Duration> {
    one.into_iter().chain(other).min()
}

impl Shared {
    /// The request of a chain. `Err` says which part of it is missing.
    fn parse(&self, memory: &GuestMemory, chain: &mut Chain) -> Result<Request, &'static str> {
        let disk = Geometry {
            bytes: self.disk.bytes(),
            read_only: self.read_only,
        };
        Request::parse(memory, chain, disk)
    }

    /// Does one request or puts it on its way, and charges it to its limit. `Err` says which part of
    /// the request is missing.
    fn execute(
        &self,
        memory: &GuestMemory,
        head: u16,
        request: Request,
        ring: Option<&mut Ring>,
    ) -> Result<Served, &'static str> {
        let limiter = self.limiter(request.direction());
        limiter.charge(request.data_bytes());
        let (mut command, mut status) = match request {
            Request {
                command: Ok(command),
                status,
            } => (command, status),
            Request {
                command: Err(refusal),
                mut status,
            } => {
                return self
                    .answer(memory, &mut status, Err(refusal))
                    .map(Served::Done);
            }
        };
        if let Some(ring) = ring {
            match self.begin(ring, memory, head, command, status) {
                None => return Ok(Served::Taken),
                Some(back) => (command, status) = back,
            }
        }
        let outcome = self.outcome(self.run(memory, command));
        self.answer(memory, &mut status, outcome).map(Served::Done)
    }

    /// Puts a request on its way; comes back with it where that cannot be.
    fn begin(
        &self,
        ring: &mut Ring,
        memory: &GuestMemory,
        head: u16,
        command: Command,
        status: Buffers,
    ) -> Option<(Command, Buffers)> {
        let (transfer, data) = match command {
            Command::Read { offset, data } => (Transfer::Read { offset }, data),
            Command::Flush => (Transfer::Flush, Buffers::default()),
            other => return Some((other, status)),
        };
        let begun = ring.begin(memory, head, transfer, data, status);
        let (data, status) = begun.err()?;
        Some((transfer.command(data), status))
    }

    /// A request that was under way is done: so many bytes, or an error. The result is how many
    /// bytes were written, or which part of the request is missing.
    fn land(
        &self,
        memory: &GuestMemory,
        flight: Flight,
        result: io::Result<u64>,
    ) -> Result<u32, &'static str> {
        let Flight {
            transfer,
            data,
            mut status,
            ..
        } = flight;
        let bytes = data.bytes();
        if matches!(transfer, Transfer::Read { .. }) {
            // Also when it failed: some of it may have been read.
            data.mark_dirty(memory, bytes);
        }
        let result = match (transfer, result) {
            (Transfer::Flush, Ok(_)) => Ok(0),
            (Transfer::Read { .. }, Ok(done)) if done == bytes => {
                self.stats.read(bytes);
                Ok(bytes as u32)
            }
            // Cut short: the plain way does all of it again.
            (_, Ok(_)) => self.run(memory, transfer.command(data)),
            (_, Err(error)) => match error.kind() {
                io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock => {
                    self.run(memory, transfer.command(data))
                }
                _ => Err(error),
            },
        };
        let outcome = self.outcome(result);
        self.answer(memory, &mut status, outcome)
    }

    /// What the guest hears of a result; the host hears of errors.
    fn outcome(&self, result: io::Result<u32>) -> Result<u32, Status> {
        result.map_err(|error| {
            self.report(&error);
            Status::IoError
        })
    }

    /// Writes the status of a request.
    fn answer(
        &self,
        memory: &GuestMemory,
        status: &mut Buffers,
        outcome: Result<u32, Status>,
    ) -> Result<u32, &'static str> {
        self.stats.finished(outcome.is_ok());
        let (code, written) = match outcome {
            Ok(written) => (Status::Ok, written),
            Err(code) => (code, 0),
        };
        let answered = status.write(memory, &[code as u8]);
        answered.map(|()| written + 1).map_err(|_| "status")
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
