//! A terminal with nobody at it: a pseudo-terminal whose keys a test presses and whose screen it reads.

use std::{
    fs::File,
    io::{Read, Write},
    os::fd::OwnedFd,
    process::{Child, Command},
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{Mode, OFlags},
    process::{Pid, Signal, kill_process},
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{LocalModes, Termios, Winsize, tcgetattr, tcsetwinsize},
};

/// Most time anything is waited for: after it, something is broken.
const PATIENCE: Duration = Duration::from_secs(60);

/// A pseudo-terminal.
#[derive(Debug)]
pub struct Terminal {
    master: File,
    slave: OwnedFd,
}

impl Terminal {
    /// Opens one.
    ///
    /// # Errors
    /// When the kernel has none.
    pub fn open() -> anyhow::Result<Self> {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY)?;
        grantpt(&master)?;
        unlockpt(&master)?;
        let path = ptsname(&master, Vec::new())?;
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let slave = rustix::fs::open(path.as_c_str(), flags, Mode::empty())?;
        Ok(Self {
            master: File::from(master),
            slave,
        })
    }

    /// Starts a command at it.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(&self, command: &mut Command) -> anyhow::Result<Child> {
        let child = command
            .stdin(self.slave.try_clone()?)
            .stdout(self.slave.try_clone()?)
            .stderr(self.slave.try_clone()?)
            .spawn();
        child.with_context(|| format!("{command:?}"))
    }

    /// How it is set.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn modes(&self) -> anyhow::Result<Termios> {
        Ok(tcgetattr(&self.slave)?)
    }

    /// Whether keys go to the program one by one, as they are.
    ///
    /// # Errors
    /// As for [`Terminal::modes`].
    pub fn is_raw(&self) -> anyhow::Result<bool> {
        Ok(!self.modes()?.local_modes.contains(LocalModes::ICANON))
    }

    /// Presses keys.
    ///
    /// # Errors
    /// When nobody is there to take them.
    pub fn press(&mut self, keys: &str) -> anyhow::Result<()> {
        Ok(self.master.write_all(keys.as_bytes())?)
    }

    /// Makes the window another size and tells `child` of it, as a terminal does.
    ///
    /// # Errors
    /// When the child is gone.
    pub fn resize(&self, child: &Child, rows: u16, cols: u16) -> anyhow::Result<()> {
        let size = Winsize {
            ws_row: rows,
            ws_col: cols,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&self.slave, size)?;
        Ok(kill_process(Pid::from_child(child), Signal::WINCH)?)
    }

    /// Reads the screen until some text has been seen; all that was read.
    ///
    /// # Errors
    /// When it does not come.
    pub fn until(&mut self, wanted: &str) -> anyhow::Result<String> {
        let mut seen = String::new();
        let mut buffer = [0; 1024];
        let deadline = Instant::now() + PATIENCE;
        while !seen.contains(wanted) {
            let mut fds = [PollFd::new(&self.master, PollFlags::IN)];
            let second = Timespec {
                tv_sec: 1,
                tv_nsec: 0,
            };
            if poll(&mut fds, Some(&second))? == 0 {
                ensure!(Instant::now() < deadline, "no {wanted:?} in {seen:?}");
                continue;
            }
            let count = self.master.read(&mut buffer)?;
            seen.push_str(&String::from_utf8_lossy(&buffer[..count]));
        }
        Ok(seen)
    }
}

/// The exit code of a command that ends.
///
/// # Errors
/// When it does not; it is killed then.
pub fn code_of(mut child: Child) -> anyhow::Result<Option<i32>> {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        if let Some(status) = child.try_wait()? {
            return Ok(status.code());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill()?;
    child.wait()?;
    bail!("it does not end")
}
