//! Whether the hardware really executes guests: a small guest is run and timed.
//!
//! `/dev/kvm` that opens proves little. Where the kernel interprets guest code instead of letting the
//! processor run it, a guest is a hundred times slower than on our software CPU, and stops at the
//! first instruction the interpreter lacks. So the probe runs a loop, for its speed, and then the
//! instructions Linux cannot do without that such interpreters lack. `berth doctor` shows the
//! outcome; whoever chooses a backend keeps it for as long as the host runs.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{self, RecvTimeoutError},
    },
    time::{Duration, Instant},
};

use memory::Ram;
use serde::{Deserialize, Serialize};

use super::{KvmDevice, KvmPartition};
use crate::{Bus, CpuError, Exit, Partition, Vcpu, VcpuState, state::SegmentState};

/// How long the whole probe may take.
const PATIENCE: Duration = Duration::from_millis(400);
/// Slower than this is not the hardware.
const MIN_MIPS: f64 = 200.0;
/// Turns of the loop, of [`LOOP_INSTRUCTIONS`] each.
const TURNS: u32 = 2_000_000;
const LOOP_INSTRUCTIONS: u32 = 4;
/// Memory of the guest.
const RAM_BYTES: u64 = 1 << 20;
/// Where its page tables lie: three pages.
const TABLES: u64 = 0x1000;
/// Where its code lies.
const CODE: u64 = 0x8000;
/// Where it may write: 4 KiB, aligned for all it does.
const DATA: u64 = 0x9000;

/// Ports the guest tells by what it has reached.
const LOOP_BEGUN: u16 = 0x10;
const LOOP_DONE: u16 = 0x11;
const ALL_DONE: u16 = 0x12;

std::arch::global_asm!(
    ".pushsection .rodata.berth_probe, \"a\"",
    ".balign 16",
    ".globl berth_kvm_probe_start",
    "berth_kvm_probe_start:",
    "out {begun}, al",
    "mov ecx, {turns}",
    "2: add rax, rbx",
    "lea rbx, [rax + rcx]",
    "dec ecx",
    "jnz 2b",
    "out {done}, al",
    // What the kernel's own code uses from its first steps on.
    "mov edi, {data}",
    "movdqu xmm0, [rdi]",
    "paddd xmm0, xmm0",
    "movdqu [rdi + 16], xmm0",
    "xor eax, eax",
    "xor edx, edx",
    "lock cmpxchg16b [rdi]",
    "fxsave64 [rdi + 512]",
    "fxrstor64 [rdi + 512]",
    "rdtsc",
    "out {all}, al",
    "3: hlt",
    "jmp 3b",
    ".globl berth_kvm_probe_end",
    "berth_kvm_probe_end:",
    ".popsection",
    begun = const LOOP_BEGUN,
    done = const LOOP_DONE,
    all = const ALL_DONE,
    turns = const TURNS,
    data = const DATA,
);

unsafe extern "C" {
    static berth_kvm_probe_start: u8;
    static berth_kvm_probe_end: u8;
}

/// What a probe found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Probe {
    /// Whether guests can rely on it.
    pub usable: bool,
    /// Millions of guest instructions a second, where it came so far.
    pub mips: Option<f64>,
    /// Why it is not usable, for people.
    pub reason: Option<String>,
}

impl Probe {
    fn unusable(mips: Option<f64>, reason: impl Into<String>) -> Self {
        Self {
            usable: false,
            mips,
            reason: Some(reason.into()),
        }
    }
}

/// Runs the probe. Takes some milliseconds on hardware that works, never longer than half a second.
#[must_use]
pub fn run() -> Probe {
    let times = Arc::new(Times::default());
    let vcpu = match guest(&times) {
        Ok(vcpu) => vcpu,
        Err(error) => return Probe::unusable(None, chain(&error)),
    };
    let ended = execute(vcpu, &times);
    judge(&times, ended)
}

fn guest(times: &Arc<Times>) -> Result<Box<dyn Vcpu>, CpuError> {
    let ram = Ram::new(RAM_BYTES).map_err(|error| CpuError::System {
        what: "make the probe's memory",
        source: std::io::Error::other(error),
    })?;
    load(&ram);
    let device = KvmDevice::open()?;
    let cpuid = device.supported_cpuid()?;
    let bus = Arc::clone(times) as Arc<dyn Bus>;
    let partition = KvmPartition::new(device, &ram, bus, move |_| cpuid.clone())?;
    let mut vcpu = partition.create_vcpu(0)?;
    vcpu.set_state(&entry())?;
    Ok(vcpu)
}

/// The guest's memory: one page table entry of 2 MiB is enough, and its code.
fn load(ram: &Ram) {
    let word = |address: u64, value: u64| {
        let (host, _) = ram.host(address).expect("within the first MiB");
        // SAFETY: mapped, aligned, and no guest runs yet.
        unsafe { host.cast::<u64>().write(value) };
    };
    // Present, writable; the last one also a large page.
    word(TABLES, (TABLES + 0x1000) | 3);
    word(TABLES + 0x1000, (TABLES + 0x2000) | 3);
    word(TABLES + 0x2000, 0x83);
    let start = &raw const berth_kvm_probe_start;
    let length = (&raw const berth_kvm_probe_end) as usize - start as usize;
    let (code, _) = ram.host(CODE).expect("within the first MiB");
    // SAFETY: the code lies between the two symbols and is shorter than a page, which is mapped.
    unsafe { std::ptr::copy_nonoverlapping(start, code.as_ptr(), length.min(0x1000)) };
}

/// 64-bit mode, paging on, SSE on.
fn entry() -> VcpuState {
    let mut state = VcpuState::protected32(0, CODE, 0);
    let data = SegmentState::flat_data(0x18);
    let code = SegmentState::flat_code64(0x10);
    state.segments.registers = [data, code, data, data, data, data];
    state.control.cr0 = 0x8000_0033;
    state.control.cr3 = TABLES;
    // PAE, FXSAVE, SIMD exceptions.
    state.control.cr4 = 0x620;
    // Long mode, enabled and active.
    state.control.efer = 0x500;
    state
}

/// How the guest's run ended.
enum Ended {
    Done,
    TooLong,
    Broken(String),
}

fn execute(mut vcpu: Box<dyn Vcpu>, times: &Times) -> Ended {
    let kicker = vcpu.kicker();
    times.on_all_done(Arc::clone(&kicker));
    let (sender, finished) = mpsc::channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            if finished.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
                kicker.kick();
            }
        });
        let ended = vcpu.run();
        drop(sender);
        match ended {
            Ok(Exit::Kicked) if times.all_done() => Ended::Done,
            Ok(Exit::Kicked) => Ended::TooLong,
            Ok(Exit::Shutdown) => Ended::Broken("the guest shut down".to_owned()),
            Err(error) => Ended::Broken(chain(&error)),
        }
    })
}

fn judge(times: &Times, ended: Ended) -> Probe {
    let mips = times.loop_time().map(|time| {
        let instructions = f64::from(TURNS) * f64::from(LOOP_INSTRUCTIONS);
        instructions / time.as_secs_f64().max(1e-9) / 1e6
    });
    match (ended, mips) {
        (Ended::Broken(why), _) => Probe::unusable(mips, why),
        (Ended::TooLong, None) => {
            let reason = "guest code runs too slowly to be the processor's work: this /dev/kvm \
                          interprets it";
            Probe::unusable(None, reason)
        }
        (_, Some(speed)) if speed < MIN_MIPS => {
            let reason =
                format!("guest code runs at {speed:.0} MIPS, which is no processor's speed");
            Probe::unusable(mips, reason)
        }
        (Ended::TooLong, _) => Probe::unusable(mips, "the guest did not come to its end"),
        (Ended::Done, _) => Probe {
            usable: true,
            mips,
            reason: None,
        },
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |error| error.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

/// The bus of the guest: notes when it reached what.
#[derive(Default)]
struct Times {
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    begun: Option<Instant>,
    done: Option<Instant>,
    all: bool,
    kicker: Option<Arc<dyn crate::Kick>>,
}

impl Times {
    fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn on_all_done(&self, kicker: Arc<dyn crate::Kick>) {
        self.seen().kicker = Some(kicker);
    }

    fn all_done(&self) -> bool {
        self.seen().all
    }

    fn loop_time(&self) -> Option<Duration> {
        let seen = self.seen();
        Some(seen.done?.duration_since(seen.begun?))
    }
}

impl Bus for Times {
    fn port_read(&self, _port: u16, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn port_write(&self, port: u16, _data: &[u8]) {
        let mut seen = self.seen();
        match port {
            LOOP_BEGUN => seen.begun = Some(Instant::now()),
            LOOP_DONE => seen.done = Some(Instant::now()),
            ALL_DONE => {
                seen.all = true;
                if let Some(kicker) = seen.kicker.take() {
                    kicker.kick();
                }
            }
            _ => {}
        }
    }

    fn mmio_read(&self, _address: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn mmio_write(&self, _address: u64, _data: &[u8]) {}

    fn end_of_interrupt(&self, _vector: u8) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_comes_to_a_verdict_in_time() {
        let begun = Instant::now();
        let probe = run();
        assert!(begun.elapsed() < Duration::from_secs(20), "it hangs");
        assert_eq!(probe.usable, probe.reason.is_none(), "{probe:?}");
        if !probe.usable {
            eprintln!(
                "SKIP the hardware itself: {}",
                probe.reason.unwrap_or_default()
            );
        }
    }
}
