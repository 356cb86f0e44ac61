//! A program in the foreground: attached to until it ends, whatever becomes of the daemon meanwhile.
//!
//! A guest outlives its daemon. When the connection breaks, `run` and `attach` wait for the daemon to be
//! back, join the guest again and go on; a guest that ended in between still says how.

use std::time::Duration;

use api::{
    ErrorCode,
    client::{ClientError, Session},
    stream::Attach,
};
use tokio::time::Instant;

use super::past::{self, Past};
use crate::cli::{
    Context,
    exit::{Exit, Failure, Outcome},
    session::{Ended, Options, Ours},
    term,
};

/// How long a daemon may be away, and the pause between two looks.
const PATIENCE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(200);
/// Sessions lost soon after they began, one after the other, that are gone on with: a daemon that is
/// replaced is away once.
const LOSSES: u32 = 3;

/// Whose program it is: the id, because another may have the name one day.
#[derive(Debug, Clone, Copy)]
pub struct Whose<'a> {
    /// The instance's id.
    pub id: &'a str,
    /// Its name, for people.
    pub name: &'a str,
}

/// What became of a program whose session was lost.
enum Found {
    /// It goes on.
    Alive(Session),
    /// It ended, with a code.
    Ended(i32),
    /// It is gone, and nobody knows how it ended.
    Gone,
}

/// Talks to the program until it ends or the user leaves; gives its exit code.
pub async fn attend(
    cx: &Context,
    whose: Whose<'_>,
    session: Session,
    options: &Options<'_>,
) -> Outcome<u8> {
    let mut ours = Ours::new(cx, options)?;
    let (mut begun, mut losses) = (Instant::now(), 0);
    let mut ended = ours.talk(cx, session).await?;
    while ended == Ended::Lost {
        losses = match begun.elapsed() < PATIENCE {
            true => losses + 1,
            false => 1,
        };
        if losses > LOSSES {
            break;
        }
        cx.note(&format!(
            "The connection to the daemon was lost. {} goes on; waiting for the daemon to be back.",
            whose.name
        ));
        let stdin = options.stdin && ours.has_input();
        let found = tokio::select! {
            found = again(cx, whose, stdin, options.terminal) => found?,
            () = ours.given_up() => return Err(Failure::Interrupted),
        };
        ended = match found {
            Some(Found::Alive(session)) => {
                cx.note(&format!(
                    "Connected again. What it said meanwhile: berth logs {}",
                    whose.name
                ));
                begun = Instant::now();
                resumed(cx, whose, &mut ours, session).await?
            }
            Some(Found::Ended(code)) => Ended::Exited(code),
            Some(Found::Gone) => {
                let what = format!("{} is gone, and how it ended is not known", whose.name);
                return Err(Failure::error(what));
            }
            None => break,
        };
    }
    finish(cx, whose.name, ended)
}

/// Goes on with a session. One that breaks off because the program had ended by then is no failure.
async fn resumed(
    cx: &Context,
    whose: Whose<'_>,
    ours: &mut Ours,
    session: Session,
) -> Outcome<Ended> {
    match ours.talk(cx, session).await {
        Err(failure) => match look(cx, whose, false, false).await {
            Ok(Found::Ended(code)) => Ok(Ended::Exited(code)),
            _ => Err(failure),
        },
        ended => ended,
    }
}

/// Tries until the daemon says what became of the program; `None` when it is away for too long.
async fn again(
    cx: &Context,
    whose: Whose<'_>,
    stdin: bool,
    terminal: bool,
) -> Outcome<Option<Found>> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let error = match look(cx, whose, stdin, terminal).await {
            Ok(found) => return Ok(Some(found)),
            Err(error) => error,
        };
        let soon = matches!(
            error,
            ClientError::Unreachable { .. } | ClientError::Timeout { .. }
        ) || matches!(
            error.code(),
            // It stops just now, or the program did, which is recorded in a moment.
            Some(ErrorCode::Cancelled | ErrorCode::Conflict)
        );
        match (soon, Instant::now() < deadline) {
            (true, true) => tokio::time::sleep(PAUSE).await,
            (true, false) => return Ok(None),
            (false, _) => return Err(error.into()),
        }
    }
}

async fn look(
    cx: &Context,
    whose: Whose<'_>,
    stdin: bool,
    terminal: bool,
) -> Result<Found, ClientError> {
    let instance = match cx.client.show_instance(whose.id).await {
        Ok(shown) => shown.instance,
        Err(error) if error.code() == Some(ErrorCode::NotFound) => {
            return Ok(match past::of(&cx.client, whose.id).await? {
                Some(Past::Ended(code)) => Found::Ended(code),
                Some(Past::NotStarted { .. }) | None => Found::Gone,
            });
        }
        Err(error) => return Err(error),
    };
    let live = ["prepared", "running", "paused", "stopping"].contains(&instance.status.as_str());
    if !live {
        return Ok(instance
            .exit
            .map_or(Found::Gone, |exit| Found::Ended(exit.code)));
    }
    let attach = Attach {
        stdin,
        // The daemon went away before it was started.
        start: instance.status == "prepared",
        size: term::size().filter(|_| terminal),
    };
    let session = cx.client.attach_instance(whose.id, &attach).await?;
    Ok(Found::Alive(session))
}

/// What a session's end means for the command: the code of the program, as the daemon tells it
/// when the stream did not.
fn finish(cx: &Context, name: &str, ended: Ended) -> Outcome<u8> {
    match ended {
        Ended::Exited(code) => Ok(code.clamp(0, 255) as u8),
        Ended::Detached => {
            cx.say(&format!(
                "Left {name} running. Back to it: berth attach {name}"
            ));
            Ok(0)
        }
        Ended::Lost => Err(Failure::said(
            Exit::Unreachable,
            format!("the connection to the daemon was lost; {name} goes on without it"),
        )
        .advise(format!(
            "once the daemon is back: berth attach {name}, or berth logs {name}"
        ))),
    }
}
