//! Another spec for an instance: a merge patch (RFC 7396) against the wire document, so that
//! `set`, `edit` and any client change the same thing the same way.

use std::time::Duration;

use api::{ErrorCode, InstanceDetail, Problem};
use model::{InstanceSpec, record::InstanceRecord};
use serde_json::Value;

use crate::{
    Control,
    error::{invalid, wrong_field},
    wire::{self, from_wire, to_wire},
};

/// Most time an answer waits for the node to bring a change into force; it goes on after.
const IN_FORCE: Duration = Duration::from_secs(10);

impl Control {
    pub(crate) async fn set(
        &self,
        name: &str,
        patch: &Value,
        generation: Option<u64>,
    ) -> Result<InstanceDetail, Problem> {
        if !patch.is_object() {
            let text = "a change is a JSON object (RFC 7396)";
            return Err(Problem::new(ErrorCode::Invalid, text));
        }
        let record = self
            .change(name, generation, |record, status| {
                let live = wire::phase(record, status).is_live();
                let spec = patched(&record.spec, patch)?;
                check_fixed(record, &spec, live)?;
                record.spec = spec;
                Ok(())
            })
            .await?;
        self.wait_in_force(&record, IN_FORCE).await?;
        self.detail(&record).await
    }
}

fn patched(spec: &InstanceSpec, patch: &Value) -> Result<InstanceSpec, Problem> {
    let unreadable =
        |error: serde_json::Error| Problem::new(ErrorCode::Invalid, format!("the change: {error}"));
    let mut document = serde_json::to_value(to_wire(spec)).map_err(unreadable)?;
    merge(&mut document, patch);
    let wire: api::InstanceSpec = serde_json::from_value(document).map_err(unreadable)?;
    from_wire(&wire).map_err(|wrong| invalid("the change", wrong))
}

/// RFC 7396 §2.
fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(serde_json::Map::new());
    }
    let Value::Object(target) = target else {
        return;
    };
    for (key, value) in patch {
        if value.is_null() {
            target.remove(key);
        } else {
            merge(target.entry(key.clone()).or_insert(Value::Null), value);
        }
    }
}

/// Refuses changes of what an instance was made with, and, while it runs, of what only a start
/// reads.
fn check_fixed(record: &InstanceRecord, new: &InstanceSpec, live: bool) -> Result<(), Problem> {
    let old = &record.spec;
    let made_with: [(&str, bool); 5] = [
        ("kind", old.kind == new.kind),
        ("image", old.image == new.image),
        ("network", old.network == new.network),
        ("ports", old.ports == new.ports),
        (
            "user_namespace",
            old.security.user_namespace == new.security.user_namespace,
        ),
    ];
    if let Some((field, _)) = made_with.iter().find(|(_, same)| !same) {
        return Err(wrong_field(
            field,
            "fixed when the instance is created; make another one",
        ));
    }
    if !live {
        return Ok(());
    }
    let read_at_start: [(&str, bool); 5] = [
        ("the process", old.process == new.process),
        ("security", old.security == new.security),
        ("mounts", old.mounts == new.mounts),
        ("hostname", old.hostname == new.hostname),
        ("log", old.log == new.log),
    ];
    match read_at_start.iter().find(|(_, same)| !same) {
        None => Ok(()),
        Some((what, _)) => {
            let name = &record.name;
            let text = format!("{what} of {name:?} cannot be changed while it runs");
            Err(Problem::new(ErrorCode::Conflict, text).hint(format!("stop it: berth stop {name}")))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// The examples of RFC 7396, appendix A.
    #[test]
    fn merges_as_the_standard_says() {
        for (target, patch, result) in [
            (json!({"a": "b"}), json!({"a": "c"}), json!({"a": "c"})),
            (
                json!({"a": "b"}),
                json!({"b": "c"}),
                json!({"a": "b", "b": "c"}),
            ),
            (json!({"a": "b"}), json!({"a": null}), json!({})),
            (json!({"a": ["b"]}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": "c"}), json!({"a": ["b"]}), json!({"a": ["b"]})),
            (
                json!({"a": {"b": "c"}}),
                json!({"a": {"b": "d", "c": null}}),
                json!({"a": {"b": "d"}}),
            ),
            (json!(["a", "b"]), json!(["c", "d"]), json!(["c", "d"])),
            (
                json!({"e": null}),
                json!({"a": 1}),
                json!({"e": null, "a": 1}),
            ),
            (
                json!({}),
                json!({"a": {"bb": {"ccc": null}}}),
                json!({"a": {"bb": {}}}),
            ),
        ] {
            let mut merged = target;
            merge(&mut merged, &patch);
            assert_eq!(merged, result);
        }
    }
}
