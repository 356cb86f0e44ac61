//! The device.

use std::io;

use super::handler::EntropyHandler;
use crate::virtio::{ActivateError, Activation, DeviceKind, Host, VirtQueue, VirtioDevice, Worker};

/// Entries of its queue.
const QUEUES: [u16; 1] = [64];

/// A source of entropy.
pub struct Entropy {
    worker: Worker<EntropyHandler>,
}

impl Entropy {
    /// A source that gives what the host's kernel gives. Its thread is started here.
    ///
    /// # Errors
    /// When the host gives no thread.
    pub fn new(host: &Host) -> io::Result<Self> {
        Ok(Self {
            worker: Worker::spawn("entropy", host)?,
        })
    }
}

impl VirtioDevice for Entropy {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Entropy
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUES
    }

    fn read_config(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn activate(&mut self, mut activation: Activation) -> Result<(), ActivateError> {
        let Some(queue) = activation.take(0) else {
            return Ok(());
        };
        self.worker.start(EntropyHandler {
            queue,
            interrupt: activation.interrupt,
        })
    }

    fn deactivate(&mut self) -> Vec<VirtQueue> {
        self.worker.stop().map(|it| it.queue).into_iter().collect()
    }
}
