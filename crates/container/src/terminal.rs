//! Terminals: a pty of the container's own devpts, its master handed to the parent.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{FileType, Gid, OFlags, Uid};
use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;

use crate::channel::{Channel, Word};
use crate::error::{Context, Failure, Step};
use crate::mounts::{fs, target};
use crate::seccomp_filter::send_fd;
use crate::spec::{ConsoleSize, Process};

const DEVPTS_MAGIC: u64 = 0x1cd1;

/// Opens a pty in the container whose root is `root`, and sends the master to the parent.
/// The container could have put anything there, so what is opened is examined.
pub(crate) fn open(root: impl AsFd, process: &Process, channel: &Channel) -> Step<OwnedFd> {
    let what = "cannot open a terminal at /dev/pts/ptmx in the container";
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::NONBLOCK;
    let master = target::open(root, Path::new("/dev/pts/ptmx"), flags).ctx(what)?;
    let stat = rustix::fs::fstat(&master).ctx(what)?;
    let device = rustix::fs::fstatfs(&master).ctx(what)?;
    if device.f_type as u64 != DEVPTS_MAGIC
        || FileType::from_raw_mode(stat.st_mode) != FileType::CharacterDevice
        || stat.st_rdev != rustix::fs::makedev(5, 2)
    {
        return Err(Failure::new(
            what,
            "it is not the ptmx device; mount a devpts at /dev/pts",
        ));
    }
    let status = rustix::fs::fcntl_getfl(&master).ctx(what)?;
    rustix::fs::fcntl_setfl(&master, status - OFlags::NONBLOCK).ctx(what)?;
    rustix::pty::unlockpt(&master).ctx("cannot unlock the terminal")?;
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let slave = rustix::pty::ioctl_tiocgptpeer(&master, flags)
        .ctx("cannot open the terminal's other end")?;
    if process.user.uid != 0 {
        let (uid, gid) = (Uid::from_raw(process.user.uid), Gid::from_raw(stat.st_gid));
        rustix::fs::fchown(&slave, Some(uid), Some(gid))
            .ctx("cannot give the terminal to the user")?;
    }
    if let Some(ConsoleSize { height, width }) = &process.console_size {
        let size = Winsize {
            ws_row: *height,
            ws_col: *width,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        rustix::termios::tcsetwinsize(&master, size).ctx("cannot set the terminal's size")?;
    }
    channel.say_with(Word::Console, &[master.as_fd()])?;
    Ok(slave)
}

/// Shows the terminal as /dev/console too.
pub(crate) fn mount_console(root: BorrowedFd<'_>, slave: &OwnedFd) -> Step<()> {
    let what = "cannot mount the terminal at /dev/console";
    let place = target::ensure(root, Path::new("/dev/console"), target::Kind::File)?;
    let tree = fs::clone_tree(slave, Path::new(""), false).ctx(what)?;
    fs::attach(&tree, &place).ctx(what)
}

/// Makes the terminal the controlling one of this session and its standard streams.
pub(crate) fn control(slave: &OwnedFd) -> Step<()> {
    rustix::process::ioctl_tiocsctty(slave).ctx("cannot take control of the terminal")?;
    streams(slave.as_fd(), slave.as_fd(), slave.as_fd())
}

/// Replaces the standard streams.
pub(crate) fn streams(
    stdin: BorrowedFd<'_>,
    stdout: BorrowedFd<'_>,
    stderr: BorrowedFd<'_>,
) -> Step<()> {
    let what = "cannot set the standard streams";
    rustix::stdio::dup2_stdin(stdin).ctx(what)?;
    rustix::stdio::dup2_stdout(stdout).ctx(what)?;
    rustix::stdio::dup2_stderr(stderr).ctx(what)
}

/// Sends the master of a terminal to whoever listens on a console socket.
///
/// # Errors
/// When nobody listens there.
pub fn send_console(socket: &Path, master: &OwnedFd) -> Result<(), Failure> {
    send_fd(socket, b"/dev/ptmx", master).with(|| {
        format!(
            "cannot send the terminal to the console socket {}",
            socket.display()
        )
    })
}
