//! `berth op …`: everything long.

use api::{Operation, OperationState};
use clap::{Args, Subcommand};

use super::{
    Context,
    exit::Outcome,
    human,
    output::{self, Column, ListArgs, Row, ShowArgs, column, wide},
    progress::{self, OnInterrupt},
    table::{Cell, Style},
};

/// The verbs of operations.
#[derive(Debug, Subcommand)]
pub enum OpCommand {
    /// List operations, newest first
    #[command(visible_alias = "ls")]
    List(ListArgs),
    /// Show one operation
    Show {
        #[command(flatten)]
        show: ShowArgs,
        /// The operation
        id: String,
    },
    /// Watch an operation to its end
    Watch(IdArgs),
    /// Cancel an operation and undo what it did
    Cancel(IdArgs),
    /// Try again to undo a stuck operation
    Retry(IdArgs),
}

/// One operation.
#[derive(Debug, Args)]
pub struct IdArgs {
    /// The operation
    id: String,
}

fn state(operation: &Operation) -> (&'static str, Style) {
    match operation.state {
        OperationState::Pending => ("pending", Style::Busy),
        OperationState::Running => ("running", Style::Busy),
        OperationState::Succeeded => ("succeeded", Style::Good),
        OperationState::Failed => ("failed", Style::Bad),
        OperationState::Cancelled => ("cancelled", Style::Dim),
        OperationState::Undoing => ("undoing", Style::Busy),
        OperationState::Stuck => ("stuck", Style::Bad),
    }
}

fn progress(operation: &Operation) -> String {
    let now = &operation.progress;
    match (now.total, now.unit.as_str()) {
        (0, _) => now.message.clone(),
        (total, "bytes") => {
            format!(
                "{} {} of {}",
                now.message,
                human::bytes(now.done),
                human::bytes(total)
            )
        }
        (total, unit) => format!("{} {} of {total} {unit}", now.message, now.done),
    }
}

impl Row for Operation {
    const COLUMNS: &'static [Column<Self>] = &[
        column("ID", |o, _| Cell::from(&o.id)),
        column("KIND", |o, _| Cell::from(&o.kind)),
        column("RESOURCE", |o, _| Cell::from(&o.resource)),
        column("STATE", |o, _| {
            let (text, style) = state(o);
            Cell::styled(text, style)
        }),
        column("AGE", |o, now| Cell::from(human::age(&o.created_at, now))),
        column("PROGRESS", |o, _| match &o.error {
            Some(error) => Cell::from(error.lines().next().unwrap_or_default()),
            None => Cell::from(progress(o)),
        }),
        wide("FINISHED", |o, _| {
            Cell::from(o.finished_at.as_deref().unwrap_or(""))
        }),
    ];
    const TOPIC: &'static str = "operation.";

    fn name(&self) -> &str {
        &self.id
    }
}

fn describe(operation: &Operation) -> Vec<(&'static str, String)> {
    vec![
        ("Id", operation.id.clone()),
        ("Kind", operation.kind.clone()),
        ("Resource", operation.resource.clone()),
        ("State", state(operation).0.to_owned()),
        ("Progress", progress(operation)),
        ("Error", operation.error.clone().unwrap_or_default()),
        (
            "Result",
            operation
                .result
                .as_ref()
                .map(ToString::to_string)
                .unwrap_or_default(),
        ),
        ("Created", operation.created_at.clone()),
        (
            "Finished",
            operation.finished_at.clone().unwrap_or_default(),
        ),
    ]
}

impl OpCommand {
    /// Does it.
    pub async fn run(self, cx: &Context) -> Outcome {
        match self {
            Self::List(args) => {
                output::list(cx, &args, async || Ok(cx.client.list_operations().await?)).await
            }
            Self::Show { show, id } => {
                let operation = cx.client.show_operation(&id, None).await?;
                output::one(cx, show, &operation.id, &operation, describe)
            }
            Self::Watch(args) => {
                let ended = progress::follow(cx, &args.id, OnInterrupt::Leave).await?;
                cx.print(state(&ended).0)
            }
            Self::Cancel(args) => {
                let operation = cx.client.cancel_operation(&args.id).await?;
                cx.print(state(&operation).0)
            }
            Self::Retry(args) => {
                let operation = cx.client.retry_operation(&args.id).await?;
                cx.print(state(&operation).0)
            }
        }
    }
}
