//! JSON from callers into wire types, with errors that people understand. Handlers call it with
//! a body already bounded in size; it never sees a stream.

use api::{ErrorCode, Problem, error::FieldProblem};
use serde::de::DeserializeOwned;

/// Parses a request body. An empty one is an empty object, so that requests whose fields are all
/// optional need none.
///
/// # Errors
/// [`ErrorCode::Invalid`] with the place in the text when it is no JSON, with the path of the
/// field when it is not what the route takes.
pub(crate) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    let bytes = if bytes.is_empty() { b"{}" } else { bytes };
    // serde would take an array for a struct's fields in order.
    if bytes.trim_ascii_start().first() == Some(&b'[') {
        let detail = "the body must be a JSON object, not an array";
        return Err(Problem::new(ErrorCode::Invalid, detail));
    }
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
        let path = error.path().to_string();
        explain(&path, &error.into_inner())
    })?;
    reader.end().map_err(|error| explain(".", &error))?;
    Ok(value)
}

fn explain(path: &str, error: &serde_json::Error) -> Problem {
    let text = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    let message = text.strip_suffix(&place).unwrap_or(&text);
    if !error.is_data() {
        return Problem::new(
            ErrorCode::Invalid,
            format!("the body is not valid JSON: {message}{place}"),
        );
    }
    let (field, message) = friendly(path, message);
    let mut problem = Problem::new(
        ErrorCode::Invalid,
        format!("the body is not what this route takes{place}"),
    );
    problem.fields.push(FieldProblem { field, message });
    problem
}

/// Field and message, out of serde's words.
fn friendly(path: &str, message: &str) -> (String, String) {
    let whole = |path: &str| match path {
        "." => "(body)".to_owned(),
        path => path.to_owned(),
    };
    if let Some(rest) = message.strip_prefix("unknown field ") {
        let mut quoted = rest.split('`').skip(1).step_by(2);
        let name = quoted.next().unwrap_or_default();
        let names: Vec<&str> = quoted.collect();
        let parent = path.strip_suffix(name).unwrap_or(path);
        let field = format!("{}{name}", if parent == "." { "" } else { parent });
        let message = match nearest(name, &names) {
            Some(near) => format!("there is no such field; did you mean {near:?}?"),
            None if names.is_empty() => "there is no such field; none is taken here".to_owned(),
            None => format!("there is no such field; there are {}", names.join(", ")),
        };
        return (field, message);
    }
    if let Some(rest) = message.strip_prefix("missing field ") {
        let name = rest.trim_matches('`');
        let field = match path {
            "." => name.to_owned(),
            path => format!("{path}.{name}"),
        };
        return (field, "is missing".to_owned());
    }
    (whole(path), message.replace('`', "\""))
}

/// The word most like `name`, when one is like it.
pub(crate) fn nearest<'a>(name: &str, words: &[&'a str]) -> Option<&'a str> {
    if name.len() > 64 {
        return None;
    }
    words
        .iter()
        .map(|word| (strsim::damerau_levenshtein(name, word), *word))
        .min()
        .filter(|(distance, word)| *distance <= 1 + word.len() / 4)
        .map(|(_, word)| word)
}

#[cfg(test)]
mod tests {
    use api::{InstanceCreate, StopRequest};
    use proptest::prelude::*;

    use super::*;

    fn refused(text: &str) -> (String, String, String) {
        let problem = parse::<InstanceCreate>(text.as_bytes()).unwrap_err();
        assert_eq!(problem.code, ErrorCode::Invalid);
        let field = problem.fields.into_iter().next();
        let (field, message) = field.map_or_else(Default::default, |it| (it.field, it.message));
        (problem.detail, field, message)
    }

    #[test]
    fn an_unknown_field_is_named_with_its_like() {
        let (detail, field, message) = refused(r#"{"spec":{"image":"x","memry":"1G"}}"#);
        assert!(detail.contains("line 1 column 28"), "{detail}");
        assert_eq!(field, "spec.memry");
        assert_eq!(message, "there is no such field; did you mean \"memory\"?");
        let (_, field, message) = refused(r#"{"zzz":1}"#);
        assert_eq!(field, "zzz");
        assert!(message.ends_with("name, desired, spec"), "{message}");
    }

    #[test]
    fn a_wrong_value_and_a_missing_one_are_named() {
        let (_, field, message) = refused(r#"{"spec":{"ports":[{"port":"x","host_port":1}]}}"#);
        assert_eq!(field, "spec.ports[0].port");
        assert!(message.contains("expected u16"), "{message}");
        let (_, field, message) = refused(r#"{"spec":{"mounts":[{"type":"bind"}]}}"#);
        assert_eq!(
            (&*field, &*message),
            ("spec.mounts[0].target", "is missing")
        );
        let (_, field, message) = refused("{}");
        assert_eq!((&*field, &*message), ("spec", "is missing"));
        let (_, field, _) = refused("7");
        assert_eq!(field, "(body)");
        let (detail, ..) = refused(r#"["web", null, {}]"#);
        assert!(detail.contains("not an array"), "{detail}");
    }

    #[test]
    fn broken_json_is_placed() {
        let (detail, ..) = refused("{\"spec\":\n {,}}");
        assert!(detail.contains("line 2 column 3"), "{detail}");
        let (detail, ..) = refused(r#"{"spec":{}} x"#);
        assert!(detail.contains("trailing characters"), "{detail}");
        let (detail, ..) = refused(&format!("{{\"spec\":{}", "[".repeat(200_000)));
        assert!(detail.len() < 200, "{detail}");
    }

    #[test]
    fn nothing_is_an_empty_object() {
        assert_eq!(parse::<StopRequest>(b"").unwrap(), StopRequest::default());
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..128)) {
            crate::fuzzing::json(&bytes);
        }
    }
}
