//! What became of an instance that is gone, as one that goes away with its program soon is: the events of
//! this run of the daemon remember it.

use api::client::{Client, ClientError, EventsQuery};

/// The last that happened to an instance's program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Past {
    /// It ended, with a code.
    Ended(i32),
    /// It could not be started.
    NotStarted {
        /// The code that shells give such an end, if they do.
        code: Option<i32>,
        /// Why.
        message: String,
    },
}

/// What is remembered of the instance with an id; another may have its name by now.
pub async fn of(client: &Client, id: &str) -> Result<Option<Past>, ClientError> {
    let query = EventsQuery {
        since: Some(0),
        until_now: true,
    };
    let mut events = client.events(query).await?;
    let mut last = None;
    while let Some(event) = events.next().await? {
        if event.attributes.get("id").is_none_or(|its| its != id) {
            continue;
        }
        let code = event.attributes.get("exit_code");
        let code = code.and_then(|code| code.parse().ok());
        match (event.kind.as_str(), code) {
            ("instance.exited", Some(code)) => last = Some(Past::Ended(code)),
            ("instance.start_failed", code) => {
                let message = event.message;
                last = Some(Past::NotStarted { code, message });
            }
            _ => {}
        }
    }
    Ok(last)
}
