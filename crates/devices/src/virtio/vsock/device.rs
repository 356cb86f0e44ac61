//! The device.

use std::{io, os::unix::net::UnixListener};

use super::{Dial, handler::VsockHandler, mux::Mux};
use crate::{
    StateError,
    virtio::{
        ActivateError, Activation, DeviceKind, Host, VirtQueue, VirtioDevice, Worker,
        read_config_bytes,
    },
};

/// Entries of the queues: to the guest, from the guest, events.
const QUEUES: [u16; 3] = [128, 128, 64];

/// How a guest is reached.
pub struct VsockOptions {
    /// The guest's address, 3 or more.
    pub guest_cid: u64,
    /// Where programs of the host connect to.
    pub listener: Option<UnixListener>,
    /// How the guest's connections reach programs of the host.
    pub dial: Box<dyn Dial>,
}

/// Sockets between guest and host. Connections live as long as the device is not reset; they outlive
/// a pause, not a restore.
pub struct Vsock {
    guest_cid: u64,
    worker: Worker<VsockHandler>,
    /// While the worker does not have it.
    mux: Option<Mux>,
    tell_reset: bool,
}

impl Vsock {
    /// A device; its thread is started here.
    ///
    /// # Errors
    /// When the host gives no thread.
    pub fn new(options: VsockOptions, host: &Host) -> io::Result<Self> {
        let mux = Mux::new(options.guest_cid, options.listener, options.dial)?;
        Ok(Self {
            guest_cid: options.guest_cid,
            worker: Worker::spawn("vsock", host)?,
            mux: Some(mux),
            tell_reset: false,
        })
    }
}

impl VirtioDevice for Vsock {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Vsock
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(&self.guest_cid.to_le_bytes(), offset, data);
    }

    fn activate(&mut self, mut activation: Activation) -> Result<(), ActivateError> {
        let mux = self.mux.take().ok_or(ActivateError::Worker)?;
        self.worker.start(VsockHandler {
            receive: activation.take(0),
            transmit: activation.take(1),
            event: activation.take(2),
            mux,
            tell_reset: self.tell_reset,
            interrupt: activation.interrupt,
        })
    }

    fn deactivate(&mut self) -> Vec<VirtQueue> {
        let Some(handler) = self.worker.stop() else {
            return Vec::new();
        };
        self.mux = Some(handler.mux);
        self.tell_reset = handler.tell_reset;
        let queues = [handler.receive, handler.transmit, handler.event];
        queues.into_iter().flatten().collect()
    }

    fn reset(&mut self) {
        self.tell_reset = false;
        if let Some(mux) = &mut self.mux {
            mux.forget_all();
        }
    }

    /// What the guest believes to be connected is not: it is told so.
    fn restore(&mut self, _state: &[u8]) -> Result<(), StateError> {
        self.reset();
        self.tell_reset = true;
        Ok(())
    }
}
