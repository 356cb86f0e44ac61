//! How far an operation is: a bar on a terminal, plain lines elsewhere, nothing with `--quiet`.
//! Always on stderr.

use std::time::Duration;

use api::{Operation, OperationState, Progress};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::{
    Context,
    exit::{Exit, Failure, Outcome},
    human,
};

/// What a Ctrl-C does to an operation that is being watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnInterrupt {
    /// Cancels it: nobody else wants it.
    Cancel,
    /// Leaves it to the daemon.
    Leave,
}

/// Watches an operation to its end, showing how far it is.
pub async fn follow(cx: &Context, id: &str, on_interrupt: OnInterrupt) -> Outcome<Operation> {
    let mut interrupts = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt())?;
    let mut updates = cx.client.watch_operation(id).await?;
    let mut shown = Shown::new(cx);
    loop {
        tokio::select! {
            update = updates.next() => match update? {
                Some(operation) if operation.state.is_final() => {
                    shown.clear();
                    return ended(operation);
                }
                Some(operation) => shown.update(cx, &operation.progress),
                None => return Err(Failure::error("the daemon ended the stream of the operation")
                    .advise(format!("see how it ended: berth op show {id}"))),
            },
            _ = interrupts.recv() => {
                shown.clear();
                match on_interrupt {
                    OnInterrupt::Cancel => { cx.client.cancel_operation(id).await?; }
                    OnInterrupt::Leave => cx.say(&format!(
                        "It goes on in the daemon. Watch it: berth op watch {id} · cancel it: berth op cancel {id}"
                    )),
                }
                return Err(Failure::Interrupted);
            }
        }
    }
}

/// What the end of an operation means for whoever waited for it.
fn ended(operation: Operation) -> Outcome<Operation> {
    let why = operation
        .error
        .clone()
        .unwrap_or_else(|| "no reason was given".into());
    let what = human::clean(&operation.resource);
    match operation.state {
        OperationState::Succeeded => Ok(operation),
        OperationState::Cancelled => Err(Failure::error(format!(
            "{what}: the operation was cancelled"
        ))),
        OperationState::Stuck => Err(Failure::said(
            Exit::Error,
            format!("{what}: it failed and what it had done could not be undone: {why}"),
        )
        .advise(format!(
            "when the cause is gone: berth op retry {}",
            operation.id
        ))),
        _ => Err(Failure::error(why)),
    }
}

/// What is on the screen.
struct Shown {
    bar: Option<ProgressBar>,
    last: String,
}

impl Shown {
    fn new(cx: &Context) -> Self {
        let bar = (cx.err_is_terminal && !cx.quiet).then(|| {
            // Nothing flashes up for what is over at once.
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(10));
            bar.set_style(style("{spinner} {wide_msg}"));
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        Self {
            bar,
            last: String::new(),
        }
    }

    fn update(&mut self, cx: &Context, progress: &Progress) {
        let message = human::clean(&progress.message);
        let Some(bar) = &self.bar else {
            if message != self.last && !message.is_empty() {
                cx.note(&message);
                self.last = message;
            }
            return;
        };
        bar.set_message(message);
        let (done, total) = (progress.done, progress.total);
        if total == 0 {
            bar.set_style(style("{spinner} {wide_msg}"));
        } else if progress.unit == "bytes" {
            bar.set_length(total);
            bar.set_position(done);
            bar.set_style(style(
                "{spinner} {wide_msg} {bar:24} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec}",
            ));
        } else {
            bar.set_length(total);
            bar.set_position(done);
            bar.set_style(style("{spinner} {wide_msg} {bar:24} {pos}/{len}"));
        }
    }

    fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Bytes that pass by, counted on a terminal while it lives.
pub struct Transfer {
    bar: Option<ProgressBar>,
}

/// Counts for a [`Transfer`].
#[derive(Clone)]
pub struct Counter(Option<ProgressBar>);

impl Transfer {
    /// Nothing has passed yet; `what` says what will.
    pub fn new(cx: &Context, what: String) -> Self {
        let bar = Shown::new(cx).bar;
        if let Some(bar) = &bar {
            bar.set_style(style(
                "{spinner} {wide_msg} {binary_bytes} {binary_bytes_per_sec}",
            ));
            bar.set_message(human::clean(&what));
        }
        Self { bar }
    }

    /// Something to count with.
    pub fn counter(&self) -> Counter {
        Counter(self.bar.clone())
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

impl Counter {
    /// So many more have passed.
    pub fn add(&self, bytes: usize) {
        if let Some(bar) = &self.0 {
            bar.inc(bytes as u64);
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("━╸ ")
}
