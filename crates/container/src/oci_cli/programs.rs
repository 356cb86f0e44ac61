//! `run` and `exec`: commands that end as the program they started.

use std::path::Path;

use super::foreground::{self, Foreground};
use super::{Call, Exit, Result, lifecycle};
use crate::container::Delete;
use crate::create::{Launch, Stdio};
use crate::exec::ExecRequest;
use crate::spec::{ConsoleSize, Process};
use crate::{bundle, guard, terminal};

/// `run`.
pub(super) fn run(call: &Call) -> Result<Exit> {
    let values = &call.parsed.values;
    let detached = values.has("detach");
    let mut request = lifecycle::request(call, Launch::Now)?;
    let process = request
        .spec
        .process
        .as_mut()
        .ok_or("config.json has no process to run")?;
    let socket = lifecycle::console_socket(call, process.terminal, detached)?;
    adopt_size(process);
    let foreground = if detached {
        None
    } else {
        Some(Foreground::begin()?)
    };
    let created = call.runtime.create(request)?;
    call.warn(&created.warnings);
    call.warn(&created.container.run_poststart());
    let mut console = created.console;
    if let (Some(socket), Some(master)) = (socket, &console) {
        if let Err(failure) = terminal::send_console(Path::new(socket), master) {
            let _ = created.container.delete(Delete::Force);
            return Err(failure.into());
        }
        console = None;
    }
    let Some(foreground) = foreground else {
        return Ok(Exit::SUCCESS);
    };
    let status = foreground.wait(&created.pidfd, console)?;
    if !values.has("keep") {
        call.warn(&created.container.delete(Delete::Force)?);
    }
    Ok(foreground::exit_code(status))
}

/// `exec`.
pub(super) fn exec(call: &Call) -> Result<Exit> {
    let values = &call.parsed.values;
    let detached = values.has("detach");
    let container = call.container()?;
    if container.record().exposes_runtime() {
        guard::protect()
            .map_err(|error| format!("cannot protect the runtime's own file: {error}"))?;
    }
    let mut process = match values.get("process") {
        Some(path) => bundle::load_process(Path::new(path))?,
        None => describe(call, container.process())?,
    };
    let socket = lifecycle::console_socket(call, process.terminal, detached)?;
    adopt_size(&mut process);
    let mut request = ExecRequest::new(process);
    request.stdio = Stdio::Inherit;
    request.preserve_fds = values.number("preserve-fds")?.unwrap_or(0);
    request.pid_file = values.get("pid-file").map(Into::into);
    request.cgroup = values.get("cgroup").map(str::to_owned);
    request.no_new_keyring = values.has("no-new-keyring");
    request.ignore_paused = values.has("ignore-paused");
    let foreground = if detached {
        None
    } else {
        Some(Foreground::begin()?)
    };
    let executed = container.exec(request)?;
    call.warn(&executed.warnings);
    let mut console = executed.console;
    if let (Some(socket), Some(master)) = (socket, &console) {
        terminal::send_console(Path::new(socket), master)?;
        console = None;
    }
    match foreground {
        Some(foreground) => Ok(foreground::exit_code(
            foreground.wait(&executed.pidfd, console)?,
        )),
        None => Ok(Exit::SUCCESS),
    }
}

/// A process from the command line, starting from the container's own.
fn describe(call: &Call, mut process: Process) -> Result<Process> {
    let values = &call.parsed.values;
    process.args = call.parsed.positionals[1..].to_vec();
    if process.args.is_empty() {
        return Err("exec: name a program after the container, or give --process FILE".into());
    }
    process.terminal = values.has("tty");
    if let Some(cwd) = values.get("cwd") {
        process.cwd = cwd.into();
    }
    for entry in values.all("env") {
        set_variable(&mut process.env, entry);
    }
    if let Some(user) = values.get("user") {
        let (uid, gid) = user
            .split_once(':')
            .map_or((user, None), |(uid, gid)| (uid, Some(gid)));
        let number = |text: &str| {
            text.parse()
                .map_err(|_| format!("--user: {user:?} is not UID[:GID]"))
        };
        process.user.uid = number(uid)?;
        if let Some(gid) = gid {
            process.user.gid = number(gid)?;
        }
        // Those of another user are none of this one's.
        process.user.additional_gids.clear();
        process.env.retain(|entry| !entry.starts_with("HOME="));
    }
    for gid in values.all("additional-gids") {
        let number = gid
            .parse()
            .map_err(|_| format!("--additional-gids: {gid:?} is not a number"))?;
        process.user.additional_gids.push(number);
    }
    for cap in values.all("cap") {
        let capabilities = process.capabilities.get_or_insert_default();
        for set in [
            &mut capabilities.bounding,
            &mut capabilities.effective,
            &mut capabilities.permitted,
        ] {
            set.push(cap.to_owned());
        }
    }
    if values.has("no-new-privs") {
        process.no_new_privileges = true;
    }
    if let Some(label) = values.get("process-label") {
        process.selinux_label = label.to_owned();
    }
    if let Some(profile) = values.get("apparmor") {
        process.apparmor_profile = profile.to_owned();
    }
    Ok(process)
}

/// Adds `KEY=value` in place of what the key had: programs take the first of two.
fn set_variable(env: &mut Vec<String>, entry: &str) {
    let key = |entry: &str| {
        entry
            .split_once('=')
            .map_or(entry.len(), |(key, _)| key.len())
    };
    let wanted = &entry[..key(entry)];
    env.retain(|old| &old[..key(old)] != wanted);
    env.push(entry.to_owned());
}

/// A terminal without a size takes that of the caller's.
fn adopt_size(process: &mut Process) {
    if process.terminal
        && process.console_size.is_none()
        && let Ok(size) = rustix::termios::tcgetwinsize(rustix::stdio::stdin())
    {
        process.console_size = Some(ConsoleSize {
            height: size.ws_row,
            width: size.ws_col,
        });
    }
}
