//! Where messages go: standard error, or the file of `--log`, as text or JSON lines.

use std::io::Write as _;
use std::path::PathBuf;

use super::args::Values;

/// Writes messages.
#[derive(Debug)]
pub(crate) struct Logger {
    file: Option<PathBuf>,
    json: bool,
    quiet: bool,
}

impl Logger {
    /// From `--log`, `--log-format` and `--log-level`.
    pub fn from_options(globals: &Values) -> Logger {
        Logger {
            file: globals
                .get("log")
                .filter(|path| !path.is_empty())
                .map(PathBuf::from),
            json: globals.get("log-format") == Some("json"),
            quiet: globals.get("log-level") == Some("error"),
        }
    }

    /// Something the user should know.
    pub fn warning(&self, text: &str) {
        if !self.quiet {
            self.write("warning", text);
        }
    }

    /// Why the command failed. With a log file it is said on standard error too, where people look.
    /// The word "error" is in it since scripts (and youki's contest) look for that.
    pub fn error(&self, text: &str) {
        self.write("error", text);
        if self.file.is_some() {
            let _ = writeln!(std::io::stderr().lock(), "berth-oci: error: {text}");
        }
    }

    fn write(&self, level: &str, text: &str) {
        let line = if self.json {
            let line = serde_json::json!({ "level": level, "msg": text, "time": timestamp() });
            format!("{line}\n")
        } else if self.file.is_some() {
            format!("time=\"{}\" level={level} msg={text:?}\n", timestamp())
        } else {
            format!("berth-oci: {level}: {text}\n")
        };
        // One write per line, so that lines of several writers do not mix.
        match &self.file {
            Some(path) => {
                let file = std::fs::OpenOptions::new()
                    .append(true)
                    .create(true)
                    .open(path);
                if file
                    .and_then(|mut file| file.write_all(line.as_bytes()))
                    .is_err()
                {
                    let _ = std::io::stderr().lock().write_all(line.as_bytes());
                }
            }
            None => {
                let _ = std::io::stderr().lock().write_all(line.as_bytes());
            }
        }
    }
}

/// The time now, as RFC 3339 in UTC.
fn timestamp() -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    rfc3339(now.map_or(0, |now| now.as_secs()))
}

/// Seconds since 1970 as RFC 3339 in UTC (days to civil date by Howard Hinnant's method).
pub(crate) fn rfc3339(seconds: u64) -> String {
    let days = (seconds / 86_400) as i64 + 719_468;
    let era = days / 146_097;
    let day_of_era = days % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_index = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_index + 2) / 5 + 1;
    let month = if month_index < 10 {
        month_index + 3
    } else {
        month_index - 9
    };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let rest = seconds % 86_400;
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    #[test]
    fn dates_are_those_of_date_1() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_795_181_621, "2026-11-20T13:33:41Z"),
        ] {
            assert_eq!(super::rfc3339(seconds), text);
        }
    }
}
