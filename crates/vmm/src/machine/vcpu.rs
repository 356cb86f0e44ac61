//! A thread per vCPU.

use std::{
    io,
    sync::{Arc, OnceLock},
    thread::{self, JoinHandle},
};

use cpu::{Exit, Vcpu};
use rustix::thread::CpuSet;

use super::Gate;
use crate::exit::StopReason;

/// What the thread of a vCPU does before it first runs guest code.
pub(super) type Prepare = Box<dyn FnOnce() -> io::Result<()> + Send>;

/// The thread of a vCPU.
pub(super) struct VcpuThread {
    handle: JoinHandle<()>,
    clock: Arc<OnceLock<libc::clockid_t>>,
}

impl VcpuThread {
    /// Starts it; it waits at the gate.
    pub(super) fn spawn(
        mut vcpu: Box<dyn Vcpu>,
        gate: Arc<Gate>,
        prepare: Prepare,
    ) -> io::Result<Self> {
        gate.add(vcpu.kicker());
        let clock = Arc::new(OnceLock::new());
        let own_clock = Arc::clone(&clock);
        let name = format!("vcpu{}", vcpu.index());
        let handle = thread::Builder::new().name(name).spawn(move || {
            let _told = StopIfPanicking(&gate);
            if let Some(id) = cpu_clock() {
                let _first = own_clock.set(id);
            }
            match prepare() {
                Ok(()) => run(&mut *vcpu, &gate),
                Err(error) => gate.stop(StopReason::error(&error)),
            }
        })?;
        Ok(Self { handle, clock })
    }

    /// Time of the host's processors that it has used.
    pub(super) fn cpu_time_ns(&self) -> u64 {
        let mut time = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let Some(clock) = self.clock.get() else {
            return 0;
        };
        // SAFETY: writes to a struct of ours; a clock of a thread that ended is refused.
        if unsafe { libc::clock_gettime(*clock, &raw mut time) } != 0 {
            return 0;
        }
        time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
    }

    /// Lets it run on these CPUs of the host only; on all of `every` if there are none.
    pub(super) fn pin(&self, cpus: &[u32]) -> io::Result<()> {
        use std::os::unix::thread::JoinHandleExt;
        let mut set = CpuSet::new();
        if cpus.is_empty() {
            (0..CpuSet::MAX_CPU).for_each(|cpu| set.set(cpu));
        }
        for &cpu in cpus.iter().filter(|&&it| (it as usize) < CpuSet::MAX_CPU) {
            set.set(cpu as usize);
        }
        let thread = self.handle.as_pthread_t();
        // SAFETY: the thread was not joined, since its handle is here; `CpuSet` is a `cpu_set_t`,
        // of which the size is given.
        let result = unsafe {
            libc::pthread_setaffinity_np(thread, size_of::<CpuSet>(), (&raw const set).cast())
        };
        match result {
            0 => Ok(()),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }

    /// Waits for its end, after [`Gate::stop`].
    pub(super) fn join(self) {
        // A panic was printed, and has stopped the machine.
        let _panicked = self.handle.join();
    }
}

/// A panic on a vCPU's thread ends the machine with a reason.
struct StopIfPanicking<'a>(&'a Gate);

impl Drop for StopIfPanicking<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.stop(StopReason::Error {
                message: "a mistake in berth-vmm: a vCPU's thread panicked".into(),
            });
        }
    }
}

fn run(vcpu: &mut dyn Vcpu, gate: &Gate) {
    while gate.enter() {
        let result = vcpu.run();
        gate.leave();
        match result {
            Ok(Exit::Kicked) => {}
            Ok(Exit::Shutdown) => gate.stop(StopReason::TripleFault),
            Err(error) => gate.stop(StopReason::error(&error)),
        }
    }
}

/// The clock that counts the calling thread's time.
fn cpu_clock() -> Option<libc::clockid_t> {
    let mut clock = 0;
    // SAFETY: asks about the calling thread, and writes to a variable of ours.
    let result = unsafe { libc::pthread_getcpuclockid(libc::pthread_self(), &raw mut clock) };
    (result == 0).then_some(clock)
}
