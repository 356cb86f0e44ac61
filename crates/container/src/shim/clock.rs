//! Points in time, as this module's files and messages write them: RFC 3339 with nanoseconds, UTC.
//!
//! Small and without allocation on the path of every log line. Knows nothing of time zones.

use std::fmt;
use std::str::FromStr;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// A point in time since 1970 with a resolution of 1 ns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Timestamp {
    /// Whole seconds since 1970-01-01T00:00:00Z.
    pub seconds: u64,
    /// And nanoseconds, below 1,000,000,000.
    pub nanos: u32,
}

/// The length of the text of a [`Timestamp`]: `2026-11-20T10:00:00.123456789Z`.
pub const TIMESTAMP_LEN: usize = 30;

/// A text that is no [`Timestamp`].
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not a UTC time such as 2026-11-20T10:00:00.123456789Z")]
pub struct TimestampError(String);

impl Timestamp {
    /// The system clock.
    pub fn now() -> Timestamp {
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Timestamp {
            seconds: since.as_secs(),
            nanos: since.subsec_nanos(),
        }
    }

    /// The text, without allocating.
    pub fn to_bytes(self) -> [u8; TIMESTAMP_LEN] {
        let (year, month, day) = date(self.seconds / 86_400);
        let second = self.seconds % 86_400;
        let mut text = *b"0000-00-00T00:00:00.000000000Z";
        digits(&mut text[0..4], year);
        digits(&mut text[5..7], month);
        digits(&mut text[8..10], day);
        digits(&mut text[11..13], second / 3600);
        digits(&mut text[14..16], second / 60 % 60);
        digits(&mut text[17..19], second % 60);
        digits(&mut text[20..29], u64::from(self.nanos));
        text
    }

    /// Reads the text back; fractions may be shorter or absent.
    pub fn from_bytes(text: &[u8]) -> Option<Timestamp> {
        let shape = text.len() >= 20
            && text.len() <= TIMESTAMP_LEN
            && text.ends_with(b"Z")
            && (text[4], text[7], text[10], text[13], text[16]) == (b'-', b'-', b'T', b':', b':');
        if !shape {
            return None;
        }
        let n = |range: std::ops::Range<usize>| number(&text[range]);
        let (year, month, day) = (n(0..4)?, n(5..7)?, n(8..10)?);
        let (hour, minute, second) = (n(11..13)?, n(14..16)?, n(17..19)?);
        let in_range = year >= 1970
            && (1..=12).contains(&month)
            && (1..=31).contains(&day)
            && hour < 24
            && minute < 60
            && second < 61;
        let nanos = match &text[19..text.len() - 1] {
            [] => 0,
            [b'.', fraction @ ..] if !fraction.is_empty() => {
                number(fraction)? * 10u64.pow(9 - fraction.len() as u32)
            }
            _ => return None,
        };
        let seconds = days(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second;
        in_range.then_some(Timestamp {
            seconds,
            nanos: nanos as u32,
        })
    }
}

fn digits(field: &mut [u8], mut value: u64) {
    for place in field.iter_mut().rev() {
        *place = b'0' + (value % 10) as u8;
        value /= 10;
    }
}

fn number(text: &[u8]) -> Option<u64> {
    text.iter().try_fold(0u64, |n, b| {
        b.is_ascii_digit().then(|| n * 10 + u64::from(b - b'0'))
    })
}

/// Year, month and day of a day since 1970, in the Gregorian calendar (years begin in March, so
/// that the odd day comes last; 400 years have 146,097 days).
fn date(day: u64) -> (u64, u64, u64) {
    let day = day + 719_468;
    let (era, of_era) = (day / 146_097, day % 146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let march = (5 * of_year + 2) / 153;
    let month = if march < 10 { march + 3 } else { march - 9 };
    (
        era * 400 + year + u64::from(month <= 2),
        month,
        of_year - (153 * march + 2) / 5 + 1,
    )
}

/// The inverse of [`date`].
fn days(year: u64, month: u64, day: u64) -> u64 {
    let year = year - u64::from(month <= 2);
    let (era, of_era) = (year / 400, year % 400);
    let march = if month > 2 { month - 3 } else { month + 9 };
    let of_year = (153 * march + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.to_bytes()))
    }
}

impl FromStr for Timestamp {
    type Err = TimestampError;
    fn from_str(text: &str) -> Result<Timestamp, TimestampError> {
        Timestamp::from_bytes(text.as_bytes()).ok_or_else(|| TimestampError(text.to_owned()))
    }
}

impl TryFrom<String> for Timestamp {
    type Error = TimestampError;
    fn try_from(text: String) -> Result<Timestamp, TimestampError> {
        text.parse()
    }
}

impl From<Timestamp> for String {
    fn from(time: Timestamp) -> String {
        time.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_dates_read_and_write() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00.000000000Z"),
            (951_782_400, "2000-02-29T00:00:00.000000000Z"),
            (1_795_168_800, "2026-11-20T10:00:00.000000000Z"),
            (4_107_542_399, "2100-02-28T23:59:59.000000000Z"),
        ] {
            let time = Timestamp { seconds, nanos: 0 };
            assert_eq!(time.to_string(), text);
            assert_eq!(text.parse::<Timestamp>().ok(), Some(time));
        }
        let half = "2026-11-20T10:00:00.5Z".parse::<Timestamp>().ok();
        assert_eq!(half.map(|t| t.nanos), Some(500_000_000));
    }

    proptest::proptest! {
        #[test]
        fn any_time_survives(seconds in 0u64..200_000_000_000, nanos in 0u32..1_000_000_000) {
            let time = Timestamp { seconds, nanos };
            proptest::prop_assert_eq!(Timestamp::from_bytes(&time.to_bytes()), Some(time));
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(0u8..128, 0..40)) {
            let _ = Timestamp::from_bytes(&bytes);
        }
    }
}
