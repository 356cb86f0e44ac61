//! `logs`: what a program wrote.

use api::client::LogsQuery;
use clap::{Args, ValueEnum};
use model::Timestamp;

use crate::cli::{
    Context, complete,
    exit::{Failure, Outcome},
    human, parse,
    suggest::{Noun, on_missing},
};

/// One of the two streams.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Stream {
    Stdout,
    Stderr,
}

/// Flags of `logs`.
#[derive(Debug, Args)]
pub struct LogsArgs {
    /// Go on as more comes
    #[arg(short, long)]
    follow: bool,
    /// Only the last so many lines
    #[arg(short = 'n', long, value_name = "LINES")]
    tail: Option<u64>,
    /// Only what is newer: a time such as 2026-11-20T10:00:00Z, or how long ago, such as 10m
    #[arg(long, value_name = "TIME", value_parser = since)]
    since: Option<String>,
    /// Put the time before each line
    #[arg(short, long)]
    timestamps: bool,
    /// Only one of the two streams
    #[arg(long, value_enum)]
    stream: Option<Stream>,
    /// The instance
    #[arg(add = complete::instances())]
    name: String,
}

/// A moment in RFC 3339, or a duration before now.
fn since(text: &str) -> Result<String, String> {
    if Timestamp::parse(text).is_some() {
        return Ok(text.to_owned());
    }
    let ago = parse::duration::duration(text).map_err(|_| {
        format!(
            "{text:?} is neither a time such as 2026-11-20T10:00:00Z nor a duration such as 10m"
        )
    })?;
    let ago = u64::try_from(ago.as_millis()).unwrap_or(u64::MAX);
    let then = human::now().as_millis().saturating_sub(ago);
    Ok(Timestamp::from_millis(then).to_string())
}

impl LogsArgs {
    /// Prints the log, byte for byte.
    pub async fn run(self, cx: &Context) -> Outcome {
        let query = LogsQuery {
            follow: self.follow,
            tail: self.tail,
            since: self.since,
            timestamps: self.timestamps,
            stream: self.stream.map(|stream| {
                match stream {
                    Stream::Stdout => "stdout",
                    Stream::Stderr => "stderr",
                }
                .to_owned()
            }),
        };
        let mut bytes = match cx.client.instance_logs(&self.name, &query).await {
            Ok(bytes) => bytes,
            Err(error) => {
                return Err(on_missing(cx, Noun::Instance, &self.name, error.into()).await);
            }
        };
        match bytes.copy_to(&mut tokio::io::stdout()).await {
            Ok(_) => Ok(()),
            Err(api::client::ClientError::Local { source, .. }) => Err(Failure::Output(source)),
            Err(error) => Err(error.into()),
        }
    }
}
