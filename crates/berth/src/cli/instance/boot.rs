//! Whether the init of a system container has come up: systemd is asked, any other init is taken
//! to be up when it runs.

use std::time::{Duration, Instant};

use api::{Process, client::StreamEvent};

use crate::cli::{
    Context,
    exit::{Exit, Failure, Outcome},
};

/// Pause between two questions.
const PAUSE: Duration = Duration::from_millis(100);
/// Most of an answer that is read.
const MAX_ANSWER: usize = 256;

/// Waits until `name` has booted: systemd's word for it (`running`, `degraded`), or `None` without
/// systemd.
///
/// # Errors
/// [`Exit::Timeout`] when it has not by `deadline`.
pub async fn wait(cx: &Context, name: &str, deadline: Instant) -> Outcome<Option<String>> {
    while Instant::now() < deadline {
        let Some(answer) = ask(cx, name).await? else {
            return Ok(None);
        };
        match answer.as_str() {
            // Still on its way, or not even listening yet.
            "initializing" | "starting" | "" => tokio::time::sleep(PAUSE).await,
            _ => return Ok(Some(answer)),
        }
    }
    Err(Failure::said(
        Exit::Timeout,
        format!("{name} runs, but its init has not come up in time"),
    )
    .advise(format!("see what it says: berth logs {name}")))
}

/// Systemd's state, empty while it does not answer; `None` when there is no systemd.
async fn ask(cx: &Context, name: &str) -> Outcome<Option<String>> {
    let process = Process {
        command: vec!["systemctl".to_owned(), "is-system-running".to_owned()],
        ..Process::default()
    };
    let Ok(mut session) = cx.client.exec_instance(name, &process).await else {
        return Ok(None);
    };
    let mut answer = Vec::new();
    while let Some(event) = session.output.next().await? {
        match event {
            StreamEvent::Stdout(bytes) if answer.len() < MAX_ANSWER => {
                answer.extend_from_slice(&bytes);
            }
            StreamEvent::Exited(_) => break,
            // There is no such program, or nobody who could run it.
            StreamEvent::Problem(_) => return Ok(None),
            _ => {}
        }
    }
    Ok(Some(String::from_utf8_lossy(&answer).trim().to_owned()))
}
