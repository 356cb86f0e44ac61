//! The machine's own process: one boot, from opening files to the reason why it stopped.

use std::{
    fs::File,
    io::{self, Write},
    os::{
        fd::BorrowedFd,
        unix::net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use cpu::{Backend, soft::Tier};
use devices::virtio::{
    DeviceEvent, Host,
    fs::{Fs, keep_capabilities},
};
use serde::{Deserialize, Serialize};

use super::{footprint, supervisor};
use crate::{
    VmConfig,
    console::{Console, Output},
    control::{
        Commands, Event, Events, Reply, Request,
        protocol::{Limits, RunState, Status},
        serve,
    },
    exit::StopReason,
    jail::{Filters, Jail, JailError, ThreadKind, drop_capabilities},
    machine::{Gate, Machine, MachineError, Parts, Prepare, State},
    resources::{Listeners, ResourceError, Resources},
};

/// How a machine is run, beside its configuration.
pub struct Options {
    /// What executes the vCPUs.
    pub backend: Backend,
    /// Whether the process locks itself up.
    pub jail: bool,
    /// Who is at the console from the start.
    pub attached: Option<UnixStream>,
    /// How often it was booted, 1 for the first time.
    pub boots: u32,
    /// When the process was started; what is measured counts from here.
    pub since: Instant,
    /// Whether to say on standard error what happens.
    pub verbose: bool,
    /// How the software CPU runs code.
    pub tier: Tier,
    /// A pipe to the supervisor, with whom the process ends.
    pub supervisor: Option<File>,
}

/// How a boot of a machine is over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// Why.
    pub reason: StopReason,
    /// The limits it had then, for another boot; none where they are not known.
    pub limits: Limits,
}

impl From<StopReason> for Ended {
    fn from(reason: StopReason) -> Self {
        let limits = Limits::default();
        Self { reason, limits }
    }
}

/// Why a machine could not be run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Something it needs is not there.
    #[error("the machine cannot be started")]
    Resource(#[from] ResourceError),
    /// It is not safe to run.
    #[error("the machine is not started: its process cannot be locked up")]
    Jail(#[from] JailError),
    /// It cannot be built.
    #[error("the machine cannot be started")]
    Machine(#[from] MachineError),
    /// The host has no more of something.
    #[error("{what}")]
    System {
        /// What was attempted.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

fn failed(what: &'static str) -> impl Fn(io::Error) -> RunError {
    move |source| RunError::System { what, source }
}

/// Runs one boot of a machine, on the only thread of this process, to its end.
///
/// # Errors
/// When it could not be started.
pub fn run(config: &VmConfig, listeners: &Listeners, options: Options) -> Result<Ended, RunError> {
    footprint::keep_small();
    let mut resources = Resources::open(config, options.backend, options.jail)?;
    let sockets = config.vsock.as_ref().and_then(|it| it.socket.parent());
    let filters = match options.jail {
        true => Some(Filters::new(options.backend).map_err(io::Error::other)),
        false => None,
    };
    let filters = filters.transpose().map_err(failed("make filters"))?;
    if options.jail {
        let own = |(folder, read_only): (BorrowedFd<'_>, bool)| {
            Ok((folder.try_clone_to_owned()?, read_only))
        };
        let shares = resources.shares.folders().map(own);
        let shares = shares.collect::<io::Result<_>>();
        let jail = Jail {
            user: config.jail,
            sockets: sockets.map(Path::to_owned),
            shares: shares.map_err(failed("copy a descriptor"))?,
        };
        jail.enter()?;
    } else if !resources.shares.is_empty() {
        // Who may not can make files for one user only.
        let _ = keep_capabilities();
    }
    if !resources.shares.is_empty() {
        // The guest's kernel has applied its own.
        rustix::process::umask(rustix::fs::Mode::empty());
    }
    if let Some(supervisor) = &options.supervisor {
        supervisor::die_with(supervisor).map_err(failed("follow the supervisor"))?;
    }
    let prepare: Prepare = Arc::new(move |kind| match &filters {
        Some(filters) => {
            if kind != ThreadKind::Share {
                drop_capabilities()?;
            }
            filters.install(kind)
        }
        None => Ok(()),
    });

    let (events, source) = Events::new().map_err(failed("make an eventfd"))?;
    let events = Arc::new(events);
    let stopped = Arc::clone(&events);
    let gate = Arc::new(Gate::new(Box::new(move |reason| {
        let reason = reason.clone();
        stopped.send(Event::Stopped { reason });
    })));
    let output = Output::new().map_err(failed("make an eventfd"))?;
    let clone = |it: &Option<UnixListener>| it.as_ref().map(UnixListener::try_clone).transpose();
    let log = resources.log.take();
    let parts = Parts {
        tier: options.tier,
        resources,
        vsock_listener: clone(&listeners.vsock).map_err(failed("copy a socket"))?,
        vsock_prefix: vsock_prefix(config, options.jail),
        output: output.clone(),
        gate: Arc::clone(&gate),
        host: host(&prepare, &events),
        prepare: Arc::clone(&prepare),
    };
    let machine = Machine::new(config, parts)?;
    let serial = machine.serial();
    let console = Console {
        output,
        input: Box::new(move |typed| serial.input(typed)),
        log,
        listener: clone(&listeners.console).map_err(failed("copy a socket"))?,
        attached: options.attached.into_iter().collect(),
    };
    let on_console = Arc::clone(&prepare);
    let console = console
        .spawn(move || must(on_console(ThreadKind::Console)))
        .map_err(failed("start the console"))?;
    prepare(ThreadKind::Control).map_err(failed("install a filter"))?;

    let mut running = Running {
        name: config.name.clone(),
        vcpus: config.vcpus,
        memory_bytes: config.memory_bytes,
        boots: options.boots,
        machine,
        gate,
        events,
    };
    if options.verbose {
        let elapsed = options.since.elapsed();
        let mut out = io::stderr().lock();
        let _lost = writeln!(
            out,
            "berth-vmm: first guest instruction after {elapsed:.1?}, {:.1?} of the processors",
            Duration::from_nanos(running.machine.stats().cpu_time_ns)
        );
    }
    footprint::trim();
    running.machine.start();
    serve(listeners.control.as_ref(), &source, &mut running);
    let reason = running.gate.wait();
    let limits = running.machine.limits();
    let counters = running.machine.join();
    console.finish();
    if options.verbose
        && let Some(counters) = counters
    {
        let mut out = io::stderr().lock();
        let _lost = writeln!(out, "berth-vmm: {counters:#?}");
    }
    Ok(Ended { reason, limits })
}

/// A thread whose filter cannot be installed must not run.
fn must(installed: io::Result<()>) {
    installed.expect("a filter that was installed on one thread can be on another");
}

fn host(prepare: &Prepare, events: &Arc<Events>) -> Host {
    let (prepare, events) = (Arc::clone(prepare), Arc::clone(events));
    Host {
        thread_started: Arc::new(move |name| {
            must(prepare(match name {
                "vsock" => ThreadKind::Vsock,
                share if share.starts_with(Fs::THREAD) => ThreadKind::Share,
                _ => ThreadKind::Device,
            }));
        }),
        event: Arc::new(move |event| {
            events.send(Event::Device {
                message: describe(&event),
            });
        }),
    }
}

fn describe(event: &DeviceEvent) -> String {
    match event {
        DeviceEvent::NeedsReset { device, reason } => {
            format!("{device} stands still until the guest resets it: {reason}")
        }
        DeviceEvent::DiskFull { device } => {
            format!("the host has no room for what the guest writes to {device}; free some")
        }
        DeviceEvent::DiskFailed { device, reason } => format!("{device} failed: {reason}"),
        DeviceEvent::WorkerLost { device } => {
            format!("{device} stands still: a mistake in berth-vmm")
        }
    }
}

/// What names of sockets that the guest connects to begin with, seen from inside.
fn vsock_prefix(config: &VmConfig, jail: bool) -> PathBuf {
    let Some(vsock) = &config.vsock else {
        return PathBuf::new();
    };
    match vsock.socket.file_name() {
        Some(name) if jail => Path::new(Jail::SOCKETS).join(name),
        _ => vsock.socket.clone(),
    }
}

/// A machine that can be commanded.
struct Running {
    name: String,
    vcpus: u32,
    memory_bytes: u64,
    boots: u32,
    machine: Machine,
    gate: Arc<Gate>,
    events: Arc<Events>,
}

impl Running {
    fn state(&self) -> RunState {
        match self.gate.state() {
            State::Created => RunState::Created,
            State::Running => RunState::Running,
            State::Paused => RunState::Paused,
            State::Stopped(_) => RunState::Stopped,
        }
    }

    fn status(&self) -> Status {
        let uptime = self.machine.started().map(|it| it.elapsed());
        let uptime = uptime.unwrap_or_default().as_millis();
        Status {
            state: self.state(),
            accel: match self.machine.backend() {
                Backend::Kvm => "kvm".into(),
                Backend::Soft => "soft".into(),
            },
            vcpus: self.vcpus,
            memory_bytes: self.memory_bytes,
            boots: self.boots,
            uptime_ms: u64::try_from(uptime).unwrap_or(u64::MAX),
        }
    }

    /// Does something to the state, and tells who subscribed.
    fn change(&self, change: impl FnOnce()) -> Reply {
        let before = self.state();
        change();
        let state = self.state();
        if state != before && state != RunState::Stopped {
            self.events.send(Event::State { state });
        }
        Reply::Ok
    }
}

impl Commands for Running {
    fn name(&self) -> &str {
        &self.name
    }

    fn call(&mut self, request: &Request) -> Reply {
        let error = |message: String| Reply::Error { message };
        match request {
            Request::Status => Reply::Status(self.status()),
            Request::Stats => Reply::Stats(self.machine.stats()),
            Request::CpuStats => match self.machine.cpu_stats() {
                Some(stats) => Reply::CpuStats(stats),
                None => error(
                    "the processor executes the machine by KVM, and what it does is not counted; only \
                     the software CPU counts"
                        .into(),
                ),
            },
            Request::Pause => self.change(|| self.machine.pause()),
            Request::Resume => self.change(|| self.machine.resume()),
            Request::Stop if self.state() == RunState::Paused => {
                error("the machine is paused and cannot see its power button; resume it".into())
            }
            Request::Stop => {
                self.machine.press_power_button();
                Reply::Ok
            }
            Request::Reset => self.change(|| self.gate.stop(StopReason::Reset)),
            Request::Kill => self.change(|| self.gate.stop(StopReason::Killed)),
            Request::SetLimits(limits) => match self.machine.set_limits(limits) {
                Ok(()) => Reply::Ok,
                Err(message) => error(message),
            },
            Request::Hello { .. } | Request::Subscribe => error("it was said already".into()),
        }
    }
}
