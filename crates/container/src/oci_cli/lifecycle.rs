//! `create`, `start`, `kill`, `delete`, `pause`, `resume`.

use std::path::Path;

use super::{Call, Exit, Result, signals};
use crate::container::Delete;
use crate::create::{CreateRequest, Launch};
use crate::state::StateError;
use crate::{bundle, guard, terminal};

/// Reads the bundle, protects this program if the container calls for it, and describes what to make.
pub(super) fn request(call: &Call, launch: Launch) -> Result<CreateRequest> {
    let values = &call.parsed.values;
    let dir = Path::new(values.get("bundle").unwrap_or("."));
    let config = values.get("config").unwrap_or("config.json");
    let (bundle, spec) = bundle::load_config(dir, Path::new(config))?;
    let detachment = guard::protect_from(&spec)
        .map_err(|error| format!("cannot protect the runtime's own file: {error}"))?;
    let mut request = CreateRequest::new(call.id(), bundle, spec);
    request.launch = launch;
    request.detachment = detachment;
    request.preserve_fds =
        values.number("preserve-fds")?.unwrap_or(0) + inherited_sockets(&mut request);
    request.pid_file = values.get("pid-file").map(Into::into);
    request.no_pivot = values.has("no-pivot");
    request.no_new_keyring = values.has("no-new-keyring");
    Ok(request)
}

/// Sockets handed over by a service manager (sd_listen_fds(3)) are handed on to the container.
fn inherited_sockets(request: &mut CreateRequest) -> u32 {
    let Some(count) = std::env::var("LISTEN_FDS")
        .ok()
        .and_then(|text| text.parse::<u32>().ok())
    else {
        return 0;
    };
    let ours = std::env::var("LISTEN_PID")
        .ok()
        .and_then(|text| text.parse::<u32>().ok());
    if count == 0 || count > 1024 || ours.is_some_and(|pid| pid != std::process::id()) {
        return 0;
    }
    if let Some(process) = &mut request.spec.process {
        process.env.push(format!("LISTEN_FDS={count}"));
        process.env.push("LISTEN_PID=1".to_owned());
    }
    count
}

/// `create`.
pub(super) fn create(call: &Call) -> Result<Exit> {
    let request = request(call, Launch::OnStart)?;
    let wants_terminal = request
        .spec
        .process
        .as_ref()
        .is_some_and(|process| process.terminal);
    let socket = console_socket(call, wants_terminal, true)?;
    let created = call.runtime.create(request)?;
    call.warn(&created.warnings);
    if let (Some(socket), Some(console)) = (socket, &created.console)
        && let Err(failure) = terminal::send_console(Path::new(socket), console)
    {
        let _ = created.container.delete(Delete::Force);
        return Err(failure.into());
    }
    Ok(Exit::SUCCESS)
}

/// Where the terminal's master goes. Checked before anything is made.
pub(super) fn console_socket(call: &Call, terminal: bool, detached: bool) -> Result<Option<&str>> {
    match (call.parsed.values.get("console-socket"), terminal) {
        (Some(_), false) => {
            Err("--console-socket needs a process with \"terminal\": true".into())
        }
        (None, true) if detached => Err(
            "the process wants a terminal: give a --console-socket to receive it, or set \"terminal\" to false"
                .into(),
        ),
        (socket, _) => Ok(socket),
    }
}

/// `start`.
pub(super) fn start(call: &Call) -> Result<Exit> {
    let failed_hooks = call.container()?.start()?;
    call.warn(&failed_hooks);
    Ok(Exit::SUCCESS)
}

/// `kill`.
pub(super) fn kill(call: &Call) -> Result<Exit> {
    let values = &call.parsed.values;
    let text = call
        .parsed
        .positionals
        .get(1)
        .map(String::as_str)
        .or(values.get("signal"));
    let signal = signals::parse(text.unwrap_or("TERM"))?;
    call.container()?.kill(signal, values.has("all"))?;
    Ok(Exit::SUCCESS)
}

/// `delete`.
pub(super) fn delete(call: &Call) -> Result<Exit> {
    let force = call.parsed.values.has("force");
    let container = match call.container() {
        Err(StateError::NotFound { .. }) if force => return Ok(Exit::SUCCESS),
        Err(StateError::Creating { .. } | StateError::Damaged { .. }) if force => {
            call.runtime.clear_remains(call.id())?;
            return Ok(Exit::SUCCESS);
        }
        other => other?,
    };
    let failed_hooks = container.delete(if force {
        Delete::Force
    } else {
        Delete::Stopped
    })?;
    call.warn(&failed_hooks);
    Ok(Exit::SUCCESS)
}

/// `pause`.
pub(super) fn pause(call: &Call) -> Result<Exit> {
    call.container()?.pause()?;
    Ok(Exit::SUCCESS)
}

/// `resume`.
pub(super) fn resume(call: &Call) -> Result<Exit> {
    call.container()?.resume()?;
    Ok(Exit::SUCCESS)
}
