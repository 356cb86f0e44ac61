//! The daemon's log: text for people or JSON for machines, on standard error, where systemd and
//! terminals both find it. The journal gets each line with its priority, and without the time and the
//! level, which it keeps itself.

use std::{fmt, io::IsTerminal, os::fd::AsFd};

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::{
    EnvFilter,
    fmt::{
        FmtContext, FormatEvent, FormatFields,
        format::{self, Format, Full, Writer},
    },
    registry::LookupSpan,
};

use crate::cli::daemon::{DaemonArgs, LogFormat};

/// Starts logging.
pub(super) fn start(args: &DaemonArgs) {
    let filter = EnvFilter::try_new(&args.log).unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    match args.log_format {
        LogFormat::Json => log.json().init(),
        LogFormat::Text if goes_to_journal() => log
            .with_ansi(false)
            .event_format(Journal(format::format().without_time().with_level(false)))
            .init(),
        LogFormat::Text => {
            let color = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
            log.with_ansi(color).init();
        }
    }
}

/// Whether standard error is the stream that systemd opened to the journal (systemd.exec(5),
/// `$JOURNAL_STREAM`): the variable alone may be inherited from anywhere.
fn goes_to_journal() -> bool {
    let Ok(stat) = rustix::fs::fstat(std::io::stderr().as_fd()) else {
        return false;
    };
    let here = format!("{}:{}", stat.st_dev, stat.st_ino);
    std::env::var("JOURNAL_STREAM").is_ok_and(|stream| stream == here)
}

/// Lines that begin with their priority (sd-daemon(3)), which the journal takes off.
struct Journal(Format<Full, ()>);

impl<S, N> FormatEvent<S, N> for Journal
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        ctx: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        write!(writer, "<{}>", priority(*event.metadata().level()))?;
        self.0.format_event(ctx, writer, event)
    }
}

/// The priority of a level as syslog numbers them.
const fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        Level::DEBUG | Level::TRACE => 7,
    }
}
