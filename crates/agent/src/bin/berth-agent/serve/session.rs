//! A program and its streams.
//!
//! ```text
//!   connection ──stdin frames──▶ queue ──writer thread──▶ pipe or terminal ──▶ program
//!   sink ◀──stdout, stderr──── reader threads ◀── pipes or terminal ◀────────── program
//! ```
//! A session has ended when its program has, and what the program itself wrote has been passed on.
//! Children it left behind may hold its pipes open; their output is no longer this session's.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::process::CommandExt,
    },
    path::Path,
    process::{Command, Stdio},
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
};

use agent::protocol::{Exit, Kind, MAX_DATA_BYTES, Program, Size};
use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, eventfd, poll},
    fs::{OFlags, fcntl_getfl, fcntl_setfl},
    io::Errno,
    process::{Pid, Signal, ioctl_tiocsctty, kill_process, kill_process_group, setsid},
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{Winsize, tcsetwinsize},
    thread::{Gid, Uid, set_thread_gid, set_thread_groups, set_thread_uid},
};

use crate::{reaper, users};

/// Frames of input that may wait for a program that does not read.
const INPUT_QUEUE: usize = 64;

/// The search path of programs that are given none.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Who hears what a program says.
pub trait Sink: Send + Sync {
    /// Takes bytes; `false` when nobody is there any more.
    fn output(&self, kind: Kind, bytes: &[u8]) -> bool;
}

/// A program that was started.
pub struct Session {
    pid: Pid,
    terminal: Option<OwnedFd>,
    input: Mutex<Option<SyncSender<Vec<u8>>>>,
    state: Mutex<State>,
    changed: Condvar,
}

type OnEnd = Box<dyn FnOnce(Exit) + Send>;

#[derive(Default)]
struct State {
    exit: Option<Exit>,
    on_end: Vec<OnEnd>,
}

/// Our ends of a program's streams.
struct Streams {
    input: Option<File>,
    outputs: Vec<(Kind, File)>,
    terminal: Option<OwnedFd>,
}

impl Session {
    /// Starts a program. `started` is called with its process id before the sink hears anything.
    pub fn start(
        program: &Program,
        sink: Arc<dyn Sink>,
        started: impl FnOnce(u32),
    ) -> io::Result<Arc<Self>> {
        let mut command = command(program)?;
        let (streams, given) = if let Some(size) = program.terminal {
            open_terminal(size, &mut command)?
        } else {
            open_pipes(program.stdin, &mut command)?
        };
        let (pid, exit) = reaper::spawn(&mut command)?;
        drop((command, given));
        started(pid.as_raw_nonzero().get().unsigned_abs());
        let (sender, receiver) = sync_channel(INPUT_QUEUE);
        let session = Arc::new(Self {
            pid,
            terminal: streams.terminal,
            input: Mutex::new(streams.input.is_some().then_some(sender)),
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        if let Some(file) = streams.input {
            let is_terminal = session.terminal.is_some();
            thread::spawn(move || feed(file, &receiver, is_terminal));
        }
        let ended = Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?);
        let pumps: Vec<_> = streams
            .outputs
            .into_iter()
            .map(|(kind, file)| {
                let (sink, ended) = (sink.clone(), ended.clone());
                thread::spawn(move || pump(kind, file, &*sink, &ended))
            })
            .collect();
        let watched = session.clone();
        thread::spawn(move || {
            let exit = exit.recv().unwrap_or(Exit::Code(255));
            // Level-triggered: every pump sees it.
            let _ = rustix::io::write(&*ended, &1u64.to_ne_bytes());
            for pump in pumps {
                // A pump that panicked has said all it could.
                let _ = pump.join();
            }
            watched.end(exit);
        });
        Ok(session)
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// Gives it input; none is the end. Waits while the program does not read.
    pub fn stdin(&self, bytes: &[u8]) {
        let mut input = self.input.lock().unwrap_or_else(PoisonError::into_inner);
        if bytes.is_empty() {
            *input = None;
        } else if let Some(sender) = &*input {
            // Nobody reads any more: the program is gone or closed its input.
            let _ = sender.send(bytes.to_vec());
        }
    }

    /// Tells it the size of its terminal.
    pub fn resize(&self, size: Size) {
        if let Some(terminal) = &self.terminal {
            // The terminal may be gone with the program.
            let _ = tcsetwinsize(terminal, winsize(size));
        }
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: i32) {
        if !self.ended()
            && let Some(signal) = Signal::from_named_raw(signal)
        {
            let _ = kill_process(self.pid, signal);
        }
    }

    /// Whether it has ended.
    pub fn ended(&self) -> bool {
        self.lock().exit.is_some()
    }

    /// Waits for its end.
    pub fn wait(&self) -> Exit {
        let mut state = self.lock();
        loop {
            if let Some(exit) = state.exit {
                return exit;
            }
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Calls `then` once it has ended, at once if it has.
    pub fn on_end(&self, then: impl FnOnce(Exit) + Send + 'static) {
        let mut state = self.lock();
        match state.exit {
            Some(exit) => {
                drop(state);
                then(exit);
            }
            None => state.on_end.push(Box::new(then)),
        }
    }

    /// Its host has gone: as when a terminal is closed, or a pipe.
    pub fn detach(&self) {
        self.stdin(&[]);
        if self.terminal.is_some() && !self.ended() {
            let _ = kill_process_group(self.pid, Signal::HUP);
        }
    }

    fn end(&self, exit: Exit) {
        let mut state = self.lock();
        let on_end = std::mem::take(&mut state.on_end);
        state.exit = Some(exit);
        drop(state);
        // Before anybody who waits hears of it, such as PID 1 about to power off.
        for then in on_end {
            then(exit);
        }
        self.changed.notify_all();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A command with identity, directory and variables, yet without streams.
fn command(program: &Program) -> io::Result<Command> {
    let invalid = |text: &str| io::Error::new(io::ErrorKind::InvalidInput, text);
    let (name, arguments) = program
        .args
        .split_first()
        .filter(|(name, _)| !name.is_empty())
        .ok_or_else(|| invalid("no program was named"))?;
    let identity = users::find(Path::new("/"), program.user.as_deref())
        .map_err(|error| io::Error::new(io::ErrorKind::NotFound, error))?;
    let mut command = Command::new(find_program(name, &program.env));
    command.arg0(name).args(arguments).env_clear();
    command.env("PATH", PATH).env("HOME", &identity.home);
    if program.terminal.is_some() {
        command.env("TERM", "xterm");
    }
    for variable in &program.env {
        let (key, value) = variable.split_once('=').unwrap_or((variable, ""));
        if key.is_empty() || variable.contains('\0') {
            return Err(invalid("a variable has no name"));
        }
        command.env(key, value);
    }
    let cwd = match program.cwd.as_str() {
        "" => "/",
        cwd => cwd,
    };
    let cwd = std::ffi::CString::new(cwd)?;
    let gids: Vec<Gid> = identity
        .groups
        .iter()
        .map(|&gid| Gid::from_raw(gid))
        .collect();
    let (uid, gid) = (Uid::from_raw(identity.uid), Gid::from_raw(identity.gid));
    let become_user = move || {
        set_thread_groups(&gids)?;
        set_thread_gid(gid)?;
        set_thread_uid(uid)?;
        rustix::process::chdir(&*cwd)?;
        Ok(())
    };
    // SAFETY: between fork and exec the closure only makes system calls, on values made before; it
    // allocates nothing and takes no lock.
    unsafe { command.pre_exec(become_user) };
    Ok(command)
}

/// Looks a name up in the search path the program will have, not in the agent's.
fn find_program(name: &str, env: &[String]) -> String {
    if name.contains('/') {
        return name.to_owned();
    }
    let path = env.iter().find_map(|it| it.strip_prefix("PATH="));
    path.unwrap_or(PATH)
        .split(':')
        .map(|directory| format!("{directory}/{name}"))
        .find(|candidate| {
            rustix::fs::access(candidate.as_str(), rustix::fs::Access::EXEC_OK).is_ok()
                && Path::new(candidate).is_file()
        })
        .unwrap_or_else(|| name.to_owned())
}

/// Gives the program a terminal of its own. Answers our side, and theirs to be dropped once it runs.
fn open_terminal(size: Size, command: &mut Command) -> io::Result<(Streams, Vec<OwnedFd>)> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let ours = openpt(flags)?;
    grantpt(&ours)?;
    unlockpt(&ours)?;
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let name = ptsname(&ours, Vec::new())?;
    let theirs = rustix::fs::open(name.as_c_str(), flags, rustix::fs::Mode::empty())?;
    tcsetwinsize(&ours, winsize(size))?;
    command
        .stdin(theirs.try_clone()?)
        .stdout(theirs.try_clone()?)
        .stderr(theirs);
    let lead = || {
        setsid()?;
        ioctl_tiocsctty(rustix::stdio::stdin())?;
        Ok(())
    };
    // SAFETY: as in `command`: system calls only.
    unsafe { command.pre_exec(lead) };
    let streams = Streams {
        input: Some(File::from(ours.try_clone()?)),
        outputs: vec![(Kind::Stdout, File::from(ours.try_clone()?))],
        terminal: Some(ours),
    };
    Ok((streams, Vec::new()))
}

fn open_pipes(stdin: bool, command: &mut Command) -> io::Result<(Streams, Vec<OwnedFd>)> {
    let pipe = || rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC);
    let (out_ours, out_theirs) = pipe()?;
    let (err_ours, err_theirs) = pipe()?;
    command.stdout(out_theirs).stderr(err_theirs);
    let input = if stdin {
        let (theirs, ours) = pipe()?;
        command.stdin(theirs);
        Some(File::from(ours))
    } else {
        command.stdin(Stdio::null());
        None
    };
    let lead = || {
        setsid()?;
        Ok(())
    };
    // SAFETY: as in `command`: system calls only.
    unsafe { command.pre_exec(lead) };
    let streams = Streams {
        input,
        outputs: vec![
            (Kind::Stdout, File::from(out_ours)),
            (Kind::Stderr, File::from(err_ours)),
        ],
        terminal: None,
    };
    Ok((streams, Vec::new()))
}

/// Passes input on to the program until there is no more, or nobody reads.
fn feed(mut file: File, input: &Receiver<Vec<u8>>, is_terminal: bool) {
    while let Ok(bytes) = input.recv() {
        if file.write_all(&bytes).is_err() {
            return;
        }
    }
    if is_terminal {
        // A terminal has no end of its own; this is how a person says it.
        let _ = file.write_all(&[4]);
    }
}

/// Passes on what a program says, until it has ended and nothing of it is left to read.
fn pump(kind: Kind, mut file: File, sink: &dyn Sink, ended: &OwnedFd) {
    let nonblocking = fcntl_getfl(&file).and_then(|now| fcntl_setfl(&file, now | OFlags::NONBLOCK));
    if nonblocking.is_err() {
        return;
    }
    let mut buffer = vec![0; MAX_DATA_BYTES];
    let mut listened_to = true;
    let mut over = false;
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return,
            // Read on even if nobody listens: the program shall not hang for it.
            Ok(count) => listened_to = listened_to && sink.output(kind, &buffer[..count]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && !over => {
                let mut fds = [
                    PollFd::from_borrowed_fd(file.as_fd(), PollFlags::IN),
                    PollFd::from_borrowed_fd(ended.as_fd(), PollFlags::IN),
                ];
                match poll(&mut fds, None) {
                    Ok(_) => over = fds[1].revents().contains(PollFlags::IN),
                    Err(Errno::INTR) => {}
                    Err(_) => return,
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // Nothing left, or a terminal whose last program has gone.
            Err(_) => return,
        }
    }
}

fn winsize(size: Size) -> Winsize {
    Winsize {
        ws_row: size.rows,
        ws_col: size.cols,
        ws_xpixel: 0,
        ws_ypixel: 0,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Memory(Mutex<Vec<(Kind, Vec<u8>)>>);

    impl Sink for Memory {
        fn output(&self, kind: Kind, bytes: &[u8]) -> bool {
            self.0.lock().unwrap().push((kind, bytes.to_vec()));
            true
        }
    }

    fn run(program: &Program, act: impl FnOnce(&Session)) -> (String, Exit) {
        let memory = Arc::new(Memory::default());
        let session = Session::start(program, memory.clone(), |_| {}).unwrap();
        act(&session);
        let exit = session.wait();
        let said = memory.0.lock().unwrap();
        let bytes: Vec<u8> = said.iter().flat_map(|(_, bytes)| bytes.clone()).collect();
        (String::from_utf8_lossy(&bytes).into_owned(), exit)
    }

    fn shell(script: &str) -> Program {
        Program {
            args: ["sh", "-c", script].map(str::to_owned).to_vec(),
            ..Program::default()
        }
    }

    #[test]
    fn many_short_programs_end_with_their_output_and_code() {
        thread::scope(|scope| {
            for number in 0..40 {
                scope.spawn(move || {
                    let script = format!("echo {number}; exit {number}");
                    let said = run(&shell(&script), |_| {});
                    assert_eq!(said, (format!("{number}\n"), Exit::Code(number)));
                });
            }
        });
        let absent = Program {
            args: vec!["/absent".into()],
            ..Program::default()
        };
        let sink = Arc::new(Memory::default());
        assert!(Session::start(&absent, sink, |_| {}).is_err());
        assert_eq!(run(&shell("kill -9 $$"), |_| {}).1, Exit::Signal(9));
    }
}
