//! A daemon made of a few maps: every route of the table, answered as documented.
//!
//! Names lead to faults: an instance called `forbidden` is denied, `late` times out, `broken` is
//! an internal error. Programs are words: see [`crate::programs`].

use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use api::{
    ErrorCode, InstanceCreate, Problem,
    routes::{ROUTES, Route},
};
use axum::{
    Router,
    body::{Body, Bytes},
    extract::{FromRequestParts, Path, Query, Request, ws::WebSocketUpgrade},
    http::{Method, StatusCode},
    response::{IntoResponse, Response},
    routing::{MethodFilter, on},
};
use serde_json::{Value, json};

use crate::programs;

/// What the daemon knows.
#[derive(Default)]
pub struct World {
    pub instances: BTreeMap<String, Value>,
    pub images: BTreeMap<String, Value>,
    pub networks: BTreeMap<String, Value>,
    pub volumes: BTreeMap<String, Value>,
    /// Archives received, with the directory each was for.
    pub received: Vec<(String, Vec<u8>)>,
    /// `If-Match` of each change.
    pub matched: Vec<Option<String>>,
    pub made: u64,
}

pub type Shared = Arc<Mutex<World>>;

/// A running fake; ends with the test's process.
pub struct Fake {
    dir: tempfile::TempDir,
    pub world: Shared,
}

impl Fake {
    pub fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listener = std::os::unix::net::UnixListener::bind(dir.path().join("sock")).unwrap();
        listener.set_nonblocking(true).unwrap();
        let world = Shared::default();
        let router = router(&world);
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let listener = tokio::net::UnixListener::from_std(listener).unwrap();
                axum::serve(listener, router).await.unwrap();
            });
        });
        let fake = Self { dir, world };
        fake.furnish();
        fake
    }

    pub fn host(&self) -> String {
        format!("unix://{}", self.dir.path().join("sock").display())
    }

    pub fn home(&self) -> PathBuf {
        self.dir.path().to_owned()
    }

    fn furnish(&self) {
        let mut world = self.world.lock().unwrap();
        world.image("debian:12", 123 << 20);
        world.image("busybox:latest", 1 << 20);
        for (name, kind) in [("default", "10.77.0.0/24"), ("back", "10.78.0.0/24")] {
            let network = json!({
                "name": name, "ipv4": kind, "gateways": [kind.replace(".0/24", ".1")],
                "isolated": name == "back", "bridge": "berth0", "leases": [],
                "created_at": ago(172_800),
            });
            world.networks.insert(name.into(), network);
        }
    }

    /// Puts an instance there.
    pub fn instance(&self, name: &str, status: &str) {
        let create = InstanceCreate {
            name: Some(name.into()),
            desired: Some(status.into()),
            spec: api::InstanceSpec {
                image: "debian:12".into(),
                ..Default::default()
            },
        };
        self.world.lock().unwrap().add(&create);
    }
}

/// A moment so many seconds ago.
pub fn ago(seconds: u64) -> String {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs();
    model::Timestamp::from_millis((now - seconds) * 1000).to_string()
}

impl World {
    fn image(&mut self, reference: &str, size: u64) {
        let image = json!({
            "reference": reference, "digest": format!("sha256:{}", "ab".repeat(32)),
            "platform": "linux/amd64", "size_bytes": size, "created_at": ago(864_000),
            "instances": 0, "layers": [], "entrypoint": [], "command": ["bash"], "env": ["A=1"],
            "labels": {},
        });
        self.images.insert(reference.into(), image);
    }

    pub fn add(&mut self, create: &InstanceCreate) -> Value {
        self.made += 1;
        let name = create.name.clone().unwrap_or_else(|| "bold-heron".into());
        let status = create.desired.clone().unwrap_or_else(|| "running".into());
        let spec = serde_json::to_value(&create.spec).unwrap();
        let mut detail = json!({
            "id": format!("0192f0c1-7d3e-7aa2-9c41-{:012}", self.made), "name": name,
            "kind": spec["kind"], "image": spec["image"], "status": status,
            "addresses": [format!("10.77.0.{}", self.made + 10)],
            "ports": spec.get("ports").cloned().unwrap_or_else(|| json!([])),
            "labels": spec.get("labels").cloned().unwrap_or_else(|| json!({})),
            "restarts": 0, "created_at": ago(7200), "spec": spec, "desired": status,
            "generation": 1, "directory": format!("/var/lib/berth/instances/{name}"),
            "usage": {"cpu_ns": 0, "read_bytes": 0, "write_bytes": 0, "memory_peak_bytes": 0},
        });
        if spec["image"] == "stillborn" {
            detail["status"] = "stopped".into();
            detail["message"] = "no control group could be made".into();
        }
        self.instances.insert(name, detail.clone());
        detail
    }
}

fn router(world: &Shared) -> Router {
    let mut router = Router::new();
    for route in ROUTES {
        let world = Arc::clone(world);
        let filter = Method::from_bytes(route.method.as_str().as_bytes()).unwrap();
        let handler = move |request: Request| answer(route, world, request);
        router = router.route(
            route.path,
            on(MethodFilter::try_from(filter).unwrap(), handler),
        );
    }
    router
}

/// One request, taken apart.
struct Asked {
    argument: String,
    query: HashMap<String, String>,
    body: Bytes,
    if_match: Option<String>,
}

async fn answer(route: &'static Route, world: Shared, request: Request) -> Response {
    let (mut parts, body) = request.into_parts();
    let path = Path::<HashMap<String, String>>::from_request_parts(&mut parts, &()).await;
    let query = Query::<HashMap<String, String>>::from_request_parts(&mut parts, &()).await;
    let upgrade = WebSocketUpgrade::from_request_parts(&mut parts, &()).await;
    let asked = Asked {
        argument: path
            .map(|path| path.0.into_values().next().unwrap_or_default())
            .unwrap_or_default(),
        query: query.unwrap().0,
        body: axum::body::to_bytes(body, 64 << 20).await.unwrap(),
        if_match: parts
            .headers
            .get("if-match")
            .map(|value| value.to_str().unwrap().to_owned()),
    };
    let answered = match route.id {
        "attach_instance" | "exec_instance" => {
            let exec = route.id == "exec_instance";
            match known(&world, &asked.argument) {
                Ok(detail) if exec && detail["status"] != "running" => Err(Problem::new(
                    ErrorCode::Conflict,
                    format!("{} does not run", asked.argument),
                )),
                Ok(detail) => {
                    let upgrade = upgrade.unwrap();
                    return upgrade
                        .on_upgrade(move |socket| programs::serve(socket, exec, detail, world));
                }
                Err(problem) => Err(problem),
            }
        }
        "get_files" | "put_files" if known(&world, &asked.argument).is_err() => {
            Err(missing("instance", &asked.argument))
        }
        id if id.ends_with("_instance") || id.starts_with("instance_") => {
            instance(id, &world, &asked).await
        }
        "list_instances" => Ok(list(&world.lock().unwrap().instances)),
        _ => other(route.id, &world, &asked),
    };
    answered.unwrap_or_else(refuse)
}

pub fn refuse(problem: Problem) -> Response {
    let status = StatusCode::from_u16(problem.status).unwrap();
    (status, axum::Json(problem)).into_response()
}

fn done(document: Value) -> Result<Response, Problem> {
    Ok(axum::Json(document).into_response())
}

fn empty() -> Result<Response, Problem> {
    Ok(StatusCode::NO_CONTENT.into_response())
}

fn list(map: &BTreeMap<String, Value>) -> Response {
    axum::Json(Value::from_iter(map.values().cloned())).into_response()
}

fn missing(kind: &str, name: &str) -> Problem {
    Problem::new(
        ErrorCode::NotFound,
        format!("there is no {kind} called {name:?}"),
    )
}

/// The instance, or the fault that its name stands for.
fn known(world: &Shared, name: &str) -> Result<Value, Problem> {
    match name {
        "forbidden" => return Err(Problem::new(ErrorCode::Denied, "the token may only read")),
        "late" => {
            return Err(Problem::new(
                ErrorCode::Timeout,
                "it did not happen in time",
            ));
        }
        "broken" => return Err(Problem::new(ErrorCode::Internal, "the daemon stumbled")),
        _ => {}
    }
    let world = world.lock().unwrap();
    let by_id = || world.instances.values().find(|detail| detail["id"] == name);
    let found = world.instances.get(name).or_else(by_id);
    found.cloned().ok_or_else(|| missing("instance", name))
}

async fn instance(id: &str, world: &Shared, asked: &Asked) -> Result<Response, Problem> {
    let name = asked.argument.as_str();
    if id == "create_instance" {
        return create(world, asked);
    }
    let detail = known(world, name)?;
    let become_ = |status: &str| {
        let mut world = world.lock().unwrap();
        let detail = world.instances.get_mut(name).unwrap();
        detail["status"] = json!(status);
        done(detail.clone())
    };
    match id {
        "show_instance" => done(detail),
        "set_instance" => set(world, asked),
        "start_instance" | "resume_instance" | "restart_instance" => become_("running"),
        "stop_instance" => become_("stopped"),
        "pause_instance" => become_("paused"),
        "signal_instance" => empty(),
        "delete_instance" => {
            if detail["status"] == "running" && !asked.query.contains_key("force") {
                return Err(Problem::new(
                    ErrorCode::Conflict,
                    format!("{name} is running"),
                ));
            }
            world.lock().unwrap().instances.remove(name);
            done(operation(
                "instance_delete",
                &format!("instances/{name}"),
                "succeeded",
            ))
        }
        "wait_instance" => {
            let wanted = asked.query["for"].as_str();
            let status = detail["status"].as_str().unwrap();
            if wanted == status || wanted == "healthy" || wanted == "settled" {
                return done(detail);
            }
            let seconds = asked.query["timeout_s"].parse().unwrap();
            tokio::time::sleep(Duration::from_secs(seconds)).await;
            Err(Problem::new(
                ErrorCode::Timeout,
                format!("{name} is {status}, not {wanted}"),
            ))
        }
        "instance_logs" => {
            let mut lines = vec!["one", "two", "three"];
            if let Some(tail) = asked.query.get("tail") {
                lines.drain(..lines.len() - tail.parse::<usize>().unwrap());
            }
            Ok(lines
                .iter()
                .map(|line| format!("{line}\n"))
                .collect::<String>()
                .into_response())
        }
        "instance_top" => done(json!([{
            "pid": 4242, "inner_pid": 1, "uid": 0, "cpu_ms": 1500, "rss_bytes": 3 << 20,
            "state": "S", "command": "evil \u{1b}]0;title\u{7} name",
        }])),
        "instance_stats" => done(stats(name)),
        "instance_cpu_stats" => done(json!({
            "id": name, "name": name,
            "counters": [
                {"name": "translations", "meaning": "Blocks translated.", "vcpus": [1200, 34]},
                {"name": "handlers", "meaning": "Handlers called.", "vcpus": [5, 0]},
            ],
            "untranslated": [{"form": "Cpuid", "count": 3}],
        })),
        other => panic!("{other} has no answer"),
    }
}

fn stats(name: &str) -> Value {
    json!({
        "id": name, "name": name, "at_ms": 1, "cpu_ns": 0, "throttled_ns": 0, "memory_bytes": 64 << 20,
        "memory_peak_bytes": 80 << 20, "memory_limit_bytes": 512 << 20, "swap_bytes": 0,
        "oom_kills": 0, "pids": 3, "pids_limit": 100, "read_bytes": 4096, "write_bytes": 0,
        "rx_bytes": 1500, "tx_bytes": 900,
    })
}

fn create(world: &Shared, asked: &Asked) -> Result<Response, Problem> {
    let create: InstanceCreate = serde_json::from_slice(&asked.body)
        .map_err(|error| Problem::new(ErrorCode::Invalid, error.to_string()))?;
    let mut world = world.lock().unwrap();
    if let Some(name) = create
        .name
        .as_ref()
        .filter(|name| world.instances.contains_key(*name))
    {
        return Err(
            Problem::new(ErrorCode::Conflict, format!("the name {name:?} is taken"))
                .hint("choose another, or berth rm it"),
        );
    }
    let mut detail = world.add(&create);
    match create.spec.image.as_str() {
        "missing" => {
            world.instances.remove(detail["name"].as_str().unwrap());
            Err(
                Problem::new(ErrorCode::NotFound, "no registry has the image \"missing\"")
                    .hint("berth image list shows what is here"),
            )
        }
        // Made only once its operation has been watched.
        "slow" | "doomed" => {
            detail["status"] = json!("creating");
            done(detail)
        }
        _ => done(detail),
    }
}

fn set(world: &Shared, asked: &Asked) -> Result<Response, Problem> {
    let patch: Value = serde_json::from_slice(&asked.body).unwrap();
    let mut world = world.lock().unwrap();
    world.matched.push(asked.if_match.clone());
    let detail = world.instances.get_mut(&asked.argument).unwrap();
    let generation = detail["generation"].as_u64().unwrap();
    if asked
        .if_match
        .as_ref()
        .is_some_and(|wanted| *wanted != format!("\"{generation}\""))
    {
        return Err(Problem::new(
            ErrorCode::Conflict,
            "it was changed meanwhile",
        ));
    }
    for (key, value) in patch.as_object().unwrap() {
        match value {
            Value::Null => drop(detail["spec"].as_object_mut().unwrap().remove(key)),
            value => detail["spec"][key] = value.clone(),
        }
    }
    detail["generation"] = json!(generation + 1);
    done(detail.clone())
}

fn operation(kind: &str, resource: &str, state: &str) -> Value {
    json!({
        "id": "op-1", "kind": kind, "resource": resource, "state": state, "created_at": ago(60),
        "progress": {"message": "fetching layers", "done": 5 << 20, "total": 20 << 20, "unit": "bytes"},
    })
}

fn other(id: &str, world: &Shared, asked: &Asked) -> Result<Response, Problem> {
    let name = asked.argument.as_str();
    let image = asked
        .query
        .get("image")
        .map(String::as_str)
        .unwrap_or_default();
    let mut held = world.lock().unwrap();
    match id {
        "info" => done(json!({
            "version": "0.1.0", "api_version": "1", "pid": 77, "root": "/var/lib/berth",
            "run_dir": "/run/berth", "prefix": "berth", "hostname": "host", "kernel": "6.18.0",
            "cgroups": "v2", "cpus": 2, "memory_bytes": 8u64 << 30, "instances": {"running": 1},
            "started_at": "2026-11-20T10:00:00.000Z", "warnings": ["no quota on the pool"],
        })),
        "list_images" => Ok(list(&held.images)),
        "list_networks" => Ok(list(&held.networks)),
        "list_volumes" => Ok(list(&held.volumes)),
        "show_image" => held
            .images
            .get(image)
            .cloned()
            .map_or(Err(missing("image", image)), done),
        "delete_image" => held
            .images
            .remove(image)
            .map_or(Err(missing("image", image)), |_| empty()),
        "show_network" => held
            .networks
            .get(name)
            .cloned()
            .map_or(Err(missing("network", name)), done),
        "create_volume" => {
            let asked: Value = serde_json::from_slice(&asked.body).unwrap();
            let volume = json!({
                "name": asked["name"], "path": "/var/lib/berth/volumes/x", "size_bytes": 1 << 30,
                "quota": "unsupported", "instances": [], "created_at": ago(3600),
            });
            held.volumes
                .insert(asked["name"].as_str().unwrap().into(), volume.clone());
            done(volume)
        }
        "delete_volume" => held
            .volumes
            .remove(name)
            .map_or(Err(missing("volume", name)), |_| empty()),
        "image_df" => done(json!({
            "images": [{"reference": "debian:12", "digest": "sha256:1", "size_bytes": 300 << 20,
                        "unique_bytes": 100 << 20, "shared_bytes": 200 << 20}],
            "total_bytes": 300 << 20, "apparent_bytes": 500 << 20, "reclaimable_bytes": 0,
        })),
        "pull_image" => done(operation("image_pull", "images/nginx", "running")),
        "list_operations" => {
            let making = held
                .instances
                .values()
                .filter(|i| i["image"] == "slow" || i["image"] == "doomed");
            let making = making.map(|i| {
                let mut operation = operation(
                    "instance_create",
                    &format!("instances/{}", i["name"].as_str().unwrap()),
                    "running",
                );
                operation["id"] = i["image"].clone();
                operation
            });
            done(Value::from_iter(making))
        }
        "watch_operation" => Ok(watch(name)),
        "all_stats" => done(json!([stats("web")])),
        "events" => {
            let event = |sequence, kind: &str| {
                json!({"sequence": sequence, "at": "2026-11-20T10:00:00.000Z", "type": kind,
                       "resource": "instances/web", "message": "the program ended"})
            };
            let lines = [event(1, "instance.stopped"), event(2, "image.removed")];
            Ok(lines
                .iter()
                .map(|line| format!("{line}\n"))
                .collect::<String>()
                .into_response())
        }
        "create_token" => done(json!({
            "name": "ci", "scope": "operate", "created_at": ago(0), "secret": "s3cret",
        })),
        "list_logins" => done(json!([{ "registry": "depot.example:5000", "username": "alice" }])),
        "log_in" => Err(Problem::new(
            ErrorCode::Denied,
            "the registry docker.io does not take this user name and password",
        )),
        "log_out" => empty(),
        "get_files" => match asked.query["path"].as_str() {
            "/etc" | "/etc/" => Ok(archive("etc")),
            path => Err(Problem::new(
                ErrorCode::NotFound,
                format!("there is no {path} inside"),
            )),
        },
        "put_files" => {
            held.received
                .push((asked.query["path"].clone(), asked.body.to_vec()));
            empty()
        }
        other => panic!("{other} has no answer"),
    }
}

/// The life of an operation in three lines.
fn watch(id: &str) -> Response {
    let mut last = operation("image_pull", "images/nginx", "succeeded");
    last["result"] = json!("nginx:latest");
    if id == "doomed" {
        last["state"] = json!("failed");
        last["error"] = json!("the registry hung up");
    }
    let unpacking = {
        let mut now = operation("image_pull", "images/nginx", "running");
        now["progress"] = json!({"message": "unpacking", "done": 1, "total": 2, "unit": ""});
        now
    };
    let lines = [
        operation("image_pull", "images/nginx", "running"),
        unpacking,
        last,
    ];
    lines
        .iter()
        .map(|line| format!("{line}\n"))
        .collect::<String>()
        .into_response()
}

fn archive(top: &str) -> Response {
    let mut builder = tar::Builder::new(Vec::new());
    let mut add = |path: String, kind, text: &str| {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(0o755);
        header.set_size(text.len() as u64);
        builder
            .append_data(&mut header, path, text.as_bytes())
            .unwrap();
    };
    add(format!("{top}/"), tar::EntryType::Directory, "");
    add(
        format!("{top}/hostname"),
        tar::EntryType::Regular,
        "inside\n",
    );
    Body::from(builder.into_inner().unwrap()).into_response()
}
