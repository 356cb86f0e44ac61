//! From a method and a path to a route and its handler. Made once from [`api::routes::ROUTES`];
//! what is not in that table is not served.

use std::sync::LazyLock;

use api::{
    ErrorCode, Problem,
    routes::{ROUTES, Route},
};

use crate::{
    handlers::{HANDLERS, Handler},
    query::decode,
};

/// Longest path.
const MAX_PATH: usize = 1024;

/// A route that was found.
#[derive(Clone)]
pub(crate) struct Found {
    /// Its row of the table.
    pub(crate) route: &'static Route,
    /// Its place in the table.
    pub(crate) index: usize,
    /// What serves it.
    pub(crate) handler: Handler,
    /// The value of its path parameter, decoded; empty without one.
    pub(crate) parameter: String,
}

/// All routes of one path: place in the table and handler of each.
type AtPath = Vec<(usize, Handler)>;

/// The router.
pub(crate) struct Router {
    paths: matchit::Router<AtPath>,
}

static ROUTER: LazyLock<Router> = LazyLock::new(Router::from_table);

impl Router {
    /// The one router.
    pub(crate) fn get() -> &'static Self {
        &ROUTER
    }

    fn from_table() -> Self {
        let mut by_path: Vec<(&'static str, AtPath)> = Vec::new();
        for (index, route) in ROUTES.iter().enumerate() {
            let (_, handler) = HANDLERS
                .iter()
                .find(|(id, _)| *id == route.id)
                .expect("a test proves that every route has a handler");
            match by_path.iter_mut().find(|(path, _)| *path == route.path) {
                Some((_, at)) => at.push((index, *handler)),
                None => by_path.push((route.path, vec![(index, *handler)])),
            }
        }
        let mut paths = matchit::Router::new();
        for (path, at) in by_path {
            paths
                .insert(path, at)
                .expect("a test proves that the table's paths do not clash");
        }
        Self { paths }
    }

    /// The route of a request.
    ///
    /// # Errors
    /// 404 with the nearest path there is, 405 with the methods the path has, 400 when a
    /// parameter is no text.
    pub(crate) fn find(&self, method: &str, path: &str) -> Result<Found, Problem> {
        if path.len() > MAX_PATH {
            return Err(Problem::new(
                ErrorCode::Invalid,
                format!("the path is longer than {MAX_PATH} bytes"),
            ));
        }
        let Ok(matched) = self.paths.at(path) else {
            return Err(no_path(path));
        };
        let Some((index, handler)) = matched
            .value
            .iter()
            .find(|(index, _)| ROUTES[*index].method.as_str() == method)
        else {
            return Err(no_method(method, path, matched.value));
        };
        let parameter = match matched.params.iter().next() {
            Some((_, value)) => decode(value, false)?,
            None => String::new(),
        };
        Ok(Found {
            route: &ROUTES[*index],
            index: *index,
            handler: *handler,
            parameter,
        })
    }

    /// The methods a path has, for the `Allow` header.
    pub(crate) fn allowed(&self, path: &str) -> String {
        self.paths
            .at(path)
            .map(|matched| methods(matched.value))
            .unwrap_or_default()
    }
}

fn methods(at: &AtPath) -> String {
    let names: Vec<_> = at
        .iter()
        .map(|(index, _)| ROUTES[*index].method.as_str())
        .collect();
    names.join(", ")
}

fn no_method(method: &str, path: &str, at: &AtPath) -> Problem {
    let method: String = method.chars().take(16).collect();
    let mut problem = Problem::new(ErrorCode::Invalid, format!("{path} has no method {method}"))
        .hint(format!("it has {}", methods(at)));
    problem.status = 405;
    problem
}

fn no_path(path: &str) -> Problem {
    let problem = Problem::new(ErrorCode::NotFound, format!("there is no path {path:?}"));
    match nearest_path(path) {
        Some(near) => problem.hint(format!("did you mean {near}?")),
        None => problem.hint("GET /v1/openapi.json lists all"),
    }
}

/// The path of the table most like this one: parameters match anything, words may be a little
/// off, and a forgotten `/v1` is put back.
fn nearest_path(path: &str) -> Option<String> {
    let trimmed = path.trim_matches('/');
    let with_version = format!("v1/{trimmed}");
    ROUTES
        .iter()
        .filter_map(|route| {
            let table = route.path.trim_matches('/');
            let distance = [(trimmed, 0), (with_version.as_str(), 1)]
                .into_iter()
                .filter_map(|(given, extra)| Some((path_distance(table, given)? + extra, given)))
                .min()?;
            Some((distance, table))
        })
        .min()
        .filter(|((distance, _), _)| *distance <= 3)
        .map(|((_, given), table)| filled(table, given))
}

/// How far a path is from one of the table; `None` when they have not as many segments.
fn path_distance(table: &str, given: &str) -> Option<usize> {
    let (table, given) = (table.split('/'), given.split('/'));
    if table.clone().count() != given.clone().count() {
        return None;
    }
    let segments = table.zip(given).map(|(table, given)| {
        if table.starts_with('{') {
            return usize::from(given.is_empty()) * 9;
        }
        strsim::damerau_levenshtein(table, given)
    });
    Some(segments.sum())
}

/// The table's path with the given parameters.
fn filled(table: &str, given: &str) -> String {
    table
        .split('/')
        .zip(given.split('/'))
        .map(|(table, given)| if table.starts_with('{') { given } else { table })
        .fold(String::new(), |path, segment| path + "/" + segment)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_route_of_the_table_is_served_and_nothing_else() {
        for route in ROUTES {
            let path = route.path.replace("{name}", "web").replace("{id}", "web");
            let found = Router::get().find(route.method.as_str(), &path).unwrap();
            assert_eq!(found.route.id, route.id);
        }
        for (id, _) in HANDLERS {
            assert!(ROUTES.iter().any(|route| route.id == *id), "{id}");
        }
        assert_eq!(HANDLERS.len(), ROUTES.len());
    }

    #[test]
    fn parameters_are_decoded() {
        let found = Router::get().find("GET", "/v1/instances/a%20b").unwrap();
        assert_eq!(found.parameter, "a b");
        let Err(problem) = Router::get().find("GET", "/v1/instances/%00") else {
            panic!("a control character went through");
        };
        assert_eq!(problem.status, 400);
    }

    #[test]
    fn near_paths_are_named() {
        for (path, near) in [
            ("/v1/instance", Some("/v1/instances")),
            ("/instances", Some("/v1/instances")),
            ("/v1/instances/web/strat", Some("/v1/instances/web/start")),
            ("/v1/instances/", Some("/v1/instances")),
            ("/completely/other/thing", None),
            ("/", None),
        ] {
            assert_eq!(nearest_path(path).as_deref(), near, "{path}");
        }
    }

    #[test]
    fn a_method_that_is_not_there_is_refused_with_those_that_are() {
        let Err(problem) = Router::get().find("PUT", "/v1/instances/web") else {
            panic!("there is no such method");
        };
        assert_eq!(problem.status, 405);
        assert_eq!(
            Router::get().allowed("/v1/instances/web"),
            "GET, PATCH, DELETE"
        );
    }

    proptest! {
        #[test]
        fn any_path_is_found_or_refused(path in "(/[a-z{}%0-9.]{0,12}){0,6}\\PC{0,4}") {
            crate::fuzzing::path(path.as_bytes());
        }
    }
}
