//! Every route of the API, as data: the daemon's router, its access checks, the client and the
//! OpenAPI document are all made from this table.

use model::token::Scope;
use schemars::{JsonSchema, Schema, SchemaGenerator};

use crate::{stream, types};

/// HTTP methods in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Method {
    /// Looks.
    Get,
    /// Makes or does.
    Post,
    /// Writes whole.
    Put,
    /// Changes in part (RFC 7396).
    Patch,
    /// Deletes.
    Delete,
}

impl Method {
    /// As in a request line.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Post => "POST",
            Self::Put => "PUT",
            Self::Patch => "PATCH",
            Self::Delete => "DELETE",
        }
    }
}

/// Makes the JSON schema of a type.
pub type SchemaOf = fn(&mut SchemaGenerator) -> Schema;

/// What a request carries.
#[derive(Clone, Copy)]
pub enum Body {
    /// Nothing.
    None,
    /// A JSON document.
    Json(SchemaOf),
    /// A JSON merge patch (RFC 7396) against the type.
    MergePatch(SchemaOf),
    /// Bytes of the media type, streamed.
    Bytes(&'static str),
}

/// What a good answer carries.
#[derive(Clone, Copy)]
pub enum Answer {
    /// Nothing: status 204.
    Empty,
    /// A JSON document: status 200.
    Json(SchemaOf),
    /// An operation or instance that goes on after the answer: status 202.
    Accepted(SchemaOf),
    /// JSON documents, one a line, as they come.
    Lines(SchemaOf),
    /// Bytes of the media type, streamed.
    Bytes(&'static str),
    /// A WebSocket (see [`crate::stream`]) whose first message is of the type.
    Socket(SchemaOf),
}

/// One parameter of a query.
#[derive(Debug, Clone, Copy)]
pub struct Query {
    /// Its name.
    pub name: &'static str,
    /// What it does.
    pub description: &'static str,
}

/// One route.
#[derive(Clone, Copy)]
pub struct Route {
    /// Unique name: `operationId` in OpenAPI.
    pub id: &'static str,
    /// Method.
    pub method: Method,
    /// Path with parameters in braces.
    pub path: &'static str,
    /// Least scope of a token that may call it; `None` for the open ones.
    pub scope: Option<Scope>,
    /// One sentence for people.
    pub summary: &'static str,
    /// Query parameters.
    pub query: &'static [Query],
    /// Request body.
    pub body: Body,
    /// Good answer.
    pub answer: Answer,
}

fn of<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    generator.subschema_for::<T>()
}

const fn query(name: &'static str, description: &'static str) -> Query {
    Query { name, description }
}

const WAIT: Query = query("wait_s", "Answer when it is done, or after so many seconds");
const LABEL: Query = query("label", "Only those with this label: `key` or `key=value`");

const fn route(
    id: &'static str,
    method: Method,
    path: &'static str,
    scope: Scope,
    summary: &'static str,
    answer: Answer,
) -> Route {
    Route {
        id,
        method,
        path,
        scope: Some(scope),
        summary,
        query: &[],
        body: Body::None,
        answer,
    }
}

const fn get(id: &'static str, path: &'static str, summary: &'static str, answer: Answer) -> Route {
    route(id, Method::Get, path, Scope::Read, summary, answer)
}

const fn post(
    id: &'static str,
    path: &'static str,
    summary: &'static str,
    body: Body,
    answer: Answer,
) -> Route {
    let mut made = route(id, Method::Post, path, Scope::Operate, summary, answer);
    made.body = body;
    made
}

const fn delete(
    id: &'static str,
    path: &'static str,
    summary: &'static str,
    answer: Answer,
) -> Route {
    route(id, Method::Delete, path, Scope::Operate, summary, answer)
}

impl Route {
    const fn with(mut self, query: &'static [Query]) -> Self {
        self.query = query;
        self
    }

    const fn scoped(mut self, scope: Option<Scope>) -> Self {
        self.scope = scope;
        self
    }
}

const PATCH_INSTANCE: Route = {
    let mut made = route(
        "set_instance",
        Method::Patch,
        "/v1/instances/{name}",
        Scope::Operate,
        "Change the spec of an instance; limits take effect at once",
        Answer::Json(of::<types::InstanceDetail>),
    );
    made.body = Body::MergePatch(of::<types::InstanceSpec>);
    made
};

const PUT_FILES: Route = {
    let mut made = route(
        "put_files",
        Method::Put,
        "/v1/instances/{name}/files",
        Scope::Operate,
        "Unpack a tar archive below a directory inside",
        Answer::Empty,
    );
    made.body = Body::Bytes("application/x-tar");
    made.query = &[query("path", "Absolute path of the directory inside")];
    made
};

const fn power(id: &'static str, path: &'static str, summary: &'static str, body: Body) -> Route {
    post(
        id,
        path,
        summary,
        body,
        Answer::Accepted(of::<types::InstanceDetail>),
    )
    .with(&[WAIT])
}

/// Every route.
pub const ROUTES: &[Route] = &[
    get(
        "info",
        "/v1/info",
        "What this daemon and its host are",
        Answer::Json(of::<types::Info>),
    ),
    get(
        "doctor",
        "/v1/doctor",
        "What this host can and cannot do, and what to change",
        Answer::Json(of::<Vec<types::Check>>),
    ),
    get(
        "openapi",
        "/v1/openapi.json",
        "This description",
        Answer::Bytes("application/json"),
    )
    .scoped(None),
    get(
        "metrics",
        "/metrics",
        "Metrics in the Prometheus text format",
        Answer::Bytes("text/plain"),
    ),
    get(
        "events",
        "/v1/events",
        "What happens, as it happens",
        Answer::Lines(of::<types::Event>),
    )
    .with(&[
        query(
            "since",
            "Sequence number after which to begin; only new ones when absent",
        ),
        query("follow", "`false` ends the stream at the present"),
    ]),
    // Instances.
    get(
        "list_instances",
        "/v1/instances",
        "All instances",
        Answer::Json(of::<Vec<types::Instance>>),
    )
    .with(&[LABEL, query("status", "Only those with this status")]),
    post(
        "create_instance",
        "/v1/instances",
        "Make an instance",
        Body::Json(of::<types::InstanceCreate>),
        Answer::Accepted(of::<types::InstanceDetail>),
    )
    .with(&[WAIT]),
    get(
        "show_instance",
        "/v1/instances/{name}",
        "One instance, by name, id, or the unique beginning of an id",
        Answer::Json(of::<types::InstanceDetail>),
    ),
    PATCH_INSTANCE,
    delete(
        "delete_instance",
        "/v1/instances/{name}",
        "Delete a stopped instance and all that is its own",
        Answer::Accepted(of::<types::Operation>),
    )
    .with(&[WAIT, query("force", "`true` stops it first")]),
    power(
        "start_instance",
        "/v1/instances/{name}/start",
        "Start its program",
        Body::None,
    ),
    power(
        "stop_instance",
        "/v1/instances/{name}/stop",
        "Ask its program to end, then end it",
        Body::Json(of::<types::StopRequest>),
    ),
    power(
        "restart_instance",
        "/v1/instances/{name}/restart",
        "Stop and start its program",
        Body::Json(of::<types::StopRequest>),
    ),
    power(
        "pause_instance",
        "/v1/instances/{name}/pause",
        "Freeze its processes",
        Body::None,
    ),
    power(
        "resume_instance",
        "/v1/instances/{name}/resume",
        "Thaw its processes",
        Body::None,
    ),
    post(
        "signal_instance",
        "/v1/instances/{name}/signal",
        "Send its program a signal",
        Body::None,
        Answer::Empty,
    )
    .with(&[query("signal", "Name or number")]),
    get(
        "wait_instance",
        "/v1/instances/{name}/wait",
        "Answer when an instance is as asked, or with `timeout`",
        Answer::Json(of::<types::InstanceDetail>),
    )
    .with(&[
        query(
            "for",
            "`settled`, `running`, `stopped`, `healthy` or `removed`",
        ),
        query("timeout_s", "Seconds to wait; 30 when absent"),
    ]),
    get(
        "attach_instance",
        "/v1/instances/{name}/attach",
        "The input and output of its program",
        Answer::Socket(of::<stream::Attach>),
    )
    .scoped(Some(Scope::Operate)),
    get(
        "exec_instance",
        "/v1/instances/{name}/exec",
        "Run another program inside",
        Answer::Socket(of::<types::Process>),
    )
    .scoped(Some(Scope::Operate)),
    get(
        "instance_logs",
        "/v1/instances/{name}/logs",
        "What its program wrote",
        Answer::Bytes("text/plain"),
    )
    .with(&[
        query("follow", "`true` goes on as more comes"),
        query("tail", "Only so many lines"),
        query("since", "Only lines since then (RFC 3339)"),
        query("timestamps", "`true` puts the time before each line"),
        query("stream", "`stdout` or `stderr` for only one"),
    ]),
    get(
        "instance_stats",
        "/v1/instances/{name}/stats",
        "What it uses now",
        Answer::Json(of::<types::Stats>),
    ),
    get(
        "instance_cpu_stats",
        "/v1/instances/{name}/cpu-stats",
        "What the software CPU that executes it did so far",
        Answer::Json(of::<types::CpuStats>),
    ),
    get(
        "all_stats",
        "/v1/stats",
        "What every running instance uses now",
        Answer::Json(of::<Vec<types::Stats>>),
    ),
    get(
        "instance_top",
        "/v1/instances/{name}/top",
        "Its processes",
        Answer::Json(of::<Vec<types::TopRow>>),
    ),
    get(
        "get_files",
        "/v1/instances/{name}/files",
        "A path inside as a tar archive",
        Answer::Bytes("application/x-tar"),
    )
    .with(&[query("path", "Absolute path inside")])
    .scoped(Some(Scope::Operate)),
    PUT_FILES,
    // Operations.
    get(
        "list_operations",
        "/v1/operations",
        "Operations, newest first",
        Answer::Json(of::<Vec<types::Operation>>),
    ),
    get(
        "show_operation",
        "/v1/operations/{id}",
        "One operation",
        Answer::Json(of::<types::Operation>),
    )
    .with(&[WAIT]),
    get(
        "watch_operation",
        "/v1/operations/{id}/watch",
        "One operation, at each change, until it ends",
        Answer::Lines(of::<types::Operation>),
    ),
    post(
        "cancel_operation",
        "/v1/operations/{id}/cancel",
        "Cancel an operation and undo what it did",
        Body::None,
        Answer::Accepted(of::<types::Operation>),
    ),
    post(
        "retry_operation",
        "/v1/operations/{id}/retry",
        "Try again to undo a stuck operation",
        Body::None,
        Answer::Accepted(of::<types::Operation>),
    ),
    // Images.
    get(
        "list_images",
        "/v1/images",
        "All images",
        Answer::Json(of::<Vec<types::Image>>),
    ),
    get(
        "image_df",
        "/v1/images/df",
        "What images take on disk",
        Answer::Json(of::<types::ImageDf>),
    ),
    get(
        "show_image",
        "/v1/image",
        "One image, by reference or digest",
        Answer::Json(of::<types::ImageDetail>),
    )
    .with(&[query("image", "Reference or digest")]),
    delete(
        "delete_image",
        "/v1/image",
        "Delete an image's name, and the image with its last name",
        Answer::Empty,
    )
    .with(&[query("image", "Reference or digest")]),
    post(
        "pull_image",
        "/v1/images/pull",
        "Fetch an image from a registry",
        Body::Json(of::<types::ImagePull>),
        Answer::Accepted(of::<types::Operation>),
    ),
    post(
        "push_image",
        "/v1/images/push",
        "Send an image to a registry",
        Body::Json(of::<types::ImagePush>),
        Answer::Accepted(of::<types::Operation>),
    ),
    post(
        "build_image",
        "/v1/images/build",
        "Make an image from a built-in recipe",
        Body::Json(of::<types::ImageBuild>),
        Answer::Accepted(of::<types::Operation>),
    ),
    post(
        "import_image",
        "/v1/images/import",
        "Make an image of a docker archive, an OCI layout or a root file system",
        Body::Bytes("application/x-tar"),
        Answer::Accepted(of::<types::Operation>),
    )
    .with(&[query(
        "reference",
        "Name of the image; those in the archive when absent",
    )]),
    get(
        "export_image",
        "/v1/images/export",
        "An image as an archive",
        Answer::Bytes("application/x-tar"),
    )
    .with(&[
        query("image", "Reference or digest"),
        query("format", "`oci`, `docker` or `rootfs`"),
    ]),
    post(
        "tag_image",
        "/v1/images/tag",
        "Give an image another name",
        Body::Json(of::<types::ImageTag>),
        Answer::Json(of::<types::Image>),
    ),
    post(
        "gc_images",
        "/v1/images/gc",
        "Remove layers and blobs that nothing uses",
        Body::None,
        Answer::Json(of::<types::ImageGc>),
    ),
    // Networks.
    get(
        "list_networks",
        "/v1/networks",
        "All networks",
        Answer::Json(of::<Vec<types::Network>>),
    ),
    post(
        "create_network",
        "/v1/networks",
        "Make a network",
        Body::Json(of::<types::NetworkCreate>),
        Answer::Json(of::<types::Network>),
    ),
    get(
        "show_network",
        "/v1/networks/{name}",
        "One network",
        Answer::Json(of::<types::Network>),
    ),
    delete(
        "delete_network",
        "/v1/networks/{name}",
        "Delete a network that nothing uses",
        Answer::Empty,
    ),
    // Volumes.
    get(
        "list_volumes",
        "/v1/volumes",
        "All volumes",
        Answer::Json(of::<Vec<types::Volume>>),
    ),
    post(
        "create_volume",
        "/v1/volumes",
        "Make a volume",
        Body::Json(of::<types::VolumeCreate>),
        Answer::Json(of::<types::Volume>),
    ),
    get(
        "show_volume",
        "/v1/volumes/{name}",
        "One volume",
        Answer::Json(of::<types::Volume>),
    ),
    delete(
        "delete_volume",
        "/v1/volumes/{name}",
        "Delete a volume that nothing uses, with what it holds",
        Answer::Empty,
    ),
    // Logins at registries.
    get(
        "list_logins",
        "/v1/logins",
        "The registries the daemon is logged in at, without passwords",
        Answer::Json(of::<Vec<types::Login>>),
    ),
    post(
        "log_in",
        "/v1/logins",
        "Log in at a registry, for all pulls and pushes; nothing is kept of what it refuses",
        Body::Json(of::<types::LoginCreate>),
        Answer::Json(of::<types::Login>),
    ),
    delete(
        "log_out",
        "/v1/logins/{name}",
        "Forget the login at a registry",
        Answer::Empty,
    ),
    // Tokens.
    get(
        "list_tokens",
        "/v1/tokens",
        "All tokens, without their secrets",
        Answer::Json(of::<Vec<types::Token>>),
    )
    .scoped(Some(Scope::Admin)),
    post(
        "create_token",
        "/v1/tokens",
        "Make a token; its secret is shown once",
        Body::Json(of::<types::TokenCreate>),
        Answer::Json(of::<types::TokenCreated>),
    )
    .scoped(Some(Scope::Admin)),
    delete(
        "revoke_token",
        "/v1/tokens/{name}",
        "Revoke a token",
        Answer::Empty,
    )
    .scoped(Some(Scope::Admin)),
];

/// The route with an id.
///
/// # Panics
/// When there is none: ids are written in code, and a test calls this with each.
#[must_use]
pub fn by_id(id: &str) -> &'static Route {
    ROUTES
        .iter()
        .find(|route| route.id == id)
        .unwrap_or_else(|| panic!("no route {id:?}"))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn ids_and_paths_are_unique() {
        let mut ids = HashSet::new();
        let mut paths = HashSet::new();
        for route in ROUTES {
            assert!(ids.insert(route.id), "{}", route.id);
            assert!(paths.insert((route.method, route.path)), "{}", route.path);
        }
    }

    #[test]
    fn whoever_only_reads_changes_nothing() {
        for route in ROUTES {
            if route.scope.is_none_or(|scope| scope == Scope::Read) {
                assert_eq!(route.method, Method::Get, "{}", route.id);
                assert!(!matches!(route.answer, Answer::Socket(_)), "{}", route.id);
            }
        }
    }
}
