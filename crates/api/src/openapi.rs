//! The OpenAPI 3.1 document, made from [`crate::routes::ROUTES`] and the wire types.

use schemars::{SchemaGenerator, generate::SchemaSettings};
use serde_json::{Map, Value, json};

use crate::{
    error::Problem,
    routes::{Answer, Body, ROUTES, Route},
    stream::Control,
};

/// The document, with keys in a stable order.
#[must_use]
pub fn document() -> Value {
    let settings = SchemaSettings::draft2020_12()
        .with(|settings| settings.definitions_path = "/components/schemas".into());
    let mut generator = SchemaGenerator::new(settings);
    let problem = generator.subschema_for::<Problem>();
    // Not a body of any route, but what streams speak.
    generator.subschema_for::<Control>();

    let mut paths = Map::new();
    for route in ROUTES {
        let item = paths.entry(route.path).or_insert_with(|| json!({}));
        item[route.method.as_str().to_lowercase()] = operation(route, &mut generator);
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Berth",
            "version": "1",
            "summary": "Virtual machines and containers side by side, on any pool of Linux hosts.",
            "contact": { "name": "The Berth authors" },
            "license": { "name": "MIT OR Apache-2.0", "identifier": "MIT OR Apache-2.0" },
        },
        "security": [{ "token": [] }],
        "paths": paths,
        "components": {
            "schemas": generator.take_definitions(true),
            "responses": {
                "Problem": {
                    "description": "What went wrong, why, and what to do",
                    "content": { "application/problem+json": { "schema": problem } },
                },
            },
            "securitySchemes": {
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "Needed over TCP. Over the Unix socket, who may open it may do all.",
                },
            },
        },
    })
}

fn operation(route: &Route, generator: &mut SchemaGenerator) -> Value {
    let mut operation = json!({
        "operationId": route.id,
        "summary": route.summary,
        "responses": { "default": { "$ref": "#/components/responses/Problem" } },
    });
    let (status, answer) = answer(route.answer, generator);
    operation["responses"][status] = answer;
    match route.scope {
        Some(scope) => operation["x-scope"] = json!(scope.as_str()),
        None => operation["security"] = json!([]),
    }
    let parameters = parameters(route);
    if !parameters.is_empty() {
        operation["parameters"] = Value::Array(parameters);
    }
    let content = match route.body {
        Body::None => None,
        Body::Json(schema) => Some(json!({ "application/json": { "schema": schema(generator) } })),
        Body::MergePatch(schema) => {
            Some(json!({ "application/merge-patch+json": { "schema": schema(generator) } }))
        }
        Body::Bytes(media) => Some(json!({ media: {} })),
    };
    if let Some(content) = content {
        operation["requestBody"] = json!({ "required": true, "content": content });
    }
    operation
}

fn answer(answer: Answer, generator: &mut SchemaGenerator) -> (&'static str, Value) {
    match answer {
        Answer::Empty => ("204", json!({ "description": "Done" })),
        Answer::Json(schema) => (
            "200",
            json_answer("The answer", "application/json", schema(generator)),
        ),
        Answer::Accepted(schema) => (
            "202",
            json_answer(
                "Accepted; it goes on",
                "application/json",
                schema(generator),
            ),
        ),
        Answer::Lines(schema) => (
            "200",
            json_answer(
                "One document a line",
                "application/jsonl",
                schema(generator),
            ),
        ),
        Answer::Bytes(media) => (
            "200",
            json!({ "description": "The bytes", "content": { media: {} } }),
        ),
        Answer::Socket(schema) => {
            let schema = schema(generator);
            (
                "101",
                json!({ "description": "A WebSocket", "x-first-message": schema }),
            )
        }
    }
}

fn json_answer(description: &str, media: &str, schema: schemars::Schema) -> Value {
    json!({ "description": description, "content": { media: { "schema": schema } } })
}

fn parameters(route: &Route) -> Vec<Value> {
    let in_path = route
        .path
        .split('/')
        .filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'))
        .map(|name| json!({ "name": name, "in": "path", "required": true, "schema": { "type": "string" } }));
    let in_query = route.query.iter().map(|query| {
        json!({
            "name": query.name, "in": "query", "description": query.description,
            "schema": { "type": "string" },
        })
    });
    in_path.chain(in_query).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Regenerate with `BERTH_BLESS=1 cargo test -p api`.
    #[test]
    fn the_checked_in_document_is_the_generated_one() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/openapi.json");
        let mut made = serde_json::to_string_pretty(&document()).unwrap();
        made.push('\n');
        if std::env::var_os("BERTH_BLESS").is_some() {
            std::fs::write(path, &made).unwrap();
        }
        let found = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            found == made,
            "docs/openapi.json is old: run BERTH_BLESS=1 cargo test -p api"
        );
    }

    #[test]
    fn every_reference_resolves() {
        let document = document();
        let text = document.to_string();
        for part in text.split("\"$ref\":\"").skip(1) {
            let pointer = part.split('"').next().unwrap().trim_start_matches('#');
            assert!(document.pointer(pointer).is_some(), "{pointer}");
        }
    }
}
