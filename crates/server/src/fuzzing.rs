//! Fuzz targets: plain functions over bytes, called by the fuzzer and by property tests. Each
//! checks what must hold for any input and otherwise only must not panic.

use api::routes;

use crate::{json, query, router::Router, socket};

/// All of them.
pub fn fuzz(data: &[u8]) {
    query(data);
    json(data);
    path(data);
    message(data);
}

/// A query, against every route.
pub fn query(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    for route in routes::ROUTES {
        let Ok(mut query) = query::Query::parse(text, route.query) else {
            continue;
        };
        for known in route.query {
            if let Ok(Some(seconds)) = query.seconds(known.name) {
                assert!(seconds.as_secs() <= 86_400);
            }
        }
    }
}

/// A JSON body.
pub fn json(data: &[u8]) {
    if let Err(problem) = json::parse::<api::InstanceCreate>(data) {
        assert!(!problem.detail.is_empty());
    }
}

/// A request path.
pub fn path(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    for method in ["GET", "POST", "BREW"] {
        if let Err(problem) = Router::get().find(method, text) {
            assert!(matches!(problem.status, 400 | 404 | 405));
        }
    }
}

/// A message of an attach or exec.
pub fn message(data: &[u8]) {
    let _ = socket::parse_binary(bytes::Bytes::copy_from_slice(data));
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = socket::parse_control(text);
    }
}
