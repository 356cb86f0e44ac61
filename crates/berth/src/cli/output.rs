//! One way to print everything: tables for people, JSON and YAML for programs, names for shells.

use std::{
    collections::BTreeMap,
    io::{self, Write},
};

use api::client::EventsQuery;
use clap::{Args, ValueEnum};
use model::Timestamp;
use serde::Serialize;
use serde_json::Value;

use super::{
    Context,
    exit::{Failure, Outcome},
    filter::{self, Filter},
    human,
    table::{self, Cell},
    yaml,
};

/// Form of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Table,
    /// For people with wide screens.
    Wide,
    /// Exact: sizes in bytes, times in RFC 3339.
    Json,
    /// The same as YAML.
    Yaml,
    /// One name a line.
    Name,
}

/// Flags of everything that shows something.
#[derive(Debug, Clone, Copy, Args)]
pub struct ShowArgs {
    /// Form of the output
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    pub output: Format,
}

/// Flags of everything that lists something.
#[derive(Debug, Clone, Args)]
pub struct ListArgs {
    #[command(flatten)]
    pub show: ShowArgs,
    /// Show only what matches: any field of the JSON form, `label=KEY[=VALUE]`; `*` stands for
    /// anything; several must all match
    #[arg(long, value_name = "KEY=VALUE", value_parser = filter::filter)]
    pub filter: Vec<Filter>,
    /// Leave out the header line
    #[arg(long)]
    pub no_headers: bool,
    /// Stay, and print what changes as it changes
    #[arg(short, long)]
    pub watch: bool,
}

/// One column of a table.
pub struct Column<T: 'static> {
    /// Its header.
    pub title: &'static str,
    /// Whether only `-o wide` shows it.
    pub wide: bool,
    /// Its cell for a row.
    pub cell: fn(&T, Timestamp) -> Cell,
}

/// A column that is always shown.
pub const fn column<T>(title: &'static str, cell: fn(&T, Timestamp) -> Cell) -> Column<T> {
    Column {
        title,
        wide: false,
        cell,
    }
}

/// A column of `-o wide`.
pub const fn wide<T>(title: &'static str, cell: fn(&T, Timestamp) -> Cell) -> Column<T> {
    Column {
        title,
        wide: true,
        cell,
    }
}

/// What can stand in a list.
pub trait Row: Serialize + Sized + 'static {
    /// Its columns.
    const COLUMNS: &'static [Column<Self>];
    /// What the events about it begin with, such as `instance.`.
    const TOPIC: &'static str;
    /// What other commands call it.
    fn name(&self) -> &str;
}

/// Writes rows in the form asked for.
pub fn rows<T: Row>(cx: &Context, args: &ListArgs, rows: &[T], header: bool) -> Outcome {
    let mut out = io::stdout().lock();
    let format = if cx.quiet {
        Format::Name
    } else {
        args.show.output
    };
    match format {
        Format::Json => write_json(&mut out, &rows)?,
        Format::Yaml => out.write_all(yaml::write(&rows)?.as_bytes())?,
        Format::Name => {
            for row in rows {
                writeln!(out, "{}", human::clean(row.name()))?;
            }
        }
        Format::Table | Format::Wide => {
            let shown: Vec<_> = T::COLUMNS
                .iter()
                .filter(|column| format == Format::Wide || !column.wide)
                .collect();
            let titles: Vec<_> = shown.iter().map(|column| column.title).collect();
            let now = human::now();
            let cells: Vec<Vec<Cell>> = rows
                .iter()
                .map(|row| shown.iter().map(|column| (column.cell)(row, now)).collect())
                .collect();
            let titles = (header && !args.no_headers).then_some(&titles[..]);
            table::write(&mut out, titles, &cells, cx.color_out)?;
        }
    }
    out.flush()?;
    Ok(())
}

/// Writes one thing: `describe` gives the lines for people.
pub fn one<T: Serialize>(
    cx: &Context,
    args: ShowArgs,
    name: &str,
    thing: &T,
    describe: impl FnOnce(&T) -> Vec<(&'static str, String)>,
) -> Outcome {
    let mut out = io::stdout().lock();
    match if cx.quiet { Format::Name } else { args.output } {
        Format::Json => write_json(&mut out, thing)?,
        Format::Yaml => out.write_all(yaml::write(thing)?.as_bytes())?,
        Format::Name => writeln!(out, "{}", human::clean(name))?,
        Format::Table | Format::Wide => table::write_pairs(&mut out, &describe(thing))?,
    }
    out.flush()?;
    Ok(())
}

/// Writes JSON for people and programs alike.
pub fn write_json(out: &mut dyn Write, thing: &impl Serialize) -> Outcome {
    let text = serde_json::to_string_pretty(thing).map_err(|error| {
        Failure::error(format!("the output cannot be written as JSON: {error}"))
    })?;
    writeln!(out, "{text}")?;
    Ok(())
}

/// Writes one JSON document on one line.
pub fn write_json_line(out: &mut dyn Write, thing: &impl Serialize) -> Outcome {
    let text = serde_json::to_string(thing).map_err(|error| {
        Failure::error(format!("the output cannot be written as JSON: {error}"))
    })?;
    writeln!(out, "{text}")?;
    Ok(())
}

/// Lists: fetches, filters, prints, and with `--watch` prints what changes whenever an event says
/// that something did.
pub async fn list<T: Row>(
    cx: &Context,
    args: &ListArgs,
    fetch: impl AsyncFn() -> Outcome<Vec<T>>,
) -> Outcome {
    if !args.watch {
        let found = filter::apply(fetch().await?, &args.filter)?;
        rows(cx, args, &found, true)?;
        if found.is_empty() && cx.out_is_terminal && args.filter.is_empty() {
            cx.note("Nothing here yet.");
        }
        return Ok(());
    }
    // Subscribed before the first look, so that nothing falls in between.
    let mut events = cx.client.events(EventsQuery::default()).await?;
    let mut known: BTreeMap<String, Value> = BTreeMap::new();
    let mut header = true;
    loop {
        let mut present = BTreeMap::new();
        let mut changed = Vec::new();
        for row in filter::apply(fetch().await?, &args.filter)? {
            let form = serde_json::to_value(&row).unwrap_or_default();
            if known.get(row.name()) != Some(&form) {
                present.insert(row.name().to_owned(), form);
                changed.push(row);
            } else {
                present.insert(row.name().to_owned(), form);
            }
        }
        known = present;
        if args.show.output == Format::Json {
            let mut out = io::stdout().lock();
            for row in &changed {
                write_json_line(&mut out, row)?;
            }
        } else if header || !changed.is_empty() {
            rows(cx, args, &changed, header)?;
        }
        header = false;
        loop {
            match events.next().await? {
                Some(event) if event.kind.starts_with(T::TOPIC) => break,
                Some(_) => {}
                None => return Err(Failure::error("the daemon ended the stream of events")),
            }
        }
    }
}
