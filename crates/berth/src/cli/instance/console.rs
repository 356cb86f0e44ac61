//! `console`: the console of a system, with what it showed last.

use api::{client::LogsQuery, stream::Attach};
use clap::Args;

use super::{exec::not_running, foreground, list::find};
use crate::cli::{
    Context, complete,
    exit::Outcome,
    session,
    term::{self, DetachKeys},
};

/// Flags of `console`.
#[derive(Debug, Args)]
pub struct ConsoleArgs {
    /// Begin with so many lines of what it showed before
    #[arg(short = 'n', long, value_name = "LINES", default_value_t = 24)]
    history: u64,
    /// Keys that leave it
    #[arg(long, value_name = "KEYS", value_parser = term::detach_keys, default_value = "ctrl-]")]
    detach_keys: DetachKeys,
    /// The instance
    #[arg(add = complete::instances())]
    name: String,
}

impl ConsoleArgs {
    /// Shows what the console showed last and joins it; gives the exit code if the instance ends
    /// meanwhile.
    pub async fn run(self, cx: &Context) -> Outcome<u8> {
        let detail = find(cx, &self.name).await?;
        cx.note(&format!(
            "Console of {}; {} leaves it",
            self.name, self.detach_keys
        ));
        if self.history > 0 {
            self.show_history(cx).await?;
        }
        let terminal = cx.in_is_terminal;
        let attach = Attach {
            stdin: true,
            start: detail.instance.status == "prepared",
            size: term::size().filter(|_| terminal),
        };
        let session = match cx.client.attach_instance(&self.name, &attach).await {
            Ok(session) => session,
            Err(error) => return Err(not_running(cx, &self.name, error).await),
        };
        let options = session::Options {
            terminal,
            stdin: true,
            detach_keys: &self.detach_keys,
        };
        let whose = foreground::Whose {
            id: &detail.instance.id,
            name: &detail.instance.name,
        };
        foreground::attend(cx, whose, session, &options).await
    }

    async fn show_history(&self, cx: &Context) -> Outcome {
        let query = LogsQuery {
            tail: Some(self.history),
            ..LogsQuery::default()
        };
        let mut bytes = cx.client.instance_logs(&self.name, &query).await?;
        bytes.copy_to(&mut tokio::io::stdout()).await?;
        Ok(())
    }
}
