//! Carries input to the guest and output from it.

use std::sync::Arc;

use rustix::event::epoll::EventFlags;

use super::device::Shared;
use crate::virtio::{Events, Handler, Interrupt, QueueError, VirtQueue, fd};

const KICK_RECEIVE: u64 = 0;
const KICK_TRANSMIT: u64 = 1;
const TYPED: u64 = 2;

/// Bytes taken of one request; the rest of a longer one is dropped. Drivers send a page.
const REQUEST_BYTES: u64 = 64 << 10;

#[derive(Debug)]
pub(super) struct ConsoleHandler {
    pub(super) receive: Option<VirtQueue>,
    pub(super) transmit: Option<VirtQueue>,
    pub(super) shared: Arc<Shared>,
    pub(super) interrupt: Arc<dyn Interrupt>,
}

impl ConsoleHandler {
    fn receive(&mut self) -> Result<(), QueueError> {
        let Some(queue) = &mut self.receive else {
            return Ok(());
        };
        let shared = &self.shared;
        let served = queue.serve(|memory, chain| {
            if !shared.has_input() {
                return Ok(None);
            }
            let most = chain.writable.bytes().min(REQUEST_BYTES) as usize;
            let input = shared.take_input(most);
            let written = chain.writable.write(memory, &input);
            Ok(Some(written.map_or(0, |()| input.len() as u32)))
        });
        served.map(drop)
    }

    fn transmit(&mut self) -> Result<(), QueueError> {
        let Some(queue) = &mut self.transmit else {
            return Ok(());
        };
        let shared = &self.shared;
        let served = queue.serve(|memory, chain| {
            let bytes = chain.readable.bytes().min(REQUEST_BYTES) as usize;
            let mut output = vec![0; bytes];
            if chain.readable.read(memory, &mut output).is_ok() {
                shared.print(&output);
            }
            Ok(Some(0))
        });
        served.map(drop)
    }
}

impl Handler for ConsoleHandler {
    fn start(&mut self, events: &mut Events) -> Result<(), QueueError> {
        for (queue, token) in [
            (&self.receive, KICK_RECEIVE),
            (&self.transmit, KICK_TRANSMIT),
        ] {
            if let Some(queue) = queue {
                let watched = events.watch(fd(queue.kick()), token, EventFlags::IN);
                watched.map_err(|source| queue.unwatched(source))?;
            }
        }
        let watched = events.watch(fd(&self.shared.typed), TYPED, EventFlags::IN);
        watched.map_err(|source| QueueError::Host {
            queue: 0,
            what: "watch for input",
            source,
        })?;
        self.receive()?;
        self.transmit()
    }

    fn ready(&mut self, token: u64, _: EventFlags, _: &mut Events) -> Result<(), QueueError> {
        match token {
            KICK_TRANSMIT => self.transmit(),
            _ => {
                // Fails when nothing was typed: then a buffer came.
                let _ = self.shared.typed.read();
                self.receive()
            }
        }
    }

    fn interrupt(&self) -> &dyn Interrupt {
        &*self.interrupt
    }
}
