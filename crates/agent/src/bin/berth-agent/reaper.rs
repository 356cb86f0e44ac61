//! Collects children that have ended: the agent's own, and as PID 1 everybody's orphans.
//!
//! One thread waits for any child and tells those who asked for it. Nobody else in the program may
//! wait for a process. Children are started under the table's lock, and reaped under it, so none can
//! end before it is entered; nor does the reaper take the end of a child that could not be executed
//! from the library that waits for it.

use std::{
    collections::HashMap,
    io,
    process::Command,
    sync::{
        Condvar, Mutex, MutexGuard, OnceLock, PoisonError,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
};

use agent::protocol::Exit;
use rustix::{
    io::Errno,
    process::{Pid, WaitId, WaitIdOptions, WaitOptions, wait, waitid},
};

#[derive(Default)]
struct Table {
    waiting: HashMap<i32, SyncSender<Exit>>,
    running: bool,
}

static TABLE: OnceLock<(Mutex<Table>, Condvar)> = OnceLock::new();

fn shared() -> &'static (Mutex<Table>, Condvar) {
    TABLE.get_or_init(Default::default)
}

fn lock() -> MutexGuard<'static, Table> {
    shared().0.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts a program. How it ends comes once through the receiver.
pub fn spawn(command: &mut Command) -> io::Result<(Pid, Receiver<Exit>)> {
    let mut table = lock();
    let child = command.spawn()?;
    // The handle is given up: only the reaper waits.
    let pid = Pid::from_child(&child);
    let (sender, receiver) = sync_channel(1);
    table.waiting.insert(pid.as_raw_nonzero().get(), sender);
    if !table.running {
        table.running = true;
        thread::Builder::new().name("reaper".into()).spawn(run)?;
    }
    shared().1.notify_one();
    Ok((pid, receiver))
}

fn run() {
    loop {
        // Only looks: the child stays until the lock is held.
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        match waitid(WaitId::All, options) {
            Ok(_) => collect(&mut lock()),
            Err(Errno::INTR) => {}
            // No children: without them no orphans either, until the next is started.
            Err(_) => {
                let table = lock();
                if table.waiting.is_empty() {
                    drop(shared().1.wait(table));
                }
            }
        }
    }
}

/// Takes every child that has ended.
fn collect(table: &mut Table) {
    while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
        let exit = match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => Exit::Code(code),
            (None, Some(signal)) => Exit::Signal(signal),
            (None, None) => continue,
        };
        if let Some(waiter) = table.waiting.remove(&pid.as_raw_nonzero().get()) {
            // Room for one, sent once; whoever waited may be gone.
            let _ = waiter.try_send(exit);
        }
    }
}
