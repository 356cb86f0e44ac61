//! `set`: changes of a spec from the command line, sent as a merge patch (RFC 7396).

use api::InstanceSpec;
use clap::Args;
use serde_json::{Map, Value};

use super::{
    list::find,
    spec::{HealthArgs, LimitArgs},
};
use crate::cli::{
    Context, complete,
    exit::{Failure, Outcome},
    human, parse, patch,
};

/// Flags of `set`.
#[derive(Debug, Args)]
pub struct SetArgs {
    /// Mark it; KEY= takes the mark away
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = parse::key_value)]
    label: Vec<(String, String)>,
    /// The instance
    #[arg(add = complete::instances())]
    name: String,
    /// Any field of the spec, as `berth show -o yaml` names it: memory=1G, env.DEBUG=1; FIELD=
    /// goes back to the usual
    #[arg(value_name = "FIELD=VALUE", value_parser = parse::key_value)]
    fields: Vec<(String, String)>,
    #[command(flatten)]
    limits: LimitArgs,
    #[command(flatten)]
    health: HealthArgs,
}

impl SetArgs {
    /// Changes the spec and says what changed.
    pub async fn run(self, cx: &Context) -> Outcome {
        let mut given = InstanceSpec::default();
        self.limits.apply(&mut given);
        self.health.apply(&mut given);
        let mut wanted = to_value(&given)?;
        // Only what was given: these two are always there.
        for always in ["kind", "image"] {
            wanted.as_object_mut().map(|map| map.remove(always));
        }
        for (key, value) in self.label {
            let value = if value.is_empty() {
                Value::Null
            } else {
                Value::String(value)
            };
            put(&mut wanted, &["labels", &key], value);
        }
        let before = find(cx, &self.name).await?;
        let spec = to_value(&before.spec)?;
        for (path, text) in &self.fields {
            let path: Vec<&str> = path.splitn(2, '.').collect();
            let value = guess(&spec, &wanted, &path, text)?;
            put(&mut wanted, &path, value);
        }
        if wanted.as_object().is_none_or(Map::is_empty) {
            return Err(Failure::usage("there is nothing to set").advise(format!(
                "say what, such as: berth set {} memory=1G",
                self.name
            )));
        }
        let after = cx.client.set_instance(&self.name, &wanted, None).await?;
        report(cx, &self.name, &spec, &to_value(&after.spec)?);
        cx.print(&after.instance.name)
    }
}

/// A document of a spec.
pub fn to_value(spec: &InstanceSpec) -> Outcome<Value> {
    serde_json::to_value(spec)
        .map_err(|error| Failure::error(format!("the spec cannot be written as JSON: {error}")))
}

/// Says on stderr which fields changed.
pub fn report(cx: &Context, name: &str, before: &Value, after: &Value) {
    let changes = patch::diff(before, after);
    let show = |value: Option<&Value>| match value {
        None | Some(Value::Null) => "unset".to_owned(),
        Some(Value::String(text)) => human::clean(text),
        Some(other) => human::clean(&other.to_string()),
    };
    for field in changes.as_object().into_iter().flat_map(Map::keys) {
        cx.note(&format!(
            "{name}: {field} {} → {}",
            show(before.get(field)),
            show(after.get(field))
        ));
    }
}

fn put(target: &mut Value, path: &[&str], value: Value) {
    match path {
        [] => *target = value,
        [key, rest @ ..] => {
            if !target.is_object() {
                *target = Value::Object(Map::new());
            }
            if let Some(map) = target.as_object_mut() {
                put(map.entry(*key).or_insert(Value::Null), rest, value);
            }
        }
    }
}

/// The value that text stands for in a field: the one that makes a spec of the whole. A number
/// where numbers belong, text where text does.
fn guess(spec: &Value, wanted: &Value, path: &[&str], text: &str) -> Outcome<Value> {
    let string = Value::String(text.to_owned());
    let candidates = match text {
        "" => vec![Value::Null],
        _ => serde_json::from_str(text)
            .ok()
            .into_iter()
            .chain([string])
            .collect(),
    };
    let mut why = String::new();
    for candidate in candidates {
        let mut patch = wanted.clone();
        put(&mut patch, path, candidate.clone());
        let mut whole = spec.clone();
        patch::apply(&mut whole, &patch);
        match serde_json::from_value::<InstanceSpec>(whole) {
            Ok(_) => return Ok(candidate),
            Err(error) => why = error.to_string(),
        }
    }
    Err(Failure::usage(format!("{}={text}: {why}", path.join("."))))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn text_becomes_what_the_field_wants() {
        let spec = json!({"kind": "application", "image": "debian"});
        let guess = |path: &[&str], text| guess(&spec, &json!({}), path, text);
        assert_eq!(guess(&["cpus"], "2").unwrap(), json!(2));
        assert_eq!(
            guess(&["memory"], "1073741824").unwrap(),
            json!("1073741824")
        );
        assert_eq!(guess(&["memory"], "1G").unwrap(), json!("1G"));
        assert_eq!(guess(&["read_only"], "true").unwrap(), json!(true));
        assert_eq!(guess(&["memory"], "").unwrap(), Value::Null);
        assert_eq!(guess(&["env", "A"], "1").unwrap(), json!("1"));
        assert_eq!(guess(&["command"], r#"["a"]"#).unwrap(), json!(["a"]));
        assert_eq!(guess(&["cpus"], "many").unwrap_err().exit(), 2);
        assert_eq!(guess(&["cpu"], "1").unwrap_err().exit(), 2);
    }
}
