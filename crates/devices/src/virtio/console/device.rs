//! The device, and the handle the host steers it with.

use std::{
    collections::VecDeque,
    fmt,
    io::{self, Write},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{
    ConsoleState,
    config::{self, EMERGENCY_WRITE, FEATURES, QUEUES, RECEIVE, TRANSMIT},
    handler::ConsoleHandler,
};
use crate::{
    StateError, state,
    virtio::{
        ActivateError, Activation, ConfigNotifier, DeviceKind, Host, VirtQueue, VirtioDevice,
        Worker, read_config_bytes,
    },
};

/// Bytes of input kept for a guest that does not read.
const INPUT_BYTES: usize = 64 << 10;

/// What the worker of a console and its handle share.
pub(super) struct Shared {
    output: Mutex<Box<dyn Write + Send>>,
    terminal: Mutex<Terminal>,
    pub(super) typed: EventFd,
    notifier: ConfigNotifier,
}

struct Terminal {
    input: VecDeque<u8>,
    columns: u16,
    rows: u16,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

impl Shared {
    fn terminal(&self) -> MutexGuard<'_, Terminal> {
        self.terminal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Output of the guest.
    pub(super) fn print(&self, bytes: &[u8]) {
        let mut output = self.output.lock().unwrap_or_else(PoisonError::into_inner);
        // Nobody to tell: a console whose reader is gone goes on, as a real one does.
        let _ = output.write_all(bytes).and_then(|()| output.flush());
    }

    /// Takes input, at most `most` bytes.
    pub(super) fn take_input(&self, most: usize) -> Vec<u8> {
        let mut terminal = self.terminal();
        let bytes = terminal.input.len().min(most);
        terminal.input.drain(..bytes).collect()
    }

    /// Whether there is input.
    pub(super) fn has_input(&self) -> bool {
        !self.terminal().input.is_empty()
    }
}

/// A console.
pub struct Console {
    shared: Arc<Shared>,
    worker: Worker<ConsoleHandler>,
}

/// How the host steers a console while it is in use.
#[derive(Debug, Clone)]
pub struct ConsoleControl(Arc<Shared>);

impl Console {
    /// A console that prints to `output`, which must take what it gets without waiting for people;
    /// its errors are ignored. The thread is started here.
    ///
    /// # Errors
    /// When the host gives no thread.
    pub fn new(output: Box<dyn Write + Send>, host: &Host) -> io::Result<Self> {
        Ok(Self {
            shared: Arc::new(Shared {
                output: Mutex::new(output),
                terminal: Mutex::new(Terminal {
                    input: VecDeque::new(),
                    columns: 80,
                    rows: 24,
                }),
                typed: EventFd::new(EFD_NONBLOCK)?,
                notifier: ConfigNotifier::default(),
            }),
            worker: Worker::spawn("console", host)?,
        })
    }

    /// The handle to steer it with.
    #[must_use]
    pub fn control(&self) -> ConsoleControl {
        ConsoleControl(Arc::clone(&self.shared))
    }
}

impl ConsoleControl {
    /// Types `bytes`. Says how many were taken: fewer when the guest does not read.
    #[must_use]
    pub fn input(&self, bytes: &[u8]) -> usize {
        let mut terminal = self.0.terminal();
        let taken = bytes
            .len()
            .min(INPUT_BYTES.saturating_sub(terminal.input.len()));
        terminal.input.extend(&bytes[..taken]);
        drop(terminal);
        // Fails only when the counter is full: then it rings already.
        let _ = self.0.typed.write(1);
        taken
    }

    /// Tells the guest the size of its terminal.
    pub fn resize(&self, columns: u16, rows: u16) {
        let mut terminal = self.0.terminal();
        (terminal.columns, terminal.rows) = (columns, rows);
        drop(terminal);
        self.0.notifier.config_changed();
    }
}

impl VirtioDevice for Console {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Console
    }

    fn features(&self) -> u64 {
        FEATURES
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let terminal = self.shared.terminal();
        let space = config::space(terminal.columns, terminal.rows);
        read_config_bytes(&space, offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        if offset == EMERGENCY_WRITE {
            self.shared.print(&data[..1]);
        }
    }

    fn activate(&mut self, mut activation: Activation) -> Result<(), ActivateError> {
        let (receive, transmit) = (activation.take(RECEIVE), activation.take(TRANSMIT));
        self.shared
            .notifier
            .set(Some(Arc::clone(&activation.interrupt)));
        self.worker.start(ConsoleHandler {
            receive,
            transmit,
            shared: Arc::clone(&self.shared),
            interrupt: activation.interrupt,
        })
    }

    fn deactivate(&mut self) -> Vec<VirtQueue> {
        self.shared.notifier.set(None);
        let Some(handler) = self.worker.stop() else {
            return Vec::new();
        };
        handler
            .receive
            .into_iter()
            .chain(handler.transmit)
            .collect()
    }

    fn save(&self) -> Result<Vec<u8>, StateError> {
        let terminal = self.shared.terminal();
        let saved = ConsoleState {
            input: terminal.input.iter().copied().collect(),
            columns: terminal.columns,
            rows: terminal.rows,
        };
        state::encode("virtio-console", &saved)
    }

    fn restore(&mut self, bytes: &[u8]) -> Result<(), StateError> {
        let saved: ConsoleState = state::decode("virtio-console", bytes)?;
        let mut terminal = self.shared.terminal();
        terminal.input = saved.input.into_iter().take(INPUT_BYTES).collect();
        (terminal.columns, terminal.rows) = (saved.columns, saved.rows);
        Ok(())
    }
}
