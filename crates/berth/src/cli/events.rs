//! `events`: what happens, as it happens.

use api::{Event, client::EventsQuery};
use clap::Args;

use super::{
    Context,
    exit::Outcome,
    filter::{self, Filter},
    output::{self, Column, Format, ListArgs, Row, ShowArgs, column},
    table::Cell,
};

/// Flags of `events`.
#[derive(Debug, Args)]
pub struct EventsArgs {
    #[command(flatten)]
    show: ShowArgs,
    /// Show only what matches, such as type=instance.* or resource=instances/web
    #[arg(long, value_name = "KEY=VALUE", value_parser = filter::filter)]
    filter: Vec<Filter>,
    /// Begin after this sequence number, instead of now
    #[arg(long, value_name = "SEQUENCE")]
    since: Option<u64>,
    /// End at the present instead of waiting for more
    #[arg(long, requires = "since")]
    no_follow: bool,
}

impl Row for Event {
    const COLUMNS: &'static [Column<Self>] = &[
        column("TIME", |e, _| Cell::from(&e.at)),
        column("TYPE", |e, _| Cell::from(format!("{:<20}", e.kind))),
        column("RESOURCE", |e, _| Cell::from(format!("{:<20}", e.resource))),
        column("MESSAGE", |e, _| Cell::from(&e.message)),
    ];
    const TOPIC: &'static str = "";

    fn name(&self) -> &str {
        &self.resource
    }
}

impl EventsArgs {
    /// Prints events until interrupted.
    pub async fn run(self, cx: &Context) -> Outcome {
        let query = EventsQuery {
            since: self.since,
            until_now: self.no_follow,
        };
        let mut events = cx.client.events(query).await?;
        let args = ListArgs {
            show: self.show,
            filter: Vec::new(),
            no_headers: true,
            watch: true,
        };
        while let Some(event) = events.next().await? {
            let kept = keep(event, &self.filter);
            match kept {
                Some(event) if self.show.output == Format::Json => {
                    output::write_json_line(&mut std::io::stdout().lock(), &event)?;
                }
                Some(event) => output::rows(cx, &args, &[event], false)?,
                None => {}
            }
        }
        Ok(())
    }
}

/// One event at a time cannot tell a slip of the pen in a filter from an event without the field.
fn keep(event: Event, filters: &[Filter]) -> Option<Event> {
    filter::apply(vec![event], filters).ok()?.pop()
}
