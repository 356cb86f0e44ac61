//! `--filter KEY=VALUE` on anything that is listed.
//!
//! Keys are the fields of the JSON form, with dots for nested ones, so that whatever `-o json`
//! shows can be filtered by. Values may hold `*`.

use serde_json::Value;

use super::exit::{Failure, Outcome};

/// One condition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    key: String,
    value: String,
}

/// Reads a `--filter` value.
pub fn filter(text: &str) -> Result<Filter, String> {
    let (key, value) = text
        .split_once('=')
        .filter(|(key, _)| !key.is_empty())
        .ok_or("write it as KEY=VALUE, such as status=running, label=tier=web or name=web-*")?;
    Ok(Filter {
        key: key.to_owned(),
        value: value.to_owned(),
    })
}

/// Keeps the rows that meet every condition. `json` gives the JSON form of a row.
pub fn apply<T: serde::Serialize>(rows: Vec<T>, filters: &[Filter]) -> Outcome<Vec<T>> {
    if filters.is_empty() {
        return Ok(rows);
    }
    let forms = rows
        .iter()
        .map(serde_json::to_value)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| Failure::error(format!("a row cannot be filtered: {error}")))?;
    for filter in filters {
        // A key that no row has is a slip of the pen, unless there are no rows or only labels.
        let known =
            filter.key == "label" || forms.iter().any(|form| find(form, &filter.key).is_some());
        let optional = [
            "health",
            "exit",
            "started_at",
            "message",
            "labels",
            "result",
            "error",
        ];
        let top = filter.key.split('.').next().unwrap_or_default();
        if !known && !forms.is_empty() && !optional.contains(&top) {
            let keys = forms[0]
                .as_object()
                .map(|map| map.keys().cloned().collect::<Vec<_>>());
            return Err(Failure::usage(format!(
                "there is nothing called {:?} to filter by",
                filter.key
            ))
            .advise(format!(
                "use one of: {}",
                keys.unwrap_or_default().join(", ")
            )));
        }
    }
    let keep = |form: &Value| filters.iter().all(|filter| matches(form, filter));
    Ok(rows
        .into_iter()
        .zip(&forms)
        .filter(|(_, form)| keep(form))
        .map(|(row, _)| row)
        .collect())
}

fn find<'v>(form: &'v Value, path: &str) -> Option<&'v Value> {
    path.split('.').try_fold(form, |value, key| value.get(key))
}

fn matches(form: &Value, filter: &Filter) -> bool {
    if filter.key == "label" {
        let labels = form.get("labels");
        let (key, wanted) = match filter.value.split_once('=') {
            Some((key, value)) => (key, Some(value)),
            None => (filter.value.as_str(), None),
        };
        return labels
            .and_then(|labels| labels.get(key))
            .is_some_and(|found| wanted.is_none_or(|wanted| is(found, wanted)));
    }
    find(form, &filter.key).is_some_and(|found| is(found, &filter.value))
}

/// Whether a value, or one of a list, is as wanted.
fn is(found: &Value, wanted: &str) -> bool {
    match found {
        Value::String(text) => glob(wanted.as_bytes(), text.as_bytes()),
        Value::Array(list) => list.iter().any(|value| is(value, wanted)),
        Value::Bool(set) => wanted.parse() == Ok(*set),
        Value::Number(number) => wanted == number.to_string(),
        Value::Null | Value::Object(_) => false,
    }
}

/// Whether text matches a pattern in which `*` stands for anything. Linear in the text for each
/// star, whatever the pattern.
pub fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(byte) if *byte == text[t] => {
                p += 1;
                t += 1;
            }
            _ => match star {
                Some((at, from)) => {
                    p = at + 1;
                    t = from + 1;
                    star = Some((at, t));
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn names(filters: &[&str]) -> Outcome<Vec<String>> {
        let rows = vec![
            json!({"name": "web-1", "status": "running", "restarts": 0, "addresses": ["10.0.0.2"],
                   "labels": {"tier": "front"}}),
            json!({"name": "db", "status": "stopped", "restarts": 3, "addresses": [],
                   "exit": {"code": 137}}),
        ];
        let filters: Vec<_> = filters.iter().map(|text| filter(text).unwrap()).collect();
        let kept = apply(rows, &filters)?;
        Ok(kept
            .iter()
            .map(|row| row["name"].as_str().unwrap().to_owned())
            .collect())
    }

    #[test]
    fn rows_meet_every_condition() {
        assert_eq!(names(&["status=running"]).unwrap(), ["web-1"]);
        assert_eq!(names(&["name=*", "restarts=3"]).unwrap(), ["db"]);
        assert_eq!(names(&["name=w*1"]).unwrap(), ["web-1"]);
        assert_eq!(names(&["label=tier"]).unwrap(), ["web-1"]);
        assert_eq!(names(&["label=tier=fr*"]).unwrap(), ["web-1"]);
        assert_eq!(names(&["label=tier=back"]).unwrap(), [] as [&str; 0]);
        assert_eq!(names(&["exit.code=137"]).unwrap(), ["db"]);
        assert_eq!(names(&["addresses=10.*"]).unwrap(), ["web-1"]);
        assert_eq!(
            names(&["status=running", "name=db"]).unwrap(),
            [] as [&str; 0]
        );
        let slip = names(&["stauts=running"]).unwrap_err();
        assert_eq!(slip.exit(), 2);
        assert!(slip.hint().unwrap().contains("status"));
    }

    #[test]
    fn stars_match_without_blowing_up() {
        let text = "a".repeat(5000);
        let pattern = "a*".repeat(1000) + "b";
        assert!(!glob(pattern.as_bytes(), text.as_bytes()));
        assert!(glob(b"**", b""));
        assert!(!glob(b"", b"x"));
    }
}
