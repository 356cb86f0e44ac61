//! The PCI function: its registers, and what writing them does.

use std::{
    io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU8, AtomicU16, Ordering},
    },
};

use memory::GuestMemory;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{
    TransportState,
    common::{Common, EVENT_IDX, Effect},
    place,
    shared::{ACKNOWLEDGE, DRIVER_OK, FEATURES_OK, NEEDS_RESET, NO_VECTOR, Shared, chain},
};
use crate::{
    Interrupts, StateError,
    pci::{BarKind, ConfigSpace, Identity, MsixPlace, MsixTable, PciFunction, Window},
    state,
    virtio::{Activation, Host, Interrupt, VirtQueue, VirtioDevice},
};

/// Vendor of all virtio devices (4.1.2).
const VENDOR: u16 = 0x1af4;
/// A modern device has this plus its virtio number.
const DEVICE_BASE: u16 = 0x1040;
/// Vendor-specific capability.
const CAPABILITY_VENDOR: u8 = 0x09;

/// A virtio device as a PCI function.
///
/// Whoever builds the machine keeps it beside the bus, for [`VirtioPci::pause`] and
/// [`VirtioPci::resume`].
pub struct VirtioPci {
    shared: Arc<Shared>,
    memory: GuestMemory,
    kicks: Vec<EventFd>,
    config: Mutex<Config>,
    inner: Mutex<Inner>,
}

struct Config {
    space: ConfigSpace,
    msix: u16,
    /// Offset of the capability that gives access to the BAR through configuration space (4.1.4.9).
    access: u16,
}

struct Inner {
    device: Box<dyn VirtioDevice>,
    common: Common,
    /// The device has the queues.
    active: bool,
}

impl VirtioPci {
    /// A function for `device`, which people call `label`.
    ///
    /// # Errors
    /// When the host gives no eventfd.
    pub fn new(
        label: &str,
        device: Box<dyn VirtioDevice>,
        memory: GuestMemory,
        interrupts: Arc<dyn Interrupts>,
        host: Host,
    ) -> io::Result<Self> {
        let sizes = device.queue_sizes().to_vec();
        let kicks = sizes
            .iter()
            .map(|_| EventFd::new(EFD_NONBLOCK))
            .collect::<io::Result<Vec<_>>>()?;
        let msix = MsixTable::new(sizes.len() as u16 + 1, interrupts);
        let kind = device.kind();
        let config = config_space(kind.number(), kind.pci_class(), &msix);
        let shared = Shared {
            kind,
            label: label.to_owned(),
            host,
            msix,
            status: AtomicU8::new(0),
            cause: AtomicU8::new(0),
            generation: AtomicU8::new(0),
            config_vector: AtomicU16::new(NO_VECTOR),
            queue_vectors: sizes.iter().map(|_| AtomicU16::new(NO_VECTOR)).collect(),
        };
        Ok(Self {
            shared: Arc::new(shared),
            memory,
            kicks,
            config: Mutex::new(config),
            inner: Mutex::new(Inner {
                common: Common::new(device.features(), &sizes),
                device,
                active: false,
            }),
        })
    }

    fn config(&self) -> MutexGuard<'_, Config> {
        self.config.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The doorbells: offset in the BAR and the eventfd that a store there rings, for hypervisors
    /// that ring them without our help.
    pub fn doorbells(&self) -> impl Iterator<Item = (u64, &EventFd)> {
        let bells = self.kicks.iter().enumerate();
        bells.map(|(index, kick)| (place::NOTIFY + index as u64 * place::NOTIFY_STEP, kick))
    }

    /// Holds the device still: when this returns nothing of it touches guest memory or its backend.
    pub fn pause(&self) {
        self.inner().quiesce();
    }

    /// Lets a device go on that was paused or restored. Without effect on one that serves, or whose
    /// driver is not ready.
    pub fn resume(&self) {
        self.activate(&mut self.inner());
    }

    /// The driver wrote the status register.
    fn set_status(&self, inner: &mut Inner, value: u8) {
        let before = self.shared.status();
        if value == 0 {
            inner.quiesce();
            inner.device.reset();
            inner.common.reset();
            self.shared.reset();
            return;
        }
        // Bits are only ever added (2.1.1); what the device set, it alone takes back.
        let mut status = before | value & !NEEDS_RESET;
        if status & FEATURES_OK != 0 && before & FEATURES_OK == 0 && !inner.common.features_fit() {
            status &= !FEATURES_OK;
        }
        if status & (ACKNOWLEDGE | FEATURES_OK) != ACKNOWLEDGE | FEATURES_OK {
            status &= !DRIVER_OK;
        }
        self.shared.status.fetch_or(status, Ordering::AcqRel);
        if status & DRIVER_OK != 0 && before & DRIVER_OK == 0 {
            self.activate(inner);
        }
    }

    /// Hands the queues to the device if the driver is ready and it has them not yet.
    fn activate(&self, inner: &mut Inner) {
        let status = self.shared.status();
        if inner.active || status & DRIVER_OK == 0 || status & NEEDS_RESET != 0 {
            return;
        }
        match self.activation(&inner.common) {
            Ok(activation) => match inner.device.activate(activation) {
                Ok(()) => inner.active = true,
                Err(error) => self.shared.fail(chain(&error)),
            },
            Err(reason) => self.shared.fail(reason),
        }
    }

    fn activation(&self, common: &Common) -> Result<Activation, String> {
        let features = common.driver_features;
        let interrupt: Arc<dyn Interrupt> = Arc::clone(&self.shared) as _;
        let mut queues = Vec::new();
        for (index, saved) in common.queues.iter().enumerate().filter(|it| it.1.ready) {
            let kick = self.kicks[index].try_clone();
            let queue = VirtQueue::new(
                index as u16,
                common.max_sizes[index],
                saved,
                features & EVENT_IDX != 0,
                self.memory.clone(),
                kick.map_err(|error| format!("a doorbell: {error}"))?,
                Arc::clone(&interrupt),
            );
            queues.push(queue.map_err(|error| chain(&error))?);
        }
        Ok(Activation {
            memory: self.memory.clone(),
            features,
            queues,
            interrupt,
        })
    }

    /// Where a load or store of configuration space at `offset` goes when it is one of the register
    /// that stands for the BAR (4.1.4.9): that register, where in the BAR, and how many bytes.
    /// Nothing is locked afterwards, as what happens there takes other locks first.
    fn indirect(&self, offset: u16) -> Option<(u16, u64, usize)> {
        let config = self.config();
        let register = config.access + 16;
        if offset & !3 != register {
            return None;
        }
        let bar = config.space.word(config.access + 4) as u8;
        let at = u64::from(config.space.dword(config.access + 8));
        let bytes = config.space.dword(config.access + 12);
        let allowed = bar == place::BAR && matches!(bytes, 1 | 2 | 4) && at < place::BAR_BYTES;
        allowed.then_some((register, at, bytes as usize))
    }
}

impl Inner {
    /// Takes the queues back and remembers where they are.
    fn quiesce(&mut self) {
        if !std::mem::take(&mut self.active) {
            return;
        }
        for queue in self.device.deactivate() {
            if let Some(slot) = self.common.queues.get_mut(usize::from(queue.index())) {
                *slot = queue.save();
            }
        }
    }
}

fn config_space(number: u16, class: u32, msix: &MsixTable) -> Config {
    let mut space = ConfigSpace::new(Identity {
        vendor: VENDOR,
        device: DEVICE_BASE + number,
        revision: 1,
        class,
        subsystem_vendor: VENDOR,
        subsystem: 0x40 + number,
    });
    space.add_bar(place::BAR, BarKind::Memory64, place::BAR_BYTES);
    let regions = [
        (1, place::COMMON, place::COMMON_BYTES),
        (3, place::ISR, place::ISR_BYTES),
        (4, place::DEVICE, place::DEVICE_BYTES),
    ];
    for (kind, offset, bytes) in regions {
        space.add_capability(
            CAPABILITY_VENDOR,
            &capability(kind, offset, bytes, &[]),
            &[],
        );
    }
    let step = (place::NOTIFY_STEP as u32).to_le_bytes();
    let notify = capability(2, place::NOTIFY, place::NOTIFY_BYTES, &step);
    space.add_capability(CAPABILITY_VENDOR, &notify, &[]);
    let access = capability(5, 0, 0, &[0; 4]);
    let mut writable = [0xff; 18];
    // Length and type of the capability, the id and padding.
    writable[..2].fill(0);
    writable[3..6].fill(0);
    let access = space.add_capability(CAPABILITY_VENDOR, &access, &writable);
    let msix = msix.add_capability(
        &mut space,
        MsixPlace {
            table_bar: place::BAR,
            table_offset: place::MSIX_TABLE as u32,
            pending_bar: place::BAR,
            pending_offset: place::MSIX_PENDING as u32,
        },
    );
    Config {
        space,
        msix,
        access,
    }
}

/// `struct virtio_pci_cap` (4.1.4) without its first two bytes, and what follows it.
fn capability(kind: u8, offset: u64, bytes: u64, rest: &[u8]) -> Vec<u8> {
    let length = 16 + rest.len() as u8;
    let mut body = vec![length, kind, place::BAR, 0, 0, 0];
    body.extend_from_slice(&(offset as u32).to_le_bytes());
    body.extend_from_slice(&(bytes as u32).to_le_bytes());
    body.extend_from_slice(rest);
    body
}

impl PciFunction for VirtioPci {
    fn config_read(&self, offset: u16, data: &mut [u8]) {
        if let Some((register, at, bytes)) = self.indirect(offset) {
            let mut value = [0; 4];
            self.bar_read(place::BAR, at, &mut value[..bytes]);
            self.config().space.set(register, &value);
        }
        self.config().space.read(offset, data);
    }

    fn config_write(&self, offset: u16, data: &[u8]) {
        let mut config = self.config();
        config.space.write(offset, data);
        self.shared.msix.configure(&config.space, config.msix);
        drop(config);
        if let Some((register, at, bytes)) = self.indirect(offset) {
            let value = self.config().space.dword(register).to_le_bytes();
            self.bar_write(place::BAR, at, &value[..bytes]);
        }
    }

    fn windows(&self) -> Vec<Window> {
        self.config().space.windows()
    }

    fn bar_read(&self, _bar: u8, offset: u64, data: &mut [u8]) {
        data.fill(0);
        match offset {
            place::COMMON..place::ISR => {
                let image = self.inner().common.image(&self.shared);
                crate::virtio::read_config_bytes(&image, offset, data);
            }
            place::ISR => data[0] = self.shared.take_cause(),
            place::DEVICE..place::NOTIFY => {
                self.inner()
                    .device
                    .read_config(offset - place::DEVICE, data);
            }
            place::MSIX_TABLE..place::MSIX_PENDING => {
                self.shared
                    .msix
                    .read_table(offset - place::MSIX_TABLE, data);
            }
            place::MSIX_PENDING..place::BAR_BYTES => {
                self.shared
                    .msix
                    .read_pending(offset - place::MSIX_PENDING, data);
            }
            _ => {}
        }
    }

    fn bar_write(&self, _bar: u8, offset: u64, data: &[u8]) {
        match offset {
            place::COMMON..place::ISR => {
                let mut inner = self.inner();
                match inner.common.write(&self.shared, offset, data) {
                    Effect::None => {}
                    Effect::Status(value) => self.set_status(&mut inner, value),
                }
            }
            place::DEVICE..place::NOTIFY => {
                self.inner()
                    .device
                    .write_config(offset - place::DEVICE, data);
            }
            place::NOTIFY..place::MSIX_TABLE => {
                let queue = ((offset - place::NOTIFY) / place::NOTIFY_STEP) as usize;
                if let Some(kick) = self.kicks.get(queue) {
                    // Fails only when the counter is full: then it rings already.
                    let _ = kick.write(1);
                }
            }
            place::MSIX_TABLE..place::MSIX_PENDING => {
                self.shared
                    .msix
                    .write_table(offset - place::MSIX_TABLE, data);
            }
            _ => {}
        }
    }

    fn reset(&self) {
        self.set_status(&mut self.inner(), 0);
        let mut config = self.config();
        config.space.reset();
        self.shared.msix.reset();
        self.shared.msix.configure(&config.space, config.msix);
    }

    /// Pauses the device if it is not; [`VirtioPci::resume`] lets it go on.
    fn save(&self) -> Result<Vec<u8>, StateError> {
        let mut inner = self.inner();
        inner.quiesce();
        let shared = &self.shared;
        let vectors = shared
            .queue_vectors
            .iter()
            .map(|it| it.load(Ordering::Acquire));
        let saved = TransportState {
            device_number: shared.kind.number(),
            config: self.config().space.state(),
            msix: shared.msix.state(),
            status: shared.status(),
            cause: shared.cause.load(Ordering::Acquire),
            generation: shared.generation.load(Ordering::Acquire),
            device_feature_select: inner.common.device_feature_select,
            driver_feature_select: inner.common.driver_feature_select,
            driver_features: inner.common.driver_features,
            queue_select: inner.common.queue_select,
            config_vector: shared.config_vector.load(Ordering::Acquire),
            queues: inner.common.queues.iter().copied().zip(vectors).collect(),
            device: inner.device.save()?,
        };
        state::encode(shared.kind.name(), &saved)
    }

    /// The device holds still afterwards, until [`VirtioPci::resume`].
    fn restore(&self, bytes: &[u8]) -> Result<(), StateError> {
        let shared = &self.shared;
        let saved: TransportState = state::decode(shared.kind.name(), bytes)?;
        let mut inner = self.inner();
        let mismatch = |reason: &str| StateError::Mismatch {
            device: shared.kind.name(),
            reason: reason.to_owned(),
        };
        if saved.device_number != shared.kind.number() {
            return Err(mismatch("it is of another kind of device"));
        }
        if saved.queues.len() != inner.common.queues.len() {
            return Err(mismatch("it has another number of queues"));
        }
        if saved.driver_features & !inner.common.device_features != 0 {
            return Err(mismatch(
                "its driver uses features that are not offered here",
            ));
        }
        self.set_status(&mut inner, 0);
        inner.device.restore(&saved.device)?;
        let mut config = self.config();
        config.space.restore(&saved.config)?;
        shared.msix.restore(&saved.msix)?;
        inner.common.device_feature_select = saved.device_feature_select;
        inner.common.driver_feature_select = saved.driver_feature_select;
        inner.common.driver_features = saved.driver_features;
        inner.common.queue_select = saved.queue_select;
        let existing = |it: u16| {
            if it < shared.msix.vectors() {
                it
            } else {
                NO_VECTOR
            }
        };
        for (index, (queue, vector)) in saved.queues.iter().enumerate() {
            inner.common.queues[index] = *queue;
            shared.queue_vectors[index].store(existing(*vector), Ordering::Release);
        }
        shared
            .config_vector
            .store(existing(saved.config_vector), Ordering::Release);
        shared.generation.store(saved.generation, Ordering::Release);
        shared.cause.store(saved.cause, Ordering::Release);
        shared.status.store(saved.status, Ordering::Release);
        shared.msix.configure(&config.space, config.msix);
        Ok(())
    }
}
