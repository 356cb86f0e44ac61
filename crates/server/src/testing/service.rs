//! The service trait over the fake's state.

use std::{collections::BTreeMap, time::Duration};

use api::{
    Check, CpuStats, ErrorCode, Event, Exit, Image, ImageBuild, ImageDetail, ImageDf, ImageGc,
    ImagePull, ImagePush, ImageTag, Info, Instance, InstanceCreate, InstanceDetail, Login,
    LoginCreate, Network, NetworkCreate, Operation, Problem, Process, Recipe, Stats, StopRequest,
    Token, TokenCreate, TokenCreated, TopRow, Verdict, Volume, VolumeCreate, WaitFor,
    service::{Answer, ByteStream, ExportFormat, InstanceFilter, LogQuery, Service, Socket},
    stream::Attach,
};
use async_trait::async_trait;
use bytes::Bytes;
use futures::{
    StreamExt as _,
    stream::{self, BoxStream},
};
use model::token::Scope;

use super::{Fake, State, made, programs};

fn conflict(detail: String) -> Problem {
    Problem::new(ErrorCode::Conflict, detail)
}

fn get<'a, T>(map: &'a BTreeMap<String, T>, what: &str, name: &str) -> Answer<&'a T> {
    map.get(name).ok_or_else(|| Problem::not_found(what, name))
}

fn remove<T>(map: &mut BTreeMap<String, T>, what: &str, name: &str) -> Answer<()> {
    map.remove(name)
        .map(drop)
        .ok_or_else(|| Problem::not_found(what, name))
}

impl Fake {
    /// The state, unless this call was told to fail.
    fn open(&self) -> Answer<std::sync::MutexGuard<'_, State>> {
        let mut state = self.lock();
        if std::mem::take(&mut state.panic_next) {
            drop(state);
            panic!("told to panic");
        }
        match state.fail_next.take() {
            Some(problem) => Err(problem),
            None => Ok(state),
        }
    }

    fn operation(&self, kind: &str, resource: String) -> Answer<Operation> {
        let mut state = self.open()?;
        state.next_id += 1;
        let operation = made::operation(state.next_id, kind, resource.clone());
        state.operations.push(operation.clone());
        drop(state);
        self.event(&format!("operation.{kind}"), &resource);
        Ok(operation)
    }

    /// Moves an instance to a status and tells everybody.
    fn move_to(&self, name: &str, status: &str) -> Answer<InstanceDetail> {
        let mut state = self.open()?;
        let found = state.instances.get_mut(name);
        let detail = found.ok_or_else(|| Problem::not_found("instance", name))?;
        let ended = detail.instance.status == "running" && status == "stopped";
        detail.instance.exit = ended.then(|| Exit {
            code: 0,
            signal: None,
            oom_killed: false,
            at: made::NOW.into(),
        });
        detail.instance.status = status.into();
        detail.desired = status.into();
        detail.generation += 1;
        detail.pid = (status == "running").then_some(4242);
        let detail = detail.clone();
        drop(state);
        self.event(&format!("instance.{status}"), &format!("instances/{name}"));
        Ok(detail)
    }
}

#[async_trait]
impl Service for Fake {
    async fn authenticate(&self, secret: &str) -> Answer<Option<Scope>> {
        let state = self.lock();
        let token = state.tokens.get(secret);
        Ok(token.and_then(|token| token.scope.parse().ok()))
    }

    async fn metrics(&self) -> Answer<String> {
        let count = self.open()?.instances.len();
        Ok(format!(
            "# TYPE berth_instances gauge\nberth_instances {count}"
        ))
    }

    async fn doctor(&self) -> Answer<Vec<Check>> {
        drop(self.open()?);
        Ok(vec![Check {
            name: "virtual machines".into(),
            verdict: Verdict::Limited,
            found: "on the software CPU".into(),
            advice: Some("slower than by the processor".into()),
        }])
    }

    async fn info(&self) -> Answer<Info> {
        let state = self.open()?;
        let mut instances = BTreeMap::new();
        for detail in state.instances.values() {
            *instances.entry(detail.instance.status.clone()).or_insert(0) += 1;
        }
        Ok(Info {
            version: env!("CARGO_PKG_VERSION").into(),
            api_version: "1".into(),
            pid: std::process::id(),
            root: "/var/lib/berth".into(),
            run_dir: "/run/berth".into(),
            prefix: "berth".into(),
            hostname: "fake".into(),
            kernel: "6.0".into(),
            cgroups: "v2".into(),
            cpus: 2,
            memory_bytes: 1 << 30,
            instances,
            started_at: made::NOW.into(),
            warnings: Vec::new(),
        })
    }

    async fn events(&self, since: Option<u64>, follow: bool) -> Answer<BoxStream<'static, Event>> {
        let state = self.open()?;
        let since = since.unwrap_or(if follow {
            state.history.len() as u64
        } else {
            0
        });
        let past: Vec<Event> = state.history.clone();
        let past = stream::iter(past).filter(move |event| {
            let newer = event.sequence > since;
            async move { newer }
        });
        if !follow {
            return Ok(past.boxed());
        }
        let future = stream::unfold(self.events.subscribe(), |mut events| async {
            Some((events.recv().await.ok()?, events))
        });
        Ok(past.chain(future).boxed())
    }

    async fn list_instances(&self, filter: InstanceFilter) -> Answer<Vec<Instance>> {
        let state = self.open()?;
        let wanted = |instance: &&Instance| {
            let labelled = filter.label.as_deref().is_none_or(|label| {
                let (key, value) = label.split_once('=').unwrap_or((label, ""));
                let has = instance.labels.get(key);
                has.is_some_and(|has| !label.contains('=') || has == value)
            });
            labelled
                && filter
                    .status
                    .as_ref()
                    .is_none_or(|it| *it == instance.status)
        };
        let all = state.instances.values().map(|detail| &detail.instance);
        Ok(all.filter(wanted).cloned().collect())
    }

    async fn create_instance(
        &self,
        request: InstanceCreate,
        _wait: Option<Duration>,
    ) -> Answer<InstanceDetail> {
        let mut state = self.open()?;
        state.next_id += 1;
        let n = state.next_id;
        let name = request.name.unwrap_or_else(|| format!("bold-heron-{n}"));
        if state.instances.contains_key(&name) {
            return Err(conflict(format!("the name {name:?} is taken"))
                .hint("choose another, or delete the one that has it"));
        }
        get(&state.images, "image", &request.spec.image)?;
        let status = request.desired.unwrap_or_else(|| "running".into());
        let detail = made::instance(&name, n, request.spec, &status);
        state.instances.insert(name.clone(), detail.clone());
        drop(state);
        self.event("instance.created", &format!("instances/{name}"));
        Ok(detail)
    }

    async fn show_instance(&self, name: &str) -> Answer<InstanceDetail> {
        get(&self.open()?.instances, "instance", name).cloned()
    }

    async fn set_instance(
        &self,
        name: &str,
        patch: serde_json::Value,
        generation: Option<u64>,
    ) -> Answer<InstanceDetail> {
        let mut state = self.open()?;
        let detail = get(&state.instances, "instance", name)?;
        if generation.is_some_and(|seen| seen != detail.generation) {
            return Err(conflict(format!("{name} was changed meanwhile")));
        }
        let mut spec = serde_json::to_value(&detail.spec)
            .map_err(|error| Problem::new(ErrorCode::Internal, error.to_string()))?;
        merge(&mut spec, patch);
        let spec = serde_json::from_value(spec)
            .map_err(|error| Problem::new(ErrorCode::Invalid, error.to_string()))?;
        let mut detail = detail.clone();
        detail.spec = spec;
        detail.generation += 1;
        state.instances.insert(name.to_owned(), detail.clone());
        Ok(detail)
    }

    async fn delete_instance(
        &self,
        name: &str,
        force: bool,
        _wait: Option<Duration>,
    ) -> Answer<Operation> {
        {
            let mut state = self.open()?;
            let detail = get(&state.instances, "instance", name)?;
            if detail.instance.status == "running" && !force {
                return Err(conflict(format!("{name} runs"))
                    .hint(format!("stop it first, or `berth rm -f {name}`")));
            }
            state.instances.remove(name);
        }
        self.operation("instance_delete", format!("instances/{name}"))
    }

    async fn start_instance(&self, name: &str, _wait: Option<Duration>) -> Answer<InstanceDetail> {
        self.move_to(name, "running")
    }

    async fn stop_instance(
        &self,
        name: &str,
        _request: StopRequest,
        _wait: Option<Duration>,
    ) -> Answer<InstanceDetail> {
        let held = self.lock().held.take();
        if let Some(hold) = held {
            hold.begun.add_permits(1);
            let _ = hold.released.acquire().await;
        }
        self.move_to(name, "stopped")
    }

    async fn restart_instance(
        &self,
        name: &str,
        _request: StopRequest,
        _wait: Option<Duration>,
    ) -> Answer<InstanceDetail> {
        self.move_to(name, "running")
    }

    async fn pause_instance(&self, name: &str, _wait: Option<Duration>) -> Answer<InstanceDetail> {
        self.move_to(name, "paused")
    }

    async fn resume_instance(&self, name: &str, _wait: Option<Duration>) -> Answer<InstanceDetail> {
        self.move_to(name, "running")
    }

    async fn signal_instance(&self, name: &str, signal: &str) -> Answer<()> {
        get(&self.open()?.instances, "instance", name)?;
        self.event(
            &format!("instance.signal.{signal}"),
            &format!("instances/{name}"),
        );
        Ok(())
    }

    async fn wait_instance(
        &self,
        name: &str,
        wait_for: WaitFor,
        timeout: Duration,
    ) -> Answer<InstanceDetail> {
        let mut changes = self.changed.subscribe();
        let until = async {
            loop {
                let detail = self.show_instance(name).await?;
                let status = detail.instance.status.as_str();
                let met = match wait_for {
                    WaitFor::Settled => true,
                    WaitFor::Running | WaitFor::Healthy => status == "running",
                    WaitFor::Stopped => status == "stopped",
                    WaitFor::Removed => false,
                };
                if met || changes.changed().await.is_err() {
                    return Ok(detail);
                }
            }
        };
        let late = || {
            Problem::new(
                ErrorCode::Timeout,
                format!("{name} was not as asked within {} s", timeout.as_secs_f64()),
            )
        };
        tokio::time::timeout(timeout, until)
            .await
            .unwrap_or_else(|_| Err(late()))
    }

    async fn attach_instance(&self, name: &str, request: Attach) -> Answer<Socket> {
        let command = {
            let state = self.open()?;
            let detail = get(&state.instances, "instance", name)?;
            detail.spec.command.clone().unwrap_or_default()
        };
        if request.start {
            self.move_to(name, "running")?;
        }
        Ok(programs::run(command))
    }

    async fn exec_instance(&self, name: &str, process: Process) -> Answer<Socket> {
        let state = self.open()?;
        let detail = get(&state.instances, "instance", name)?;
        if detail.instance.status != "running" {
            return Err(conflict(format!("{name} does not run"))
                .hint(format!("start it with `berth start {name}`")));
        }
        Ok(programs::run(process.command))
    }

    async fn instance_logs(&self, name: &str, query: LogQuery) -> Answer<ByteStream> {
        let state = self.open()?;
        get(&state.instances, "instance", name)?;
        let lines = state.logs.get(name).cloned().unwrap_or_default();
        let have = lines.len();
        let from = query.tail.map_or(0, |tail| have.saturating_sub(tail));
        let past = stream::iter(lines.into_iter().skip(from).map(Ok));
        if !query.follow {
            return Ok(past.boxed());
        }
        let watched = (
            self.clone(),
            self.changed.subscribe(),
            name.to_owned(),
            have,
        );
        let more = stream::unfold(watched, |(fake, mut changes, name, sent)| async move {
            loop {
                let next: Option<Bytes> = {
                    let state = fake.lock();
                    state
                        .logs
                        .get(&name)
                        .and_then(|lines| lines.get(sent))
                        .cloned()
                };
                if let Some(line) = next {
                    return Some((Ok(line), (fake, changes, name, sent + 1)));
                }
                if !fake.lock().instances.contains_key(&name) {
                    return None;
                }
                changes.changed().await.ok()?;
            }
        });
        Ok(past.chain(more).boxed())
    }

    async fn instance_stats(&self, name: &str) -> Answer<Stats> {
        let state = self.open()?;
        Ok(made::stats(
            &get(&state.instances, "instance", name)?.instance,
        ))
    }

    async fn instance_cpu_stats(&self, name: &str) -> Answer<CpuStats> {
        let state = self.open()?;
        let instance = &get(&state.instances, "instance", name)?.instance;
        Ok(made::cpu_stats(instance))
    }

    async fn all_stats(&self) -> Answer<Vec<Stats>> {
        let state = self.open()?;
        let running = state.instances.values().map(|detail| &detail.instance);
        Ok(running
            .filter(|instance| instance.status == "running")
            .map(made::stats)
            .collect())
    }

    async fn instance_top(&self, name: &str) -> Answer<Vec<TopRow>> {
        let state = self.open()?;
        let detail = get(&state.instances, "instance", name)?;
        let row = TopRow {
            pid: detail.pid.unwrap_or_default(),
            inner_pid: 1,
            uid: 0,
            cpu_ms: 1,
            rss_bytes: 1 << 20,
            state: "S".into(),
            command: detail.spec.command.clone().unwrap_or_default().join(" "),
        };
        Ok(vec![row])
    }

    async fn get_files(&self, name: &str, path: &str) -> Answer<ByteStream> {
        let state = self.open()?;
        get(&state.instances, "instance", name)?;
        let key = (name.to_owned(), path.to_owned());
        let found = state.files.get(&key);
        let bytes = found.ok_or_else(|| Problem::not_found("path", path))?;
        let parts: Vec<_> = bytes.chunks(65_536).map(Bytes::copy_from_slice).collect();
        Ok(stream::iter(parts.into_iter().map(Ok)).boxed())
    }

    async fn put_files(&self, name: &str, path: &str, mut tar: ByteStream) -> Answer<()> {
        get(&self.open()?.instances, "instance", name)?;
        let mut all = Vec::new();
        while let Some(part) = tar.next().await {
            all.extend_from_slice(&part?);
        }
        let key = (name.to_owned(), path.to_owned());
        self.lock().files.insert(key, all);
        Ok(())
    }

    async fn list_operations(&self) -> Answer<Vec<Operation>> {
        let state = self.open()?;
        Ok(state.operations.iter().rev().cloned().collect())
    }

    async fn show_operation(&self, id: &str, _wait: Option<Duration>) -> Answer<Operation> {
        let state = self.open()?;
        let found = state.operations.iter().find(|it| it.id == id);
        found
            .cloned()
            .ok_or_else(|| Problem::not_found("operation", id))
    }

    async fn watch_operation(&self, id: &str) -> Answer<BoxStream<'static, Operation>> {
        let operation = self.show_operation(id, None).await?;
        Ok(stream::iter([operation]).boxed())
    }

    async fn cancel_operation(&self, id: &str) -> Answer<Operation> {
        self.show_operation(id, None).await
    }

    async fn retry_operation(&self, id: &str) -> Answer<Operation> {
        let operation = self.show_operation(id, None).await?;
        Err(conflict(format!("{} is not stuck", operation.id)))
    }

    async fn list_images(&self) -> Answer<Vec<Image>> {
        Ok(self.open()?.images.values().cloned().collect())
    }

    async fn image_df(&self) -> Answer<ImageDf> {
        drop(self.open()?);
        Ok(ImageDf {
            images: Vec::new(),
            total_bytes: 0,
            apparent_bytes: 0,
            reclaimable_bytes: 0,
        })
    }

    async fn show_image(&self, image: &str) -> Answer<ImageDetail> {
        let state = self.open()?;
        Ok(ImageDetail {
            image: get(&state.images, "image", image)?.clone(),
            layers: Vec::new(),
            entrypoint: Vec::new(),
            command: vec!["/bin/sh".into()],
            env: Vec::new(),
            user: None,
            workdir: None,
            labels: BTreeMap::new(),
        })
    }

    async fn delete_image(&self, image: &str) -> Answer<()> {
        remove(&mut self.open()?.images, "image", image)
    }

    async fn pull_image(&self, request: ImagePull) -> Answer<Operation> {
        let image = made::image(&request.reference);
        let operation = self.operation("image_pull", format!("images/{}", request.reference))?;
        self.lock().images.insert(request.reference, image);
        Ok(operation)
    }

    async fn push_image(&self, request: ImagePush) -> Answer<Operation> {
        get(&self.lock().images, "image", &request.image)?;
        self.operation("image_push", format!("images/{}", request.image))
    }

    async fn build_image(&self, request: ImageBuild) -> Answer<Operation> {
        let usual = match request.recipe {
            Recipe::Busybox => "busybox",
            Recipe::Debian => "debian",
        };
        let name = request.name.unwrap_or_else(|| usual.into());
        let operation = self.operation("image_build", format!("images/{name}"))?;
        self.lock().images.insert(name.clone(), made::image(&name));
        Ok(operation)
    }

    async fn import_image(
        &self,
        reference: Option<String>,
        mut tar: ByteStream,
    ) -> Answer<Operation> {
        let mut length = 0;
        while let Some(part) = tar.next().await {
            length += part?.len();
        }
        let reference = reference.unwrap_or_else(|| "imported".into());
        let operation = self.operation("image_import", format!("images/{reference}"))?;
        let mut image = made::image(&reference);
        image.size_bytes = length as u64;
        self.lock().images.insert(reference, image);
        Ok(operation)
    }

    async fn export_image(&self, image: &str, format: ExportFormat) -> Answer<ByteStream> {
        get(&self.open()?.images, "image", image)?;
        let text = format!("{format:?} archive of {image}");
        Ok(stream::iter([Ok(Bytes::from(text))]).boxed())
    }

    async fn tag_image(&self, request: ImageTag) -> Answer<Image> {
        let mut state = self.open()?;
        let mut image = get(&state.images, "image", &request.image)?.clone();
        image.reference.clone_from(&request.reference);
        state.images.insert(request.reference, image.clone());
        Ok(image)
    }

    async fn gc_images(&self) -> Answer<ImageGc> {
        drop(self.open()?);
        Ok(ImageGc {
            freed_bytes: 0,
            removed: 0,
        })
    }

    async fn list_networks(&self) -> Answer<Vec<Network>> {
        Ok(self.open()?.networks.values().cloned().collect())
    }

    async fn create_network(&self, request: NetworkCreate) -> Answer<Network> {
        let mut state = self.open()?;
        if state.networks.contains_key(&request.name) {
            return Err(conflict(format!("the name {:?} is taken", request.name)));
        }
        let subnet = request.ipv4.as_deref().unwrap_or("10.78.0.0/24");
        let network = made::network(&request.name, subnet, "10.78.0.1");
        state.networks.insert(request.name, network.clone());
        Ok(network)
    }

    async fn show_network(&self, name: &str) -> Answer<Network> {
        get(&self.open()?.networks, "network", name).cloned()
    }

    async fn delete_network(&self, name: &str) -> Answer<()> {
        remove(&mut self.open()?.networks, "network", name)
    }

    async fn list_volumes(&self) -> Answer<Vec<Volume>> {
        Ok(self.open()?.volumes.values().cloned().collect())
    }

    async fn create_volume(&self, request: VolumeCreate) -> Answer<Volume> {
        let mut state = self.open()?;
        if state.volumes.contains_key(&request.name) {
            return Err(conflict(format!("the name {:?} is taken", request.name)));
        }
        let volume = made::volume(&request.name, request.labels);
        state.volumes.insert(request.name, volume.clone());
        Ok(volume)
    }

    async fn show_volume(&self, name: &str) -> Answer<Volume> {
        get(&self.open()?.volumes, "volume", name).cloned()
    }

    async fn delete_volume(&self, name: &str) -> Answer<()> {
        remove(&mut self.open()?.volumes, "volume", name)
    }

    async fn list_logins(&self) -> Answer<Vec<Login>> {
        Ok(self.open()?.logins.values().cloned().collect())
    }

    /// Takes the password `secret`.
    async fn log_in(&self, request: LoginCreate) -> Answer<Login> {
        let mut state = self.open()?;
        if request.password != "secret" {
            let text = format!(
                "the registry {} does not take this user name and password",
                request.registry
            );
            return Err(Problem::new(ErrorCode::Denied, text));
        }
        let login = Login {
            registry: request.registry.clone(),
            username: Some(request.username),
        };
        state.logins.insert(request.registry, login.clone());
        Ok(login)
    }

    async fn log_out(&self, registry: &str) -> Answer<()> {
        remove(&mut self.open()?.logins, "login", registry)
    }

    async fn list_tokens(&self) -> Answer<Vec<Token>> {
        Ok(self.open()?.tokens.values().cloned().collect())
    }

    async fn create_token(&self, request: TokenCreate) -> Answer<TokenCreated> {
        let mut state = self.open()?;
        request
            .scope
            .parse::<Scope>()
            .map_err(|error| Problem::new(ErrorCode::Invalid, error.to_string()))?;
        state.next_id += 1;
        let secret = format!("secret-{}", state.next_id);
        let token = made::token(&request.name, &request.scope);
        state.tokens.insert(secret.clone(), token.clone());
        Ok(TokenCreated { token, secret })
    }

    async fn revoke_token(&self, name: &str) -> Answer<()> {
        let mut state = self.open()?;
        let secret = state
            .tokens
            .iter()
            .find(|(_, token)| token.name == name)
            .map(|(secret, _)| secret.clone())
            .ok_or_else(|| Problem::not_found("token", name))?;
        remove(&mut state.tokens, "token", &secret)
    }
}

/// RFC 7396.
fn merge(target: &mut serde_json::Value, patch: serde_json::Value) {
    let serde_json::Value::Object(patch) = patch else {
        *target = patch;
        return;
    };
    if !target.is_object() {
        *target = serde_json::json!({});
    }
    for (key, value) in patch {
        if value.is_null() {
            target.as_object_mut().and_then(|map| map.remove(&key));
        } else {
            merge(&mut target[key.as_str()], value);
        }
    }
}
