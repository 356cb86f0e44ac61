//! The last steps before the user's program, shared by `create` and `exec`: found, given its terminal,
//! its rights and its filter, executed. Runs in the child only, inside the container.

use std::ffi::{CString, OsStr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{Access, AtFlags, Mode, OFlags};
use rustix::io::Errno;

use crate::caps::{self, Sets};
use crate::channel::{Channel, Word};
use crate::error::{Context, Failure, Step};
use crate::mounts::target;
use crate::spec::Process;
use crate::tail::{Detachment, Tail};
use crate::{limits, sys};

/// Where programs are looked for if the environment does not say.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Largest /etc/passwd that is searched for a home directory.
const MAX_PASSWD: usize = 1 << 20;

/// NUL-terminated strings and the null-terminated list of pointers that execve(2) wants.
#[derive(Debug)]
pub(crate) struct CStrings {
    strings: Vec<CString>,
    pointers: Vec<*const libc::c_char>,
}

impl CStrings {
    /// From text; NUL bytes inside were excluded by validation.
    pub(crate) fn new(list: &[impl AsRef<str>]) -> Step<CStrings> {
        let strings = list
            .iter()
            .map(|text| cstring(text.as_ref().as_bytes()))
            .collect::<Step<Vec<_>>>()?;
        let mut all = CStrings {
            strings,
            pointers: Vec::new(),
        };
        all.point();
        Ok(all)
    }

    /// Adds one string at the end.
    pub(crate) fn push(&mut self, text: &[u8]) -> Step<()> {
        self.strings.push(cstring(text)?);
        self.point();
        Ok(())
    }

    fn point(&mut self) {
        self.pointers = self
            .strings
            .iter()
            .map(|s| s.as_ptr())
            .chain([std::ptr::null()])
            .collect();
    }

    /// The list for execve(2), valid as long as `self`.
    pub(crate) fn pointers(&self) -> &[*const libc::c_char] {
        &self.pointers
    }
}

/// A NUL-terminated copy.
pub(crate) fn cstring(bytes: &[u8]) -> Step<CString> {
    CString::new(bytes).map_err(|_| Failure::new("cannot use a string", "it contains a NUL byte"))
}

/// Everything about the program that can be prepared before the fork.
#[derive(Debug)]
pub(crate) struct Program<'a> {
    pub process: &'a Process,
    argv: CStrings,
    envp: CStrings,
    caps: Sets,
    /// Compiled filter.
    pub filter: Option<seccomp::Program>,
    /// Descriptors from 3 on that the program inherits.
    pub preserve_fds: u32,
    /// Whether to give it a session keyring of its own.
    pub new_keyring: bool,
    /// Whether the kernel kills it when its parent dies.
    pub die_with_parent: bool,
    /// Whether it sets its own resource limits; else its parent does.
    pub limits_itself: bool,
    /// How it lets go of the runtime's file before it executes another, if it has to.
    pub detachment: Option<&'a Detachment>,
}

impl<'a> Program<'a> {
    /// Prepares `process`. Returns warnings too.
    pub(crate) fn prepare(
        process: &'a Process,
        filter: Option<seccomp::Program>,
        preserve_fds: u32,
        new_keyring: bool,
    ) -> Step<(Program<'a>, Vec<String>)> {
        let (caps, unknown) = process
            .capabilities
            .as_ref()
            .map(caps::parse)
            .unwrap_or_default();
        caps::check_inheritable(&caps)?;
        let warnings = unknown
            .iter()
            .map(|name| format!("capability {name} is unknown and ignored"))
            .collect();
        let program = Program {
            process,
            argv: CStrings::new(&process.args)?,
            envp: CStrings::new(&process.env)?,
            caps,
            filter,
            preserve_fds,
            new_keyring,
            die_with_parent: false,
            limits_itself: false,
            detachment: None,
        };
        Ok((program, warnings))
    }

    fn variable(&self, name: &str) -> Option<&str> {
        self.process.env.iter().rev().find_map(|entry| {
            entry
                .split_once('=')
                .filter(|(key, _)| *key == name)
                .map(|(_, value)| value)
        })
    }

    /// Enters the working directory (made if missing) and finds the program. The kernel resolves the
    /// directory inside the root and without magic links, so that no descriptor of the host can be
    /// reached through it.
    pub(crate) fn find(&self) -> Step<CString> {
        self.enter_directory()?;
        self.find_program().map_err(Failure::of_program)
    }

    fn find_program(&self) -> Step<CString> {
        let name = &self.process.args[0];
        if name.contains('/') {
            check_executable(Path::new(name)).with(|| format!("cannot run `{name}`"))?;
            return cstring(name.as_bytes());
        }
        let mut denied = None;
        for dir in self.variable("PATH").unwrap_or(DEFAULT_PATH).split(':') {
            let dir = if dir.is_empty() { "." } else { dir };
            let candidate = Path::new(dir).join(name);
            match check_executable(&candidate) {
                Ok(()) => return cstring(candidate.as_os_str().as_bytes()),
                Err(Errno::ACCESS) => denied = Some(candidate),
                Err(_) => {}
            }
        }
        match denied {
            Some(path) => Err(Errno::ACCESS).with(|| format!("cannot run `{}`", path.display())),
            None => Err(Failure {
                what: format!("executable file `{name}` not found in $PATH").into(),
                source: Errno::NOENT.into(),
                program: true,
            }),
        }
    }

    fn enter_directory(&self) -> Step<()> {
        let cwd = &self.process.cwd;
        let what = || {
            format!(
                "cannot enter the working directory {} (process.cwd)",
                cwd.display()
            )
        };
        let root = rustix::fs::open(
            "/",
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .with(what)?;
        if cwd == Path::new("/") {
            return rustix::process::fchdir(&root).with(what);
        }
        let dir = match target::open(&root, cwd, OFlags::PATH | OFlags::DIRECTORY) {
            Err(Errno::NOENT) => target::ensure(&root, cwd, target::Kind::Directory)?,
            other => other.with(what)?,
        };
        match rustix::process::fchdir(&dir) {
            // The user may enter what root, on a network file system, may not: tried again later.
            Err(Errno::ACCESS) => Ok(()),
            other => other.with(what),
        }
    }

    /// Sets everything that needs no decision any more and becomes the program. Returns why not.
    pub(crate) fn execute(mut self, path: &CString, labels: Labels, channel: &Channel) -> Failure {
        let mut tail = match self.prepare_self(labels, channel) {
            Ok(tail) => tail,
            Err(failure) => return failure,
        };
        tail.execve(path, self.argv.pointers(), self.envp.pointers());
        if let Some(detachment) = self.detachment {
            tail.play_detached(detachment, channel);
        }
        match tail.play() {
            Ok(()) => Failure::new("cannot run the program", "the kernel says it runs"),
            Err(failure) => failure,
        }
    }

    /// Does all but the last steps, and returns those.
    fn prepare_self(&mut self, labels: Labels, channel: &Channel) -> Step<Tail> {
        let process = self.process;
        if self.limits_itself {
            // Checked to lie within the hard limits: nothing is lowered, so nothing is warned of.
            limits::apply_rlimits(0, &process.rlimits, &mut |_| {})?;
        }
        if self.new_keyring {
            join_keyring();
        }
        if let Some(scheduler) = &process.scheduler {
            limits::apply_scheduler(scheduler)?;
        }
        if let Some(io) = &process.io_priority {
            limits::apply_io_priority(io)?;
        }
        if self.variable("HOME").is_none() {
            let home = home_of(process.user.uid).unwrap_or_else(|| "/".into());
            self.envp.push(format!("HOME={home}").as_bytes())?;
        }
        labels.write()?;
        if process.user.uid != 0 {
            own_streams(process.user.uid, process.user.gid);
        }
        if process.no_new_privileges {
            sys::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0).ctx("cannot set noNewPrivileges")?;
        }
        let rights = caps::become_user(&process.user, &self.caps)?;
        if self.die_with_parent {
            // Changing ids took it away.
            sys::die_with_parent().ctx("cannot bind the process' life to its parent's")?;
        }
        rustix::process::umask(Mode::from_raw_mode(process.user.umask.unwrap_or(0o022)));
        if process.user.uid != 0 {
            // Once more with the user's own id; a failure then is the program's to notice.
            let _ = rustix::process::chdir(&process.cwd);
        }
        sys::reset_signals();
        sys::set_signal_mask(0).ctx("cannot reset the signal mask")?;
        let mut tail = Tail::default();
        // Without no_new_privs only CAP_SYS_ADMIN may install a filter, so before giving it up.
        if process.no_new_privileges {
            rights.keep_only(&mut tail);
            self.install_filter(&mut tail, channel)?;
        } else {
            self.install_filter(&mut tail, channel)?;
            rights.keep_only(&mut tail);
        }
        Ok(tail)
    }

    /// Plans the filter. One with a listener is installed now, since that is a descriptor to hand over;
    /// [`crate::guard`] lets no process with one run detached.
    fn install_filter(&self, tail: &mut Tail, channel: &Channel) -> Step<()> {
        let Some(filter) = &self.filter else {
            return Ok(());
        };
        if !filter.notifies {
            return crate::seccomp_filter::plan(filter, tail);
        }
        tail.play()?;
        match crate::seccomp_filter::install(filter)? {
            Some(listener) => channel.say_with(Word::Listener, &[listener.as_fd()]),
            None => Ok(()),
        }
    }
}

/// Whether the caller may execute the file.
fn check_executable(path: &Path) -> Result<(), Errno> {
    let stat = rustix::fs::stat(path)?;
    if rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::Directory {
        return Err(Errno::ACCESS);
    }
    rustix::fs::accessat(rustix::fs::CWD, path, Access::EXEC_OK, AtFlags::EACCESS)
}

/// The home directory of a user by the container's own /etc/passwd, which is hostile text.
fn home_of(uid: u32) -> Option<String> {
    let root = rustix::fs::open("/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let file = target::open(
        &root,
        Path::new("/etc/passwd"),
        OFlags::RDONLY | OFlags::NONBLOCK,
    )
    .ok()?;
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(
        &mut std::io::Read::take(std::fs::File::from(file), MAX_PASSWD as u64),
        &mut bytes,
    )
    .ok()?;
    home_in(&bytes, uid)
}

/// Finds the sixth field of the first line whose third field is `uid`.
pub(crate) fn home_in(passwd: &[u8], uid: u32) -> Option<String> {
    let wanted = uid.to_string();
    passwd.split(|byte| *byte == b'\n').find_map(|line| {
        let fields: Vec<&[u8]> = line.split(|byte| *byte == b':').collect();
        let home = fields
            .get(5)
            .filter(|home| home.starts_with(b"/") && !home.contains(&0))?;
        (fields.get(2) == Some(&wanted.as_bytes()))
            .then(|| OsStr::from_bytes(home).to_string_lossy().into_owned())
    })
}

/// Gives the standard streams to the user, so that it can open them again by /dev/stdout. Streams that
/// cannot change hands (devices of the host, read-only files) stay as they are.
fn own_streams(uid: u32, gid: u32) {
    let null = rustix::fs::makedev(1, 3);
    let streams: [BorrowedFd<'_>; 3] = [
        rustix::stdio::stdin(),
        rustix::stdio::stdout(),
        rustix::stdio::stderr(),
    ];
    for stream in streams {
        let plain = rustix::fs::fstat(stream)
            .is_ok_and(|stat| stat.st_rdev != null && stat.st_uid != uid && stat.st_nlink <= 1);
        if plain {
            let (uid, gid) = (
                rustix::fs::Uid::from_raw(uid),
                rustix::fs::Gid::from_raw(gid),
            );
            let _ = rustix::fs::fchown(stream, Some(uid), Some(gid));
        }
    }
}

/// A session keyring of its own: the caller's keys are none of the container's business. Kernels
/// without keyrings have nothing to protect.
fn join_keyring() {
    const KEYCTL_JOIN_SESSION_KEYRING: i32 = 1;
    // SAFETY: a null name asks for an anonymous keyring; no memory is passed.
    unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, 0, 0, 0, 0) };
}

/// Security labels for the next `execve`. The files are opened while the host's /proc is in reach, since
/// the container's could be anything.
#[derive(Debug, Default)]
pub(crate) struct Labels {
    entries: Vec<(OwnedFd, String, &'static str)>,
}

impl Labels {
    /// Opens what `process` asks for.
    pub(crate) fn open(process: &Process) -> Step<Labels> {
        let mut labels = Labels::default();
        if !process.apparmor_profile.is_empty() {
            labels.add(
                &["/proc/self/attr/apparmor/exec", "/proc/self/attr/exec"],
                format!("exec {}", process.apparmor_profile),
                "process.apparmorProfile (is AppArmor enabled on this host?)",
            )?;
        }
        if !process.selinux_label.is_empty() {
            labels.add(
                &["/proc/self/attr/exec"],
                process.selinux_label.clone(),
                "process.selinuxLabel (is SELinux enabled on this host?)",
            )?;
        }
        Ok(labels)
    }

    fn add(&mut self, files: &[&str], text: String, field: &'static str) -> Step<()> {
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        let opened = files
            .iter()
            .map(|file| rustix::fs::open(*file, flags, Mode::empty()))
            .reduce(|best, next| best.or(next))
            .unwrap_or(Err(Errno::NOENT));
        let file = opened.with(|| format!("cannot use {field}"))?;
        self.entries.push((file, text, field));
        Ok(())
    }

    fn write(self) -> Step<()> {
        self.entries.iter().try_for_each(|(file, text, field)| {
            rustix::io::write(file, text.as_bytes())
                .map(drop)
                .with(|| format!("cannot apply {field} {text:?}"))
        })
    }
}
