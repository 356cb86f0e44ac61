//! Serves the balloon's queues.

use std::sync::Arc;

use memory::GuestMemory;
use rustix::event::epoll::EventFlags;

use super::{
    GuestMemoryStats,
    config::{COMMAND_STOP, PAGE_BYTES},
    device::Shared,
    discard::discard,
    stats::LIST_BYTES,
};
use crate::virtio::{Chain, Events, Handler, Interrupt, QueueError, VirtQueue, fd};

const KICK_INFLATE: u64 = 0;
const KICK_DEFLATE: u64 = 1;
const KICK_STATS: u64 = 2;
const KICK_HINTING: u64 = 3;
const KICK_REPORTING: u64 = 4;
const BELL: u64 = 5;

/// Pages in one list of the balloon; Linux sends 256.
const LIST_PAGES: u64 = 4096;

#[derive(Debug)]
pub(super) struct BalloonHandler {
    pub(super) inflate: Option<VirtQueue>,
    pub(super) deflate: Option<VirtQueue>,
    pub(super) stats: Option<VirtQueue>,
    /// The guest's buffer for statistics: given back when new ones are wanted.
    pub(super) stats_held: Option<u16>,
    pub(super) hinting: Option<VirtQueue>,
    /// The round the guest's hints are of.
    pub(super) hinting_round: Option<u32>,
    pub(super) reporting: Option<VirtQueue>,
    pub(super) shared: Arc<Shared>,
    pub(super) interrupt: Arc<dyn Interrupt>,
}

impl BalloonHandler {
    fn inflate(&mut self) -> Result<(), QueueError> {
        let Some(queue) = &mut self.inflate else {
            return Ok(());
        };
        let index = queue.index();
        let served = queue.serve(|memory, chain| {
            inflate(memory, chain).map_err(|part| QueueError::Request { queue: index, part })?;
            Ok(Some(0))
        });
        served.map(drop)
    }

    /// Pages taken out need nothing: they come back when they are touched.
    fn deflate(&mut self) -> Result<(), QueueError> {
        match &mut self.deflate {
            Some(queue) => queue.serve(|_, _| Ok(Some(0))).map(drop),
            None => Ok(()),
        }
    }

    /// Takes statistics and keeps the buffer they came in. A guest that sends another without being
    /// asked gets the first one back.
    fn stats(&mut self) -> Result<(), QueueError> {
        let Some(queue) = &mut self.stats else {
            return Ok(());
        };
        queue.clear_kick();
        let memory = queue.memory().clone();
        for _ in 0..queue.size() {
            let Some(mut chain) = queue.pop()? else {
                // One that came in between rings for nothing: it is found here.
                if queue.want_kicks(true)? {
                    continue;
                }
                break;
            };
            let bytes = chain.readable.bytes().min(LIST_BYTES as u64) as usize;
            let mut list = vec![0; bytes];
            if chain.readable.read(&memory, &mut list).is_ok() {
                self.shared.set_stats(GuestMemoryStats::parse(&list));
            }
            if let Some(earlier) = self.stats_held.replace(chain.head) {
                queue.complete(earlier, 0)?;
            }
        }
        queue.notify()
    }

    fn refresh_stats(&mut self) -> Result<(), QueueError> {
        let Some(queue) = &mut self.stats else {
            return Ok(());
        };
        if let Some(head) = self.stats_held.take() {
            queue.complete(head, 0)?;
            queue.notify()?;
        }
        Ok(())
    }

    /// A round begins with its number and ends with a stop, both told as readable bytes; free memory
    /// is told as writable buffers (5.5.6.6).
    fn hinting(&mut self) -> Result<(), QueueError> {
        let Some(queue) = &mut self.hinting else {
            return Ok(());
        };
        let (shared, round) = (&self.shared, &mut self.hinting_round);
        let served = queue.serve(|memory, chain| {
            let mut command = [0; 4];
            if chain.readable.read(memory, &mut command).is_ok() {
                let command = u32::from_le_bytes(command);
                if command == COMMAND_STOP && round.is_some() {
                    shared.hinting_ended();
                }
                *round = (command != COMMAND_STOP).then_some(command);
            }
            if round.is_some() && *round == shared.round() {
                for buffer in chain.writable.list() {
                    shared.hint(buffer.address, buffer.bytes.into());
                }
            }
            Ok(Some(0))
        });
        served.map(drop)
    }

    fn reporting(&mut self) -> Result<(), QueueError> {
        let Some(queue) = &mut self.reporting else {
            return Ok(());
        };
        let served = queue.serve(|memory, chain| {
            for buffer in chain.writable.list() {
                // The memory stays with the guest then, which is as good as never told.
                let _ = discard(memory, buffer.address, buffer.bytes.into());
            }
            Ok(Some(0))
        });
        served.map(drop)
    }
}

/// Gives back what is listed: page numbers, neighbours together. `Err` says what is wrong with the
/// list.
fn inflate(memory: &GuestMemory, chain: &mut Chain) -> Result<(), &'static str> {
    let bytes = chain.readable.bytes();
    if !bytes.is_multiple_of(4) || bytes > LIST_PAGES * 4 {
        return Err("list of pages");
    }
    let mut list = vec![0; bytes as usize];
    chain
        .readable
        .read(memory, &mut list)
        .map_err(|_| "list of pages")?;
    let mut pages: Vec<u64> = list
        .chunks_exact(4)
        .map(|it| u32::from_le_bytes([it[0], it[1], it[2], it[3]]).into())
        .collect();
    pages.sort_unstable();
    pages.dedup();
    for run in pages.chunk_by(|a, b| a + 1 == *b) {
        // Where that fails the host has less than it could, and the guest is none the wiser.
        let _ = discard(memory, run[0] * PAGE_BYTES, run.len() as u64 * PAGE_BYTES);
    }
    Ok(())
}

impl Handler for BalloonHandler {
    fn start(&mut self, events: &mut Events) -> Result<(), QueueError> {
        let queues = [
            (&self.inflate, KICK_INFLATE),
            (&self.deflate, KICK_DEFLATE),
            (&self.stats, KICK_STATS),
            (&self.hinting, KICK_HINTING),
            (&self.reporting, KICK_REPORTING),
        ];
        for (queue, token) in queues {
            if let Some(queue) = queue {
                let watched = events.watch(fd(queue.kick()), token, EventFlags::IN);
                watched.map_err(|source| queue.unwatched(source))?;
            }
        }
        let watched = events.watch(fd(&self.shared.bell), BELL, EventFlags::IN);
        watched.map_err(|source| QueueError::Host {
            queue: 0,
            what: "watch for changes",
            source,
        })?;
        self.inflate()?;
        self.deflate()?;
        self.stats()?;
        self.hinting()?;
        self.reporting()
    }

    fn ready(&mut self, token: u64, _: EventFlags, _: &mut Events) -> Result<(), QueueError> {
        match token {
            KICK_INFLATE => self.inflate(),
            KICK_DEFLATE => self.deflate(),
            KICK_STATS => self.stats(),
            KICK_HINTING => self.hinting(),
            KICK_REPORTING => self.reporting(),
            _ => {
                // Fails when nobody rang: nothing to forget.
                let _ = self.shared.bell.read();
                self.refresh_stats()
            }
        }
    }

    /// The buffer for statistics goes back into the queue, to be found there again.
    fn stop(&mut self) {
        if let (Some(queue), Some(_)) = (&mut self.stats, self.stats_held.take()) {
            queue.unpop();
        }
    }

    fn interrupt(&self) -> &dyn Interrupt {
        &*self.interrupt
    }
}
