//! Sizes, ages and text from others, for people's eyes.

use std::time::{SystemTime, UNIX_EPOCH};

use model::{ByteSize, Timestamp};

/// The time now.
pub fn now() -> Timestamp {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    Timestamp::from_millis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// A number of bytes: `1.5 GiB`.
pub fn bytes(bytes: u64) -> String {
    ByteSize(bytes).to_string()
}

/// Seconds as the largest unit that fits: `45s`, `12m`, `3h`, `2d`.
pub fn seconds(seconds: u64) -> String {
    match seconds {
        0..=119 => format!("{seconds}s"),
        120..=7199 => format!("{}m", seconds / 60),
        7200..=172_799 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86400),
    }
}

/// How long ago a moment in RFC 3339 was; the text itself when it is none. Nothing for the very
/// beginning of the epoch, with which images that are made reproducibly are dated.
pub fn age(at: &str, now: Timestamp) -> String {
    const DAY_MS: u64 = 86_400_000;
    match Timestamp::parse(at) {
        Some(moment) if moment.as_millis() < DAY_MS => String::new(),
        Some(moment) => seconds(now.millis_since(moment) / 1000),
        None => clean(at),
    }
}

/// Text from a guest, an image or a registry, safe to print on a terminal: control characters,
/// which could move the cursor or worse, and the marks that turn the direction of writing around
/// become visible.
pub fn clean(text: &str) -> String {
    let unsafe_char =
        |c: char| c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    if !text.contains(unsafe_char) {
        return text.to_owned();
    }
    text.chars()
        .map(|c| if unsafe_char(c) { '\u{fffd}' } else { c })
        .collect()
}

/// A command line as a shell would take it.
pub fn command(words: &[String]) -> String {
    let quote = |word: &String| {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@%+".contains(c);
        if !word.is_empty() && word.chars().all(plain) {
            word.clone()
        } else {
            format!("'{}'", word.replace('\'', r"'\''"))
        }
    };
    words.iter().map(quote).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_and_text() {
        let now = Timestamp::parse("2026-11-20T10:00:00Z").unwrap();
        for (at, shown) in [
            ("2026-11-20T09:59:59Z", "1s"),
            ("2026-11-20T09:58:00Z", "2m"),
            ("2026-11-20T05:00:00Z", "5h"),
            ("2026-11-10T10:00:00Z", "10d"),
            ("2027-01-01T00:00:00Z", "0s"),
            ("1970-01-01T00:00:00Z", ""),
            ("soon\x1b[2J", "soon\u{fffd}[2J"),
        ] {
            assert_eq!(age(at, now), shown);
        }
        let words = ["sh", "-c", "echo 'a b'", ""].map(str::to_owned);
        assert_eq!(command(&words), r"sh -c 'echo '\''a b'\''' ''");
    }
}
