//! The guest as a whole: its end, its clock, signals to what it is for.

use std::{fs, io, path::Path, thread, time::Duration};

use rustix::{
    process::{Pid, Signal, kill_process},
    system::{RebootCommand, reboot},
    time::{ClockId, Timespec, clock_settime},
};

use super::application;
use crate::console::say;

/// Longest that programs are given between the two signals that end them, without an init to do it.
const MOST_GRACE: Duration = Duration::from_secs(10);
/// How long what was killed may take to let go of its files before they are written out.
const DYING: Duration = Duration::from_millis(20);

/// Writes everything to disk and powers off. Returns only if the kernel refuses.
pub fn off() {
    end(RebootCommand::PowerOff);
}

fn end(command: RebootCommand) {
    rustix::fs::sync();
    if let Err(errno) = reboot(command) {
        say(&format!("the kernel does not end the guest: {errno}"));
    }
}

/// Begins to end the guest in good order; answers at once.
pub fn shutdown(again: bool, grace_ms: u64) -> io::Result<()> {
    let grace = Duration::from_millis(grace_ms);
    if let Ok(main) = application::running() {
        let main = main.clone();
        thread::Builder::new().spawn(move || {
            main.signal(libc::SIGTERM);
            thread::sleep(grace);
            main.signal(libc::SIGKILL);
        })?;
        return Ok(());
    }
    match init_signal(again) {
        Some(number) => signal_init(number),
        None => {
            thread::Builder::new().spawn(move || end_without_init(again, grace))?;
            Ok(())
        }
    }
}

/// The signal that makes this guest's init power off, or reboot. See `systemd(1)`, and busybox's
/// `init.c`.
fn init_signal(again: bool) -> Option<i32> {
    if Path::new("/run/systemd/system").is_dir() {
        let offset = if again { 5 } else { 4 };
        return Some(libc::SIGRTMIN() + offset);
    }
    let init = fs::read_link("/proc/1/exe").unwrap_or_default();
    let busybox = init.file_name().is_some_and(|name| name == "busybox");
    busybox.then_some(if again { libc::SIGTERM } else { libc::SIGUSR2 })
}

/// Ends all programs, which are given so long to end by themselves, and then the guest.
fn end_without_init(again: bool, grace: Duration) {
    for (signal, wait) in [(Signal::TERM, grace.min(MOST_GRACE)), (Signal::KILL, DYING)] {
        // All but PID 1 and ourselves.
        // SAFETY: no memory is involved.
        let _ = unsafe { libc::kill(-1, signal.as_raw()) };
        thread::sleep(wait);
    }
    end(if again {
        RebootCommand::Restart
    } else {
        RebootCommand::PowerOff
    });
}

/// Sends a signal to the program of an application, or to the init of a system.
pub fn signal(number: i32) -> io::Result<()> {
    match application::running() {
        Ok(main) => {
            main.signal(number);
            Ok(())
        }
        Err(_) => signal_init(number),
    }
}

fn signal_init(number: i32) -> io::Result<()> {
    if let Some(signal) = Signal::from_named_raw(number) {
        return Ok(kill_process(Pid::INIT, signal)?);
    }
    // Real-time signals have no names in our library.
    // SAFETY: no memory is involved; the kernel checks the number.
    if unsafe { libc::kill(1, number) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Sets the clock.
pub fn set_time(unix_ns: i64) -> io::Result<()> {
    const BILLION: i64 = 1_000_000_000;
    let time = Timespec {
        tv_sec: unix_ns.div_euclid(BILLION),
        tv_nsec: unix_ns.rem_euclid(BILLION),
    };
    Ok(clock_settime(ClockId::Realtime, time)?)
}
