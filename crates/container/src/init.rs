//! The child of `create`: from the clone to the user's program.
//!
//! Runs alone in its new namespaces on a copy of the parent's memory, with all signals blocked, and talks
//! to the parent through a [`Channel`] only. It never returns: it becomes the program or reports why
//! not and leaves. It must not print, and must not touch the state directory.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Gid, Mode, OFlags, Uid};
use rustix::io::Errno;

use crate::channel::{Channel, Heard, Word};
use crate::error::{Context, Failure, Step};
use crate::mounts::{self, CgroupView};
use crate::namespaces;
use crate::process::{Labels, Program};
use crate::spec::{NamespaceKind, Spec, State, Status};
use crate::{cgroups, hooks, limits, sys, terminal};

/// What the child needs; everything was made or opened by the parent.
pub(crate) struct Init<'a> {
    pub spec: &'a Spec,
    pub namespaces: namespaces::Plan,
    pub mounts: mounts::Plan<'a>,
    pub program: Option<Program<'a>>,
    /// The group to enter.
    pub cgroup: Option<cgroup::Cgroup>,
    pub streams: Option<[OwnedFd; 3]>,
    pub no_pivot: bool,
    /// Whether to be killed when the parent dies.
    pub die_with_parent: bool,
    /// The socket on which `start` is awaited; `None` to go on at once.
    pub listener: Option<OwnedFd>,
    /// The state for hooks; its pid is filled in by the parent's word.
    pub state: State,
}

/// Runs the child. `channel` is its end.
pub(crate) fn run(mut init: Init<'_>, channel: Channel) -> ! {
    let failure = match init.enter(&channel) {
        Ok(never) => match never {},
        Err((failure, Some(starter))) => {
            starter.fail(&failure);
            failure
        }
        Err((failure, None)) => {
            channel.fail(&failure);
            failure
        }
    };
    sys::exit_now(match failure.errno() {
        Some(Errno::NOENT) => 127,
        Some(Errno::ACCESS) => 126,
        _ => 1,
    })
}

/// A failure and, if somebody other than the parent has to hear of it, the way there.
type Failed = (Failure, Option<Channel>);

impl Init<'_> {
    fn enter(&mut self, channel: &Channel) -> Result<std::convert::Infallible, Failed> {
        let prepared = self.set_up(channel);
        let (path, labels) = prepared.map_err(|failure| (failure, None))?;
        let starter = self
            .wait_for_start(channel)
            .map_err(|failure| (failure, None))?;
        let speaker = starter.as_ref().unwrap_or(channel);
        let failure = match self.start(speaker) {
            Ok(()) => match (self.program.take(), path) {
                (Some(program), Some(path)) => program.execute(&path, labels, speaker),
                _ => Failure::new(
                    "cannot start the container",
                    "its configuration has no process",
                ),
            },
            Err(failure) => failure,
        };
        Err((failure, starter))
    }

    /// Everything before `start`.
    fn set_up(&mut self, channel: &Channel) -> Step<(Option<std::ffi::CString>, Labels)> {
        self.enter_namespaces(channel)?;
        let linux = &self.spec.linux;
        if !self.spec.hostname.is_empty() {
            rustix::system::sethostname(self.spec.hostname.as_bytes())
                .ctx("cannot set the hostname")?;
        }
        if !self.spec.domainname.is_empty() {
            rustix::system::setdomainname(self.spec.domainname.as_bytes())
                .ctx("cannot set the domainname")?;
        }
        for (name, value) in &linux.sysctl {
            write_sysctl(name, value)?;
        }
        let labels = match &self.program {
            Some(program) => Labels::open(program.process)?,
            None => Labels::default(),
        };
        self.change_root(channel)?;
        if let Some(personality) = &linux.personality {
            limits::set_personality(personality)?;
        }
        if let Some(policy) = &linux.memory_policy {
            let (mode, nodes) = limits::memory_policy(policy)
                .map_err(|why| Failure::new("cannot use linux.memoryPolicy", why))?;
            sys::set_mempolicy(mode, &nodes).ctx("cannot set linux.memoryPolicy")?;
        }
        let preserved = self
            .program
            .as_ref()
            .map_or(0, |program| program.preserve_fds);
        sys::cloexec_from(3 + preserved).ctx("cannot close descriptors of the host")?;
        let path = self.program.as_ref().map(Program::find).transpose()?;
        channel.say(Word::Ready)?;
        channel.expect(Word::Go)?;
        Ok((path, labels))
    }

    fn enter_namespaces(&mut self, channel: &Channel) -> Step<()> {
        let linux = &self.spec.linux;
        // A group handed over to the container's root lets this process in as that root only, which
        // it is not before its ids are mapped. All others it enters while the parent maps them.
        let handed_over =
            linux.is_new(NamespaceKind::User) && cgroups::delegated_to(self.spec).is_some();
        if let Some(cgroup) = self.cgroup.as_ref().filter(|_| !handed_over) {
            cgroups::enter_v1(cgroup)?;
        }
        self.namespaces.enter_joins()?;
        if self.namespaces.inner_flags != 0 {
            succeed(self.namespaces.inner_flags, channel)?;
        }
        rustix::process::setsid().ctx("cannot start a session")?;
        if linux.is_new(NamespaceKind::User) {
            let late = channel.expect(Word::Mapped)?;
            self.mounts.accept_late(late)?;
        }
        if let Some(cgroup) = self.cgroup.as_ref().filter(|_| handed_over) {
            cgroups::enter_v1(cgroup)?;
        }
        if linux.has(NamespaceKind::User) {
            become_root()?;
            self.mounts.open_unprivileged()?;
        }
        if self.die_with_parent {
            sys::die_with_parent().ctx("cannot bind the container's life to its parent's")?;
        }
        // From here on nobody in the container's namespaces may look into this process, which still is
        // a copy of the runtime.
        sys::prctl(libc::PR_SET_DUMPABLE, 0, 0).ctx("cannot hide the runtime's memory")?;
        if self.namespaces.new_cgroup {
            namespaces::unshare_cgroup()?;
        }
        if self.namespaces.new_time {
            namespaces::unshare_time(&linux.time_offsets)?;
        }
        Ok(())
    }

    fn change_root(&mut self, channel: &Channel) -> Step<()> {
        let Init {
            spec,
            mounts,
            program,
            cgroup,
            namespaces,
            streams,
            ..
        } = self;
        let linux = &spec.linux;
        let own = linux.is_new(NamespaceKind::Mount);
        let private = own || linux.has(NamespaceKind::Mount);
        let mut readonly = Vec::new();
        if private {
            mounts.attach_root()?;
            let view = CgroupView {
                cgroup: cgroup.as_ref(),
                namespaced: namespaces.new_cgroup,
            };
            readonly = mounts.make(&view)?;
        }
        let root = mounts
            .root
            .as_ref()
            .ok_or_else(|| Failure::new("cannot change the root", "there is none"))?;
        if private {
            mounts::devices::create(root, &mounts.devices)?;
        }
        let slave = match program.as_ref().filter(|program| program.process.terminal) {
            Some(program) => {
                let slave = terminal::open(root, program.process, channel)?;
                if private {
                    terminal::mount_console(root.as_fd(), &slave)?;
                }
                Some(slave)
            }
            None => None,
        };
        run_hooks_before_pivot(spec, &mut self.state, channel)?;
        if private {
            mounts::finish(&readonly)?;
            mounts::protect::mask(root, &linux.masked_paths)?;
            mounts::protect::make_readonly(root, &linux.readonly_paths)?;
            if spec.root.as_ref().is_some_and(|root| root.readonly) {
                mounts::make_root_readonly(root.as_fd())?;
            }
        }
        switch_root(root.as_fd(), own, self.no_pivot)?;
        if own {
            mounts::propagate_root(mounts)?;
        }
        match (&slave, streams) {
            (Some(slave), _) => terminal::control(slave)?,
            (None, Some([stdin, stdout, stderr])) => {
                terminal::streams(stdin.as_fd(), stdout.as_fd(), stderr.as_fd())?;
            }
            (None, None) => {}
        }
        Ok(())
    }

    /// Waits until `start` calls, if it has to; returns the way to it.
    fn wait_for_start(&mut self, channel: &Channel) -> Step<Option<Channel>> {
        let Some(listener) = self.listener.take() else {
            return Ok(None);
        };
        // The creator leaves now; it must not have to wait for this process to let go of it.
        let _ = channel;
        let starter = rustix::io::retry_on_intr(|| {
            rustix::net::accept_with(&listener, rustix::net::SocketFlags::CLOEXEC)
        })
        .ctx("cannot wait for start")?;
        Ok(Some(Channel(starter)))
    }

    fn start(&mut self, _speaker: &Channel) -> Step<()> {
        if self.spec.hooks.start_container.is_empty() {
            return Ok(());
        }
        self.state.status = Status::Created;
        // Seen from inside, the container's process has the number it has there.
        self.state.pid = rustix::process::getpid().as_raw_nonzero().get();
        // As every runtime has it: they stand in for the program, and without an environment of their
        // own see the program's.
        let mut hooks = self.spec.hooks.start_container.clone();
        if let Some(process) = &self.spec.process {
            for hook in hooks.iter_mut().filter(|hook| hook.env.is_empty()) {
                hook.env.clone_from(&process.env);
            }
        }
        hooks::run("startContainer", &hooks, &self.state)
    }
}

/// Makes the process that goes on in the caller's place, in the new namespaces of `flags`, and leaves.
/// Returns in that process.
fn succeed(flags: u64, channel: &Channel) -> Step<()> {
    // SAFETY: this process is a copy of one that was single-threaded.
    let cloned = unsafe { sys::clone3_sibling(flags) };
    let Some(child) = cloned.map_err(crate::create::explain_clone)? else {
        return Ok(());
    };
    channel.say_with(Word::Successor, &[child.pidfd.as_fd()])?;
    sys::exit_now(0)
}

/// Lets the parent run its hooks, then runs those of the container's namespaces.
fn run_hooks_before_pivot(spec: &Spec, state: &mut State, channel: &Channel) -> Step<()> {
    if needs_parent_hooks(spec) {
        channel.say(Word::Mounted)?;
        channel.expect(Word::Hooked)?;
    }
    if !spec.hooks.create_container.is_empty() {
        state.pid = rustix::process::getpid().as_raw_nonzero().get();
        hooks::run("createContainer", &spec.hooks.create_container, state)?;
    }
    Ok(())
}

/// Whether the parent has hooks to run once the mounts are made.
pub(crate) fn needs_parent_hooks(spec: &Spec) -> bool {
    !spec.hooks.prestart.is_empty() || !spec.hooks.create_runtime.is_empty()
}

fn switch_root(root: BorrowedFd<'_>, own: bool, no_pivot: bool) -> Step<()> {
    if own {
        return mounts::rootfs::pivot(root, no_pivot);
    }
    rustix::process::fchdir(root).ctx("cannot enter the new root")?;
    mounts::rootfs::chroot_here()
}

/// Becomes root of the user namespace, without supplementary groups of the host.
pub(crate) fn become_root() -> Step<()> {
    let _ = rustix::thread::set_thread_groups(&[]);
    let (uid, gid) = (Uid::ROOT, Gid::ROOT);
    rustix::thread::set_thread_res_gid(gid, gid, gid)
        .ctx("cannot become root of the user namespace; map container id 0 in linux.gidMappings")?;
    rustix::thread::set_thread_res_uid(uid, uid, uid)
        .ctx("cannot become root of the user namespace; map container id 0 in linux.uidMappings")
}

/// Writes a kernel parameter through the host's /proc: the kernel applies it to the namespaces of the
/// writer. Validation let only parameters of the container's own namespaces pass.
fn write_sysctl(name: &str, value: &str) -> Step<()> {
    // As sysctl(8): with a slash first, slashes separate and dots belong to names; else the reverse.
    let path = match (name.find('/'), name.find('.')) {
        (Some(slash), Some(dot)) if slash < dot => name.to_owned(),
        (Some(_), None) => name.to_owned(),
        _ => name
            .chars()
            .map(|c| match c {
                '.' => '/',
                '/' => '.',
                c => c,
            })
            .collect(),
    };
    let what = || format!("cannot set linux.sysctl {name} to {value:?}");
    let path = Path::new("/proc/sys").join(path);
    let file =
        rustix::fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()).with(what)?;
    rustix::io::write(file, value.as_bytes())
        .map(drop)
        .with(what)
}

/// What a parent hears that is meant for the user, not for it.
pub(crate) fn unexpected(heard: Heard) -> Failure {
    match heard {
        Heard::Failed(failure) => failure,
        Heard::End => Failure::new(
            "the container's first process died during set-up",
            "it was killed; a memory limit that is too small does that",
        ),
        other => Failure::new(
            "the container's set-up lost its way",
            format!("it said {other:?}"),
        ),
    }
}
