//! One boot of one machine: memory, devices, vCPUs, and the state they are in.
//!
//! ```text
//!            start            pause
//!  Created ────────► Running ◄──────► Paused
//!                       │     resume     │
//!                       └───────┬────────┘
//!                               ▼
//!                        Stopped(reason)    power-off, reset, triple fault, kill, error
//! ```
//! A machine that was reset is dropped and another is made in a new process (see
//! [`crate::process`]): nothing of the guest is left in it. Nothing here opens a file.

mod accel;
mod cpu_stats;
mod gate;
mod platform;
mod vcpu;
mod virtio;

use std::{io, os::unix::net::UnixListener, path::PathBuf, sync::Arc, time::Instant};

use cpu::{
    Backend, CpuError, Partition, Vcpu,
    soft::{Tier, translate::Counters},
};
use devices::{pci::PciError, serial::Serial, virtio::Host};
use memory::{Ram, RamError};

pub use accel::choose;
pub use gate::{Gate, OnStop, State};

use self::{platform::Platform, vcpu::VcpuThread, virtio::Virtio};
use crate::{
    VmConfig,
    boot::{self, Boot, BootError, Kernel, KernelError},
    bus::{BusBuilder, Overlap},
    console::Output,
    control::protocol::{CpuStats, Limits, Stats, VcpuStats},
    jail::ThreadKind,
    resources::Resources,
};

/// Why there is no machine.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// No memory.
    #[error("the machine's memory cannot be had")]
    Memory(#[from] RamError),
    /// No vCPUs.
    #[error("the machine's vCPUs cannot be had")]
    Cpu(#[from] CpuError),
    /// Nothing to boot.
    #[error("the kernel is none that can be booted")]
    Kernel(#[from] KernelError),
    /// It does not fit together.
    #[error("the machine cannot be booted")]
    Boot(#[from] BootError),
    /// A mistake of ours.
    #[error("the machine's bus cannot be built")]
    Bus(#[from] Overlap),
    /// Too many devices.
    #[error("the machine's PCI bus has no place for all devices")]
    Pci(#[from] PciError),
    /// The host has no more of something.
    #[error("{what}")]
    System {
        /// What was attempted.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

fn failed(what: &'static str) -> impl Fn(io::Error) -> MachineError {
    move |source| MachineError::System { what, source }
}

/// Called first on each thread a machine starts: installs the thread's filter. The thread does not
/// go on when it fails.
pub type Prepare = Arc<dyn Fn(ThreadKind) -> io::Result<()> + Send + Sync>;

/// What a machine is made of, beside its configuration.
pub struct Parts {
    /// Opened files.
    pub resources: Resources,
    /// How the software CPU runs code.
    pub tier: Tier,
    /// Where programs connect to the guest.
    pub vsock_listener: Option<UnixListener>,
    /// What the paths of sockets that the guest connects to begin with.
    pub vsock_prefix: PathBuf,
    /// Where the serial port's output goes.
    pub output: Output,
    /// What the vCPUs obey.
    pub gate: Arc<Gate>,
    /// What devices use.
    pub host: Host,
    /// For the vCPUs' threads.
    pub prepare: Prepare,
}

/// A machine.
pub struct Machine {
    gate: Arc<Gate>,
    threads: Vec<VcpuThread>,
    ram: Ram,
    platform: Platform,
    virtio: Virtio,
    partition: Arc<dyn Partition>,
    /// CPUs of the host for each vCPU, as last asked for.
    pinning: Vec<Vec<u32>>,
    started: Option<Instant>,
}

impl Machine {
    /// Builds a machine and puts its kernel into memory; no guest code runs before
    /// [`Machine::start`].
    ///
    /// # Errors
    /// When something cannot be had.
    pub fn new(config: &VmConfig, parts: Parts) -> Result<Self, MachineError> {
        let gate = parts.gate;
        let resources = parts.resources;
        let ram = Ram::new(config.memory_bytes)?;
        let mut bus = BusBuilder::default();
        let platform = Platform::new(&mut bus, &ram, config.vcpus, &gate, parts.output)?;
        // First, for it takes longest, and the clock is measured meanwhile.
        let entry = boot::load(
            &ram,
            &Boot {
                kernel: &Kernel::open(resources.kernel)?,
                initrd: &resources.initrd,
                command_line: &config.command_line,
                acpi: Some((&platform.acpi.bytes, platform.acpi.rsdp)),
            },
        )?;
        let partition = accel::partition(
            config,
            resources.kvm,
            parts.tier,
            &ram,
            Arc::new(bus.build()),
        )?;
        platform.interrupts.connect(Arc::clone(&partition));
        let slots = virtio::Slots {
            pci: &platform.pci,
            ram: &ram,
            interrupts: Arc::clone(&platform.interrupts) as _,
            host: parts.host,
        };
        let files = (resources.disks, resources.ports, resources.shares);
        let vsock = (parts.vsock_listener, parts.vsock_prefix.as_path());
        let virtio = virtio::build(&slots, config, files, vsock)?;

        platform
            .identify(&ram)
            .map_err(failed("give the machine an identity"))?;
        let mut vcpus = Vec::new();
        for index in 0..config.vcpus {
            vcpus.push(partition.create_vcpu(index)?);
        }
        vcpus[0].set_state(&entry.state())?;
        let threads = spawn(vcpus, &gate, &parts.prepare)?;
        let mut machine = Self {
            gate,
            threads,
            ram,
            platform,
            virtio,
            partition,
            pinning: Vec::new(),
            started: None,
        };
        machine
            .pin(&config.pinning)
            .map_err(failed("pin vCPUs to CPUs of the host"))?;
        Ok(machine)
    }

    /// Runs guest code, for the first time.
    pub fn start(&mut self) {
        self.started = Some(Instant::now());
        self.gate.run();
    }

    /// Holds vCPUs and devices; on return nothing touches guest memory.
    pub fn pause(&self) {
        self.gate.pause();
        self.virtio.pause();
    }

    /// Lets them go on.
    pub fn resume(&self) {
        self.virtio.resume();
        self.gate.run();
    }

    /// Presses the power button.
    pub fn press_power_button(&self) {
        self.platform.power.press_power_button();
    }

    /// The serial port, for what is typed.
    #[must_use]
    pub fn serial(&self) -> Arc<Serial> {
        Arc::clone(&self.platform.serial)
    }

    /// What executes its vCPUs.
    #[must_use]
    pub fn backend(&self) -> Backend {
        self.partition.backend()
    }

    /// When it was started.
    #[must_use]
    pub fn started(&self) -> Option<Instant> {
        self.started
    }

    /// What it has used so far.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let vcpus = self.threads.iter().map(|it| VcpuStats {
            cpu_time_ns: it.cpu_time_ns(),
        });
        // Blocks of a memory file are of 512 bytes, as of any file.
        let resident = rustix::fs::fstat(&**self.ram.file())
            .map_or(0, |stat| u64::try_from(stat.st_blocks).unwrap_or(0) * 512);
        Stats {
            vcpus: vcpus.collect(),
            cpu_time_ns: process_time_ns(),
            instructions: self.partition.instructions(),
            memory_resident_bytes: resident,
            balloon_bytes: self.virtio.balloon().map(|it| it.actual()),
        }
    }

    /// What the software CPU did so far; `None` where the hardware executes the vCPUs.
    #[must_use]
    pub fn cpu_stats(&self) -> Option<CpuStats> {
        self.partition.counters().map(|it| cpu_stats::of(&it))
    }

    /// Changes limits; what cannot be changed is told, the rest is.
    ///
    /// # Errors
    /// With the names of devices that there are not, or why vCPUs cannot be pinned.
    pub fn set_limits(&mut self, limits: &Limits) -> Result<(), String> {
        let mut missing = Vec::new();
        let disks = limits.disks.iter().filter(|it| !self.virtio.limit_disk(it));
        missing.extend(disks.map(|it| format!("there is no disk {:?}", it.id)));
        let shares = limits.shares.iter();
        let shares = shares.filter(|it| !self.virtio.limit_share(it));
        missing.extend(shares.map(|it| format!("there is no folder {:?}", it.id)));
        let nets = limits.nets.iter().filter(|it| !self.virtio.limit_net(it));
        missing.extend(nets.map(|it| format!("there is no network card {:?}", it.id)));
        match (limits.balloon_bytes, self.virtio.balloon()) {
            (Some(bytes), Some(balloon)) => balloon.set_target(bytes),
            (Some(_), None) => missing.push("the machine has no balloon".into()),
            (None, _) => {}
        }
        if let Some(Err(error)) = limits.pinning.as_ref().map(|it| self.pin(it)) {
            missing.push(format!("the vCPUs cannot be pinned: {error}"));
        }
        if missing.is_empty() {
            return Ok(());
        }
        Err(missing.join("; "))
    }

    /// The limits now, for another boot.
    #[must_use]
    pub fn limits(&self) -> Limits {
        Limits {
            disks: self.virtio.disk_limits(),
            shares: self.virtio.share_limits(),
            nets: self.virtio.net_limits(),
            pinning: Some(self.pinning.clone()),
            balloon_bytes: None,
        }
    }

    /// A vCPU that is not named runs where it likes.
    fn pin(&mut self, cpus: &[Vec<u32>]) -> io::Result<()> {
        let anywhere = Vec::new();
        let each = cpus.iter().chain(std::iter::repeat(&anywhere));
        for (thread, cpus) in self.threads.iter().zip(each) {
            // Most were never pinned, and need not be let go.
            if !(cpus.is_empty() && self.pinning.is_empty()) {
                thread.pin(cpus)?;
            }
        }
        self.pinning = cpus.to_vec();
        Ok(())
    }

    /// Waits for the ends of the vCPUs' threads, after [`Gate::stop`]. Returns what the software CPU
    /// did, over all vCPUs.
    pub fn join(self) -> Option<Counters> {
        self.virtio.pause();
        for thread in self.threads {
            thread.join();
        }
        self.partition.counters().map(|it| cpu_stats::sum(&it))
    }
}

fn spawn(
    vcpus: Vec<Box<dyn Vcpu>>,
    gate: &Arc<Gate>,
    prepare: &Prepare,
) -> Result<Vec<VcpuThread>, MachineError> {
    let threads = vcpus.into_iter().map(|vcpu| {
        let prepare = Arc::clone(prepare);
        let first = Box::new(move || prepare(ThreadKind::Vcpu));
        VcpuThread::spawn(vcpu, Arc::clone(gate), first)
    });
    let threads = threads.collect::<io::Result<_>>();
    threads.map_err(failed("start the threads of the vCPUs"))
}

/// Time of the host's processors that the process has used.
fn process_time_ns() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000_000
        + u64::try_from(time.tv_nsec).unwrap_or(0)
}
