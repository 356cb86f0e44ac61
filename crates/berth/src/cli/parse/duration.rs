//! Durations as people write them: `30s`, `1m30s`, `500ms`, `2h`; a plain number is seconds.

use std::time::Duration;

const UNITS: [(&str, f64); 5] = [
    ("ms", 0.001),
    ("s", 1.0),
    ("m", 60.0),
    ("h", 3600.0),
    ("d", 86400.0),
];

/// More than a century is a mistake.
const MAX_SECONDS: f64 = 4e9;

/// Reads a duration.
pub fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a duration: write for example 30s, 1m30s or 500ms");
    if let Ok(seconds) = text.parse::<u32>() {
        return Ok(Duration::from_secs(u64::from(seconds)));
    }
    let mut rest = text;
    let mut total = 0.0;
    while !rest.is_empty() {
        let digits = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .ok_or_else(wrong)?;
        let number: f64 = rest[..digits].parse().map_err(|_| wrong())?;
        rest = &rest[digits..];
        let end = rest
            .find(|c: char| !c.is_ascii_alphabetic())
            .unwrap_or(rest.len());
        let (_, unit) = UNITS
            .iter()
            .find(|(unit, _)| *unit == &rest[..end])
            .ok_or_else(wrong)?;
        total += number * unit;
        rest = &rest[end..];
    }
    if text.is_empty() || total > MAX_SECONDS {
        return Err(wrong());
    }
    Ok(Duration::from_secs_f64(total))
}

/// Reads a duration as seconds.
pub fn seconds(text: &str) -> Result<f64, String> {
    duration(text).map(|duration| duration.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, millis) in [
            ("5", 5000),
            ("30s", 30_000),
            ("1m30s", 90_000),
            ("500ms", 500),
            ("1.5h", 5_400_000),
            ("2d", 172_800_000),
        ] {
            assert_eq!(duration(text).unwrap().as_millis(), millis, "{text}");
        }
        for bad in ["", "s", "-5", "5x", "1m30", "1..5s", "99999999d", "é"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
