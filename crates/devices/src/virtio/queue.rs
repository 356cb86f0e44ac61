//! A virtqueue from the device's side: requests out of it, answers back into it, and interrupts as
//! the driver wants them.
//!
//! Owned by the worker that serves it; the transport makes it when the driver is ready and takes it
//! back when the device is paused or reset.

use std::{
    io,
    sync::{
        Arc,
        atomic::{Ordering, fence},
    },
};

use memory::GuestMemory;
use serde::{Deserialize, Serialize};
use virtio_bindings::bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{Queue, QueueOwnedT, QueueState, QueueT};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use super::{Chain, ChainError, Interrupt};

/// Why a queue cannot be served any more. The device needs a reset (virtio 1.2, 2.1.2).
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// The rings are not where they can be used.
    #[error("queue {queue}: its rings: {reason}")]
    Rings {
        /// Number of the queue.
        queue: u16,
        /// What is wrong, in virtio-queue's words.
        reason: String,
    },
    /// A chain breaks the rules.
    #[error("queue {queue}: a request breaks the rules")]
    Chain {
        /// Number of the queue.
        queue: u16,
        /// How.
        source: ChainError,
    },
    /// A request has no room for what must be said or answered.
    #[error("queue {queue}: a request without room for its {part}")]
    Request {
        /// Number of the queue.
        queue: u16,
        /// What did not fit: "header", "status", ….
        part: &'static str,
    },
    /// The host failed the worker.
    #[error("queue {queue}: cannot {what}")]
    Host {
        /// Number of the queue.
        queue: u16,
        /// What was tried: "read from the tap device", ….
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Served {
    /// It is answered, so many bytes of it written.
    Done(u32),
    /// It is under way; [`VirtQueue::complete`] follows.
    Taken,
    /// It cannot be served now and stays in the queue.
    NotNow,
}

/// Where a queue is and how far it has come, as it is saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedQueue {
    /// Entries the driver chose.
    pub size: u16,
    /// Whether the driver enabled it.
    pub ready: bool,
    /// Guest physical address of the descriptor table.
    pub descriptors: u64,
    /// Guest physical address of the available ring.
    pub available: u64,
    /// Guest physical address of the used ring.
    pub used: u64,
    /// Next entry of the available ring to take.
    pub next_available: u16,
    /// Next entry of the used ring to fill.
    pub next_used: u16,
}

impl SavedQueue {
    /// A queue before the driver touched it.
    #[must_use]
    pub fn fresh(max_size: u16) -> Self {
        Self {
            size: max_size,
            ready: false,
            descriptors: 0,
            available: 0,
            used: 0,
            next_available: 0,
            next_used: 0,
        }
    }
}

/// A virtqueue in use.
#[derive(Debug)]
pub struct VirtQueue {
    index: u16,
    queue: Queue,
    memory: GuestMemory,
    kick: EventFd,
    interrupt: Arc<dyn Interrupt>,
    /// How far the used ring was when interrupting was last thought about.
    told: u16,
}

impl VirtQueue {
    /// The queue `saved` describes, number `index` of its device.
    ///
    /// # Errors
    /// When its rings are misaligned, not all in RAM, or of a size the device does not take.
    pub fn new(
        index: u16,
        max_size: u16,
        saved: &SavedQueue,
        event_idx: bool,
        memory: GuestMemory,
        kick: EventFd,
        interrupt: Arc<dyn Interrupt>,
    ) -> Result<Self, QueueError> {
        let failed = |reason: String| QueueError::Rings {
            queue: index,
            reason,
        };
        let queue = Queue::try_from(QueueState {
            max_size,
            next_avail: saved.next_available,
            next_used: saved.next_used,
            event_idx_enabled: event_idx,
            size: saved.size,
            ready: saved.ready,
            desc_table: saved.descriptors,
            avail_ring: saved.available,
            used_ring: saved.used,
        })
        .map_err(|error| failed(error.to_string()))?;
        if !queue.is_valid(&memory) {
            return Err(failed("not ready, or not within memory".to_owned()));
        }
        Ok(Self {
            index,
            queue,
            memory,
            kick,
            interrupt,
            told: saved.next_used,
        })
    }

    /// Its number.
    #[must_use]
    pub fn index(&self) -> u16 {
        self.index
    }

    /// How many requests it holds at most.
    #[must_use]
    pub fn size(&self) -> u16 {
        self.queue.size()
    }

    /// The memory it and its requests lie in.
    #[must_use]
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// Where it is and how far it has come.
    #[must_use]
    pub fn save(&self) -> SavedQueue {
        SavedQueue {
            size: self.queue.size(),
            ready: self.queue.ready(),
            descriptors: self.queue.desc_table(),
            available: self.queue.avail_ring(),
            used: self.queue.used_ring(),
            next_available: self.queue.next_avail(),
            next_used: self.queue.next_used(),
        }
    }

    /// Rung by the driver when it added requests.
    #[must_use]
    pub fn kick(&self) -> &EventFd {
        &self.kick
    }

    /// Rings it ourselves: serve this queue again soon.
    pub fn kick_again(&self) {
        // Fails only when the counter is full: then it is rung already.
        let _ = self.kick.write(1);
    }

    /// Forgets rings so far. The queue is to be looked at after this, not before.
    pub fn clear_kick(&self) {
        // Fails when nobody rang: nothing to forget.
        let _ = self.kick.read();
    }

    fn rings(&self, error: &virtio_queue::Error) -> QueueError {
        QueueError::Rings {
            queue: self.index,
            reason: error.to_string(),
        }
    }

    /// A request of this queue has no room for its `part`.
    #[must_use]
    pub fn no_room(&self, part: &'static str) -> QueueError {
        QueueError::Request {
            queue: self.index,
            part,
        }
    }

    /// Its doorbell could not be watched.
    #[must_use]
    pub fn unwatched(&self, source: io::Error) -> QueueError {
        QueueError::Host {
            queue: self.index,
            what: "watch its doorbell",
            source,
        }
    }

    /// The next request, if there is one.
    ///
    /// # Errors
    /// When the ring or the chain breaks the rules.
    pub fn pop(&mut self) -> Result<Option<Chain>, QueueError> {
        let chain = match self.queue.iter(&self.memory) {
            Ok(mut chains) => chains.next(),
            Err(error) => return Err(self.rings(&error)),
        };
        let Some(chain) = chain else { return Ok(None) };
        Chain::parse(&self.memory, chain)
            .map(Some)
            .map_err(|source| QueueError::Chain {
                queue: self.index,
                source,
            })
    }

    /// Takes back the last [`VirtQueue::pop`]: the request will come again.
    pub fn unpop(&mut self) {
        self.queue.go_to_previous_position();
    }

    /// Gives a request back, `written` bytes of it written. The driver is told with
    /// [`VirtQueue::notify`].
    ///
    /// # Errors
    /// When the used ring cannot be written.
    pub fn complete(&mut self, head: u16, written: u32) -> Result<(), QueueError> {
        self.queue
            .add_used(&self.memory, head, written)
            .map_err(|error| self.rings(&error))
    }

    /// Gives several requests back so that the driver sees all of them or none.
    ///
    /// # Errors
    /// When the used ring cannot be written.
    pub fn complete_together(&mut self, answers: &[(u16, u32)]) -> Result<(), QueueError> {
        let Some((last, first)) = answers.split_last() else {
            return Ok(());
        };
        for (head, written) in first {
            let slot = self.queue.next_used() % self.queue.size();
            let at = self.queue.used_ring() + 4 + u64::from(slot) * 8;
            let mut element = [0; 8];
            element[..2].copy_from_slice(&head.to_le_bytes());
            element[4..].copy_from_slice(&written.to_le_bytes());
            self.memory
                .write_slice(&element, GuestAddress(at))
                .map_err(|error| self.rings(&virtio_queue::Error::GuestMemory(error)))?;
            // The ring's index, which the driver looks at, moves with the last one only.
            self.queue
                .set_next_used(self.queue.next_used().wrapping_add(1));
        }
        self.complete(last.0, last.1)
    }

    /// Interrupts the driver if there are answers it does not know of and wants to be told (2.7.7
    /// and 2.7.10).
    ///
    /// # Errors
    /// When the rings cannot be read.
    pub fn notify(&mut self) -> Result<(), QueueError> {
        let (old, new) = (self.told, self.queue.next_used());
        if old == new {
            return Ok(());
        }
        self.told = new;
        // The driver writes what it wants after it looked at the index, we the other way round.
        fence(Ordering::SeqCst);
        let available = self.queue.avail_ring();
        let wanted = if self.queue.event_idx_enabled() {
            let event = self.load(available + 4 + u64::from(self.queue.size()) * 2)?;
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            u32::from(self.load(available)?) & VRING_AVAIL_F_NO_INTERRUPT == 0
        };
        if wanted {
            self.interrupt.queue_used(self.index);
        }
        Ok(())
    }

    fn load(&self, address: u64) -> Result<u16, QueueError> {
        let loaded = self.memory.load(GuestAddress(address), Ordering::Relaxed);
        loaded
            .map(u16::from_le)
            .map_err(|error| self.rings(&virtio_queue::Error::GuestMemory(error)))
    }

    /// Asks the driver to ring for new requests, or not to. When asked to, says whether some came
    /// in between that it may not have rung for.
    ///
    /// # Errors
    /// When the rings cannot be written.
    pub fn want_kicks(&mut self, on: bool) -> Result<bool, QueueError> {
        let result = if on {
            self.queue.enable_notification(&self.memory)
        } else {
            self.queue
                .disable_notification(&self.memory)
                .map(|()| false)
        };
        result.map_err(|error| self.rings(&error))
    }

    /// Serves what is in the queue: `serve` is called for each request and says what was written,
    /// or `None` when it cannot be served now, in which case it stays in the queue. Ends when the
    /// queue is empty, or after as many requests as it holds, having rung itself. Returns whether
    /// it was emptied.
    ///
    /// # Errors
    /// Of the queue, and of `serve`.
    pub fn serve(
        &mut self,
        mut serve: impl FnMut(&GuestMemory, &mut Chain) -> Result<Option<u32>, QueueError>,
    ) -> Result<bool, QueueError> {
        self.serve_in_time(|memory, chain| {
            Ok(serve(memory, chain)?.map_or(Served::NotNow, Served::Done))
        })
    }

    /// As [`VirtQueue::serve`], for requests some of which are answered later.
    ///
    /// # Errors
    /// Of the queue, and of `serve`.
    pub fn serve_in_time(
        &mut self,
        mut serve: impl FnMut(&GuestMemory, &mut Chain) -> Result<Served, QueueError>,
    ) -> Result<bool, QueueError> {
        self.clear_kick();
        let memory = self.memory.clone();
        let mut left = self.size();
        let mut emptied = true;
        'rounds: loop {
            self.want_kicks(false)?;
            while let Some(mut chain) = self.pop()? {
                match serve(&memory, &mut chain)? {
                    Served::Done(written) => self.complete(chain.head, written)?,
                    Served::Taken => {}
                    Served::NotNow => {
                        self.unpop();
                        emptied = false;
                        break 'rounds;
                    }
                }
                left -= 1;
                if left == 0 {
                    self.kick_again();
                    break 'rounds;
                }
            }
            if !self.want_kicks(true)? {
                break;
            }
        }
        self.notify()?;
        Ok(emptied)
    }
}
