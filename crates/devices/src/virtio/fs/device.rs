//! The device.

use std::{io, sync::Arc};

use super::{
    Folder, FsControl, FsState,
    config::{self, MAX_TAG, QUEUES},
    handler::FsHandler,
    rates::Rates,
};
use crate::virtio::{
    ActivateError, Activation, DeviceKind, Host, VirtQueue, VirtioDevice, Worker, read_config_bytes,
};
use crate::{StateError, state};

/// What it is called in errors.
const NAME: &str = "virtio-fs";

/// A folder of the host.
pub struct Fs {
    tag: String,
    /// While the worker does not have it.
    folder: Option<Folder>,
    rates: Arc<Rates>,
    worker: Worker<FsHandler>,
}

impl Fs {
    /// What names of threads begin with: they need other rights than those of other devices.
    pub const THREAD: &str = "share-";

    /// Shows `folder` under a name of 1 to 36 bytes, by which the guest mounts it, without limits. Its
    /// thread is started here.
    ///
    /// # Errors
    /// When the host gives no thread, or the name is none.
    pub fn new(tag: &str, folder: Folder, host: &Host) -> io::Result<Self> {
        if tag.is_empty() || tag.len() > MAX_TAG || tag.contains('\0') {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Ok(Self {
            tag: tag.to_owned(),
            folder: Some(folder),
            rates: Arc::new(Rates::unlimited()),
            worker: Worker::spawn(&format!("{}{tag}", Self::THREAD), host)?,
        })
    }

    /// The handle to steer it with.
    #[must_use]
    pub fn control(&self) -> FsControl {
        FsControl::new(&self.rates)
    }
}

impl VirtioDevice for Fs {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Fs
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(&config::space(&self.tag), offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let folder = self.folder.take().ok_or(ActivateError::Worker)?;
        let rates = Arc::clone(&self.rates);
        let handler = FsHandler::new(activation.queues, folder, rates, activation.interrupt);
        self.worker.start(handler)
    }

    fn deactivate(&mut self) -> Vec<VirtQueue> {
        let Some(handler) = self.worker.stop() else {
            return Vec::new();
        };
        self.folder = Some(handler.folder);
        handler.queues
    }

    fn reset(&mut self) {
        if let Some(folder) = &mut self.folder {
            folder.forget_all();
        }
    }

    fn save(&self) -> Result<Vec<u8>, StateError> {
        let saved = self.folder.as_ref().ok_or(StateError::Mismatch {
            device: NAME,
            reason: "it is in use".to_owned(),
        })?;
        state::encode(NAME, &saved.state())
    }

    fn restore(&mut self, bytes: &[u8]) -> Result<(), StateError> {
        let saved: FsState = state::decode(NAME, bytes)?;
        if let Some(folder) = &mut self.folder {
            folder.set_state(saved);
        }
        Ok(())
    }
}
