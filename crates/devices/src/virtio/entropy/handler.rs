//! Fills what the guest gives it.

use std::{io, sync::Arc};

use rustix::event::epoll::EventFlags;

use crate::virtio::{Events, Handler, Interrupt, QueueError, VirtQueue, fd};

/// Bytes given for one request; who wants more asks again.
const REQUEST_BYTES: u64 = 4096;

#[derive(Debug)]
pub(super) struct EntropyHandler {
    pub(super) queue: VirtQueue,
    pub(super) interrupt: Arc<dyn Interrupt>,
}

impl EntropyHandler {
    fn serve(&mut self) -> Result<(), QueueError> {
        let queue = self.queue.index();
        let served = self.queue.serve(|memory, chain| {
            let mut random = [0; REQUEST_BYTES as usize];
            let bytes = chain.writable.bytes().min(REQUEST_BYTES) as usize;
            fill(&mut random[..bytes]).map_err(|source| QueueError::Host {
                queue,
                what: "get random bytes",
                source,
            })?;
            let written = chain.writable.write(memory, &random[..bytes]);
            Ok(Some(written.map_or(0, |()| bytes as u32)))
        });
        served.map(drop)
    }
}

fn fill(random: &mut [u8]) -> io::Result<()> {
    let mut done = 0;
    while done < random.len() {
        let rest = &mut random[done..];
        // SAFETY: writes at most the length of a slice of ours.
        let got = unsafe { libc::getrandom(rest.as_mut_ptr().cast(), rest.len(), 0) };
        if got < 0 {
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        } else {
            done += got.unsigned_abs();
        }
    }
    Ok(())
}

impl Handler for EntropyHandler {
    fn start(&mut self, events: &mut Events) -> Result<(), QueueError> {
        let watched = events.watch(fd(self.queue.kick()), 0, EventFlags::IN);
        watched.map_err(|source| self.queue.unwatched(source))?;
        self.serve()
    }

    fn ready(&mut self, _: u64, _: EventFlags, _: &mut Events) -> Result<(), QueueError> {
        self.serve()
    }

    fn interrupt(&self) -> &dyn Interrupt {
        &*self.interrupt
    }
}
