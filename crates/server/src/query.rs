//! A request's query, checked against the parameters its route has. Handlers read typed values
//! from it; every error names the parameter, says what was given and what would be right.

use std::time::Duration;

use api::{ErrorCode, Problem, routes};
use model::Timestamp;

use crate::json::nearest;

/// Most bytes of a query, and of one decoded value.
const MAX_BYTES: usize = 8 << 10;
/// Longest anyone may ask to wait.
const MAX_WAIT_S: f64 = 86_400.0;

/// The parameters given.
#[derive(Debug, Default)]
pub(crate) struct Query(Vec<(&'static str, String)>);

impl Query {
    /// Parses the part after `?`.
    pub(crate) fn parse(text: &str, known: &'static [routes::Query]) -> Result<Self, Problem> {
        if text.len() > MAX_BYTES {
            return Err(invalid(format!(
                "the query is longer than {MAX_BYTES} bytes"
            )));
        }
        let mut given: Vec<(&'static str, String)> = Vec::new();
        for pair in text.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let name = decode(name, true)?;
            let Some(found) = known.iter().find(|query| query.name == name) else {
                return Err(unknown(&name, known));
            };
            if given.iter().any(|(have, _)| *have == found.name) {
                return Err(invalid(format!("parameter {name:?} is given twice")));
            }
            given.push((found.name, decode(value, true)?));
        }
        Ok(Self(given))
    }

    /// The value as it is.
    pub(crate) fn text(&mut self, name: &str) -> Option<String> {
        let at = self.0.iter().position(|(have, _)| *have == name)?;
        Some(self.0.swap_remove(at).1)
    }

    /// A value that must be there.
    pub(crate) fn required(&mut self, name: &str) -> Result<String, Problem> {
        match self.text(name) {
            Some(value) if !value.is_empty() => Ok(value),
            _ => Err(invalid(format!("parameter {name:?} is missing"))
                .hint(format!("add {name}=… to the query"))),
        }
    }

    /// `true` or `false`.
    pub(crate) fn flag(&mut self, name: &str, default: bool) -> Result<bool, Problem> {
        self.choice(name, &[("true", true), ("false", false)])
            .map(|value| value.unwrap_or(default))
    }

    /// One of some words.
    pub(crate) fn choice<T: Copy>(
        &mut self,
        name: &str,
        choices: &[(&str, T)],
    ) -> Result<Option<T>, Problem> {
        let Some(value) = self.text(name) else {
            return Ok(None);
        };
        let found = choices.iter().find(|(word, _)| *word == value);
        let words: Vec<_> = choices.iter().map(|(word, _)| *word).collect();
        found.map(|(_, choice)| Some(*choice)).ok_or_else(|| {
            invalid(format!(
                "parameter {name:?} is {value:?}: use {}",
                words.join(" or ")
            ))
        })
    }

    /// A whole number.
    pub(crate) fn number<T: std::str::FromStr>(
        &mut self,
        name: &str,
    ) -> Result<Option<T>, Problem> {
        self.parsed(name, "a whole number", |value| value.parse().ok())
    }

    /// A time in seconds, fractions allowed.
    pub(crate) fn seconds(&mut self, name: &str) -> Result<Option<Duration>, Problem> {
        self.parsed(name, "a number of seconds from 0 to 86400", |value| {
            let seconds: f64 = value.parse().ok()?;
            (0.0..=MAX_WAIT_S)
                .contains(&seconds)
                .then(|| Duration::from_secs_f64(seconds))
        })
    }

    /// A moment.
    pub(crate) fn timestamp(&mut self, name: &str) -> Result<Option<Timestamp>, Problem> {
        self.parsed(
            name,
            "a time in UTC such as 2026-11-20T10:00:00Z",
            Timestamp::parse,
        )
    }

    fn parsed<T>(
        &mut self,
        name: &str,
        what: &str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Result<Option<T>, Problem> {
        let Some(value) = self.text(name) else {
            return Ok(None);
        };
        parse(&value).map(Some).ok_or_else(|| {
            invalid(format!(
                "parameter {name:?} is {value:?}: it must be {what}"
            ))
        })
    }
}

/// Decodes percent signs (RFC 3986 §2.1); in a query `+` is a space. The result is UTF-8 without
/// control characters.
pub(crate) fn decode(text: &str, plus_is_space: bool) -> Result<String, Problem> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let mut digit = || char::from(rest.next()?).to_digit(16);
                let (Some(high), Some(low)) = (digit(), digit()) else {
                    return Err(invalid(format!(
                        "{text:?} has a % that is not followed by two hexadecimal digits"
                    )));
                };
                u8::try_from(high * 16 + low).expect("two hexadecimal digits make a byte")
            }
            b'+' if plus_is_space => b' ',
            other => other,
        });
    }
    let decoded =
        String::from_utf8(bytes).map_err(|_| invalid(format!("{text:?} is not UTF-8")))?;
    if decoded.chars().any(char::is_control) {
        return Err(invalid(format!("{text:?} holds control characters")));
    }
    Ok(decoded)
}

fn unknown(name: &str, known: &[routes::Query]) -> Problem {
    let names: Vec<_> = known.iter().map(|query| query.name).collect();
    let problem = invalid(format!("there is no parameter {name:?} here"));
    match nearest(name, &names) {
        Some(near) => problem.hint(format!("did you mean {near:?}?")),
        None if names.is_empty() => problem.hint("this route takes none"),
        None => problem.hint(format!("it takes {}", names.join(", "))),
    }
}

fn invalid(detail: String) -> Problem {
    Problem::new(ErrorCode::Invalid, detail)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn logs(text: &str) -> Result<Query, Problem> {
        Query::parse(text, routes::by_id("instance_logs").query)
    }

    #[test]
    fn values_are_decoded_and_typed() {
        let mut query =
            logs("tail=20&follow=true&since=2026-11-20T10%3A00%3A00Z&&stream=a+b").unwrap();
        assert_eq!(query.number::<usize>("tail").unwrap(), Some(20));
        assert!(query.flag("follow", false).unwrap());
        assert!(!query.flag("timestamps", false).unwrap());
        assert_eq!(
            query.timestamp("since").unwrap(),
            Timestamp::parse("2026-11-20T10:00:00Z")
        );
        assert_eq!(query.text("stream").as_deref(), Some("a b"));
        assert!(query.required("stream").is_err());
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, words) in [
            ("tial=3", "\"tial\""),
            ("tail=1&tail=2", "twice"),
            ("tail=%zz", "hexadecimal"),
            ("tail=%", "hexadecimal"),
            ("tail=%ff", "UTF-8"),
            ("tail=%00", "control"),
        ] {
            let problem = logs(text).unwrap_err();
            assert!(problem.detail.contains(words), "{text}: {problem}");
        }
        assert_eq!(
            logs("tial=3").unwrap_err().hint.as_deref(),
            Some("did you mean \"tail\"?")
        );
        let problem = logs("tail=-1")
            .unwrap()
            .number::<usize>("tail")
            .unwrap_err();
        assert!(problem.detail.contains("\"tail\" is \"-1\""), "{problem}");
        for bad in ["-1", "nan", "inf", "1e9", "x"] {
            let mut query = logs(&format!("tail={bad}")).unwrap();
            assert!(query.seconds("tail").is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_or_refused(text in "\\PC{0,64}") {
            crate::fuzzing::query(text.as_bytes());
        }

        #[test]
        fn what_is_encoded_decodes(text in "[^\\pC]{0,32}") {
            let encoded: String = text.bytes().map(|byte| format!("%{byte:02X}")).collect();
            prop_assert_eq!(decode(&encoded, true).unwrap(), text);
        }
    }
}
