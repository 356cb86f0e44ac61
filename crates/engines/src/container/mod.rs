//! Containers: one shim process each, spoken to over its socket.
//!
//! ```text
//!  Engine call ─▶ guests/<id>/ : bundle/config.json, shim.json ─▶ berth-oci shim --dir …
//!                                shim.sock ◀── start, signal, pause, attach, exec …
//!  instances/<id>/exit.json ◀── the shim, before it tells anybody
//! ```
//!
//! What is true of a guest is read from these files, its lock and its socket each time; in memory
//! there is only who listens for its end. So the adapter can be restarted at any point.

mod bundle;
mod connection;
mod cpus;
mod logs;
mod processes;
mod root;
mod session;
mod stats;
mod users;

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Arc, Mutex, PoisonError},
};

use ::agent::protocol::{ErrorKind, Failure};
use ::container::shim::{
    self, ExitRecord, ShimConfig,
    protocol::{Phase, Reply, Request},
};
use ::container::{PROGRAM_NOT_EXECUTABLE, PROGRAM_NOT_FOUND};

use async_trait::async_trait;
use bytes::Bytes;
use engine::{
    Capabilities, Changed, CpuStats, Engine, EngineError, Guest, GuestProcess, GuestProcessInfo,
    GuestState, GuestStats, LogLine, LogRequest, Observed, RootView, Session, Target,
};
use model::{
    InstanceId, Timestamp,
    instance::{
        Accel, Limits,
        status::{Exit, Usage},
    },
};
use tokio::sync::{broadcast, mpsc};

use crate::machine::{self, Agent, AgentError, ControlError};
use connection::{Connection, ConnectionError};

/// Name of the exit record in an instance's directory.
const EXIT_FILE: &str = "exit.json";
/// Longest a shim may take to set a container up: hooks and slow disks included.
const LAUNCH_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(60);
/// Pauses between looks at a guest that is on its way to its end, in ms: that is recorded within a disk's
/// write, but disks can be slow.
const LOOKS: [u64; 14] = [1, 2, 2, 5, 10, 20, 50, 100, 200, 400, 800, 1000, 1000, 1000];
/// `SIGKILL`.
const KILL: i32 = 9;

/// Where the engine keeps its things.
#[derive(Debug, Clone)]
pub struct Config {
    /// The static binary with the shim's role.
    pub runtime: PathBuf,
    /// The static binary that runs a virtual machine.
    pub vmm: PathBuf,
    /// What executes a machine for which nothing is chosen; `None` when there is no way.
    pub accel: Option<Accel>,
    /// A directory for each guest that runs, gone with the host's run.
    pub guests: PathBuf,
    /// Instances' directories: `<instances>/<id>`, where exit records are.
    pub instances: PathBuf,
    /// Control group below which every guest has its own, such as `/berth`.
    pub cgroup: String,
}

/// Runs containers. Cheap to clone.
#[derive(Clone)]
pub struct ContainerEngine {
    inner: Arc<Inner>,
}

struct Inner {
    config: Config,
    events: broadcast::Sender<Changed>,
    /// Generations ensured by this process; a shim only knows the one it was launched with.
    generations: Mutex<HashMap<InstanceId, u64>>,
    /// Who waits for a guest's end.
    watchers: Mutex<HashMap<InstanceId, tokio::task::AbortHandle>>,
}

impl ContainerEngine {
    /// An engine over these directories. Touches nothing yet.
    #[must_use]
    pub fn new(config: Config) -> Self {
        let inner = Inner {
            config,
            events: broadcast::channel(4096).0,
            generations: Mutex::default(),
            watchers: Mutex::default(),
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    fn guest_dir(&self, id: InstanceId) -> PathBuf {
        self.inner.config.guests.join(id.to_string())
    }

    fn exit_path(&self, id: InstanceId) -> PathBuf {
        self.inner
            .config
            .instances
            .join(id.to_string())
            .join(EXIT_FILE)
    }

    fn tell(&self, id: InstanceId) {
        // Nobody listening is no error.
        let _ = self.inner.events.send(Changed { id });
    }

    /// Waits for a guest's end in the background, once.
    fn watch(&self, id: InstanceId) {
        let mut watchers = lock(&self.inner.watchers);
        if watchers
            .get(&id)
            .is_some_and(|watcher| !watcher.is_finished())
        {
            return;
        }
        let engine = self.clone();
        let watcher = tokio::spawn(async move {
            if let Ok(mut connection) = Connection::open(&engine.guest_dir(id)).await {
                // An answer and a broken connection both mean: look.
                let _ = connection.ask(&Request::Wait).await;
            }
            lock(&engine.inner.watchers).remove(&id);
            engine.tell(id);
        });
        watchers.insert(id, watcher.abort_handle());
    }

    fn exited(&self, id: InstanceId) -> Result<Option<Observed>, EngineError> {
        let failed = |error: shim::ExitError| failed(id, "reading its exit record", error);
        let record = match ExitRecord::load(&self.exit_path(id)).map_err(failed)? {
            Some(record) => Some(record),
            // Where a shim writes when its own disk is full.
            None => ExitRecord::load(&self.guest_dir(id).join(shim::FALLBACK_EXIT_FILE))
                .map_err(failed)?,
        };
        Ok(record.map(|record| observed_exit(id, &record)))
    }

    /// What is there of a guest, files first: a shim that ends writes them before it goes.
    async fn look(&self, id: InstanceId) -> Result<Observed, EngineError> {
        let mut exited = false;
        for pause in LOOKS {
            if let Some(exited) = self.exited(id)? {
                return Ok(exited);
            }
            let dir = self.guest_dir(id);
            let holder = shim::holder(&dir).map_err(|e| failed(id, "looking for its shim", e))?;
            if holder.is_none() {
                // It may have written its record between the two looks.
                return Ok(self.exited(id)?.unwrap_or_else(|| Observed::absent(id)));
            }
            exited = match self.ask(id, &Request::State).await {
                // Its record comes as soon as the disk has it.
                Ok(Reply::State(state)) if state.phase == Phase::Exited => true,
                Ok(Reply::State(state)) => return Ok(self.observed_live(id, &state)),
                // It ended just now: look again.
                Ok(_) | Err(EngineError::NotRunning { .. }) => false,
                Err(error) => return Err(error),
            };
            tokio::time::sleep(std::time::Duration::from_millis(pause)).await;
        }
        let what = if exited {
            "it has ended, and that cannot be recorded; is the disk full?"
        } else {
            "its shim lives but does not answer"
        };
        Err(EngineError::Refused {
            message: format!("instance {id}: {what}"),
        })
    }

    fn observed_live(&self, id: InstanceId, state: &shim::protocol::State) -> Observed {
        let known = lock(&self.inner.generations).get(&id).copied().unwrap_or(0);
        Observed {
            generation: known.max(state.generation),
            state: match state.phase {
                Phase::Created => GuestState::Prepared,
                Phase::Running => GuestState::Running,
                Phase::Paused => GuestState::Paused,
                Phase::Exited => GuestState::Exited,
            },
            pid: u32::try_from(state.pid).ok(),
            started_at: state.started_at.map(timestamp),
            ..Observed::absent(id)
        }
    }

    /// One request to a guest's shim.
    async fn ask(&self, id: InstanceId, request: &Request) -> Result<Reply, EngineError> {
        let mut connection = self.connect(id).await?;
        connection
            .ask(request)
            .await
            .map_err(|error| refused(id, error))
    }

    /// The agent in a virtual machine that runs, waited for while the machine starts.
    async fn agent(&self, id: InstanceId) -> Result<Agent, EngineError> {
        let alive = || async move { self.look(id).await.is_ok_and(|seen| seen.pid.is_some()) };
        Agent::reach(&self.guest_dir(id), alive)
            .await
            .map_err(|error| unanswered(id, error))
    }

    /// Has a machine's own process keep to other limits.
    async fn set_machine_limits(&self, id: InstanceId, limits: &Limits) -> Result<(), EngineError> {
        let told = machine::set_limits(&self.guest_dir(id), limits).await;
        told.map_err(|error| unasked(id, error))
    }

    /// Has a machine that was prepared start with limits that were changed since.
    async fn renew_machine(&self, guest: &Guest) -> Result<(), EngineError> {
        let Some(machine) = &guest.machine else {
            return Ok(());
        };
        let renewed = machine::renew(guest, machine, &self.guest_dir(guest.id));
        match renewed.map_err(|error| failed(guest.id, "writing its limits", error))? {
            true => self.set_limits(guest.id, &guest.limits).await,
            false => Ok(()),
        }
    }

    async fn connect(&self, id: InstanceId) -> Result<Connection, EngineError> {
        Connection::open(&self.guest_dir(id))
            .await
            .map_err(|error| refused(id, error))
    }

    /// Sets a guest up: writes its bundle and runs its shim.
    async fn launch(&self, guest: &Guest) -> Result<(), EngineError> {
        let id = guest.id;
        let dir = self.guest_dir(id);
        let prepared = {
            let (guest, dir) = (guest.clone(), dir.clone());
            let (cgroup, exit) = (self.inner.config.cgroup.clone(), self.exit_path(id));
            let state_root = self.inner.config.guests.join(".oci");
            let (vmm, accel) = (self.inner.config.vmm.clone(), self.inner.config.accel);
            tokio::task::spawn_blocking(move || {
                // What a shim that was killed left there.
                shim::cleanup(&dir).map_err(|error| failed(guest.id, "cleaning up", error))?;
                let (guest, descriptors) = match &guest.machine {
                    Some(machine) => machine::jail(&guest, machine, &vmm, accel, &dir)?,
                    None => (guest, Vec::new()),
                };
                bundle::write(&guest, descriptors, &dir, &cgroup, &exit, &state_root)
            })
        };
        joined(prepared.await)?;
        let mut command = tokio::process::Command::new(&self.inner.config.runtime);
        command.arg("shim").arg("--dir").arg(&dir).env_clear();
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command.kill_on_drop(true);
        let ran = tokio::time::timeout(LAUNCH_TIMEOUT, command.output()).await;
        let output = match ran {
            Ok(output) => output.map_err(|error| {
                let program = self.inner.config.runtime.display();
                let message =
                    format!("the runtime {program} cannot be run: {error}; reinstall Berth");
                EngineError::Refused { message }
            })?,
            Err(_elapsed) => {
                let message = format!("instance {id}: setting it up took too long");
                return Err(EngineError::Refused { message });
            }
        };
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        let message = match said.trim() {
            "" => format!("the runtime ended with {} and said nothing", output.status),
            said => said
                .trim_start_matches("berth-oci: ")
                .trim_start_matches("error: ")
                .to_owned(),
        };
        self.clear(id).await?;
        Err(match output.status.code().map(u8::try_from) {
            Some(Ok(code @ (PROGRAM_NOT_FOUND | PROGRAM_NOT_EXECUTABLE))) => {
                EngineError::Program { message, code }
            }
            _ => EngineError::Refused { message },
        })
    }

    /// Takes away what is left of a run that is over.
    async fn clear(&self, id: InstanceId) -> Result<(), EngineError> {
        let (dir, exit) = (self.guest_dir(id), self.exit_path(id));
        let cleared = tokio::task::spawn_blocking(move || {
            shim::cleanup(&dir).map_err(|error| failed(id, "cleaning up", error))?;
            for path in [&exit, &dir.join(shim::FALLBACK_EXIT_FILE)] {
                gone(std::fs::remove_file(path)).map_err(|e| failed(id, "removing its exit", e))?;
            }
            gone(std::fs::remove_dir_all(&dir)).map_err(|e| failed(id, "removing its files", e))
        });
        lock(&self.inner.generations).remove(&id);
        joined(cleared.await)
    }

    /// Ends what runs, and waits until its shim has gone.
    async fn kill(&self, id: InstanceId) -> Result<(), EngineError> {
        let dir = self.guest_dir(id);
        for attempt in 0..200 {
            let holder = shim::holder(&dir).map_err(|e| failed(id, "looking for its shim", e))?;
            let Some(holder) = holder else { return Ok(()) };
            // Asked once and again: a shim that is just being born hears nothing yet.
            if attempt % 20 == 0 {
                let asked = async {
                    let mut connection = self.connect(id).await?;
                    connection
                        .ask(&Request::Signal {
                            signal: KILL,
                            all: true,
                        })
                        .await
                        .map_err(|error| refused(id, error))?;
                    connection
                        .ask(&Request::Wait)
                        .await
                        .map_err(|error| refused(id, error))
                };
                let patience = std::time::Duration::from_secs(2);
                if !matches!(tokio::time::timeout(patience, asked).await, Ok(Ok(_))) && attempt > 0
                {
                    kill_process(holder);
                }
            }
            tokio::time::sleep(std::time::Duration::from_millis(if attempt < 20 {
                1
            } else {
                20
            }))
            .await;
        }
        Err(EngineError::Refused {
            message: format!("instance {id}: its shim cannot be ended"),
        })
    }
}

#[async_trait]
impl Engine for ContainerEngine {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            pause: true,
            live_limits: true,
            exec: true,
        }
    }

    async fn ensure(&self, guest: &Guest, target: Target) -> Result<Observed, EngineError> {
        let id = guest.id;
        let mut seen = self.look(id).await?;
        if guest.generation < seen.generation {
            let (given, current) = (guest.generation, seen.generation);
            return Err(EngineError::Stale { id, given, current });
        }
        if seen.state == GuestState::Exited {
            return Ok(seen);
        }
        if seen.state == GuestState::Absent {
            self.launch(guest).await?;
            self.watch(id);
            seen = self.look(id).await?;
        }
        lock(&self.inner.generations).insert(id, guest.generation);
        let request = match (seen.state, target) {
            (GuestState::Prepared, Target::Running | Target::Paused) => Request::Start,
            (GuestState::Running, Target::Paused) => Request::Pause,
            (GuestState::Paused, Target::Running) => Request::Resume,
            _ => return Ok(seen),
        };
        if matches!(request, Request::Start) {
            self.renew_machine(guest).await?;
        }
        self.ask(id, &request).await?;
        if matches!(request, Request::Resume)
            && machine::is_one(&self.guest_dir(id))
            && let Err(error) = self.set_machine_limits(id, &guest.limits).await
        {
            let error = model::chain(&error);
            tracing::warn!(%id, error, "a machine goes on with the limits it had");
        }
        let seen = self.look(id).await?;
        if seen.state == GuestState::Running && target == Target::Paused {
            self.ask(id, &Request::Pause).await?;
            return self.look(id).await;
        }
        Ok(seen)
    }

    async fn observe(&self, id: InstanceId) -> Result<Observed, EngineError> {
        let seen = self.look(id).await?;
        if seen.pid.is_some() {
            self.watch(id);
        }
        Ok(seen)
    }

    async fn list(&self) -> Result<Vec<Observed>, EngineError> {
        let guests = &self.inner.config.guests;
        let entries = match std::fs::read_dir(guests) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => {
                let message = format!("{} cannot be listed: {error}", guests.display());
                return Err(EngineError::Refused { message });
            }
        };
        let mut list = Vec::new();
        for entry in entries.flatten() {
            let id = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse().ok());
            if let Some(id) = id {
                list.push(self.observe(id).await?);
            }
        }
        Ok(list)
    }

    async fn signal(&self, id: InstanceId, signal: i32) -> Result<(), EngineError> {
        match self.ask(id, &Request::Signal { signal, all: false }).await {
            Ok(_) | Err(EngineError::NotRunning { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn remove(&self, id: InstanceId) -> Result<(), EngineError> {
        if let Some(watcher) = lock(&self.inner.watchers).remove(&id) {
            watcher.abort();
        }
        self.kill(id).await?;
        self.clear(id).await?;
        self.tell(id);
        Ok(())
    }

    fn events(&self) -> broadcast::Receiver<Changed> {
        self.inner.events.subscribe()
    }

    async fn stats(&self, id: InstanceId) -> Result<Option<GuestStats>, EngineError> {
        match self.ask(id, &Request::Stats).await {
            Ok(Reply::Stats(seen)) => Ok(Some(stats::guest_stats(&seen))),
            Ok(_) | Err(EngineError::NotRunning { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn set_limits(&self, id: InstanceId, limits: &Limits) -> Result<(), EngineError> {
        let directory = self.inner.config.instances.join(id.to_string());
        let guest = self.guest_dir(id);
        let live = if machine::is_one(&guest) {
            Some(machine::live_limits(&guest, limits))
        } else {
            None
        };
        let live = live.transpose();
        let live = live.map_err(|error| failed(id, "reading what it was started with", error))?;
        let mut resources = bundle::resources(live.as_ref().unwrap_or(limits), &directory);
        if let Some(cpu) = &mut resources.cpu
            && cpu.cpus.is_empty()
        {
            let group = format!("{}/{id}", self.inner.config.cgroup);
            cpu.cpus = cpus::to_give_back(&group).unwrap_or_default();
        }
        let resources = serde_json::to_value(resources)
            .map_err(|error| failed(id, "writing its limits", error))?;
        match self.ask(id, &Request::Update { resources }).await {
            Ok(_) => {}
            Err(EngineError::NotRunning { .. }) => return Ok(()),
            Err(error) => return Err(error),
        }
        // One that stands still hears of it when it goes on.
        if live.is_some() && self.look(id).await?.state == GuestState::Running {
            return self.set_machine_limits(id, limits).await;
        }
        Ok(())
    }

    async fn attach(&self, id: InstanceId, stdin: bool) -> Result<Session, EngineError> {
        session::attach(self.connect(id).await?, stdin)
            .await
            .map_err(|error| refused(id, error))
    }

    async fn exec(&self, id: InstanceId, process: &GuestProcess) -> Result<Session, EngineError> {
        let seen = self.look(id).await?;
        let pid = seen.pid.ok_or(EngineError::NotRunning { id })?;
        if machine::is_one(&self.guest_dir(id)) {
            let session = machine::exec(self.agent(id).await?, process).await;
            let program = process.args.first().map_or("", String::as_str);
            return session.map_err(|error| not_executed(id, program, error));
        }
        let process = process.clone();
        let prepared = tokio::task::spawn_blocking(move || bundle::exec_process(&process, pid));
        let (process, stdin) = joined(prepared.await)?;
        let connection = self.connect(id).await?;
        session::exec(connection, process, stdin)
            .await
            .map_err(|error| refused(id, error))
    }

    async fn logs(
        &self,
        id: InstanceId,
        directory: &Path,
        request: LogRequest,
    ) -> Result<mpsc::Receiver<LogLine>, EngineError> {
        logs::read(id, &Guest::log_path(directory), self.guest_dir(id), request)
    }

    async fn processes(&self, id: InstanceId) -> Result<Vec<GuestProcessInfo>, EngineError> {
        let seen = self.look(id).await?;
        let pid = seen.pid.ok_or(EngineError::NotRunning { id })?;
        if machine::is_one(&self.guest_dir(id)) {
            let listed = machine::processes(self.agent(id).await?).await;
            return listed.map_err(|error| unanswered(id, error));
        }
        let config = ShimConfig::load(&self.guest_dir(id))
            .map_err(|error| failed(id, "reading its configuration", error))?;
        let listed = tokio::task::spawn_blocking(move || processes::list(&config.cgroup, pid));
        joined(listed.await).map_err(|error| failed(id, "listing its processes", error))
    }

    async fn cpu_stats(&self, id: InstanceId) -> Result<CpuStats, EngineError> {
        let guest = self.guest_dir(id);
        let refused = |message: &str| EngineError::Refused {
            message: format!("instance {id} {message}"),
        };
        match self.look(id).await?.state {
            GuestState::Running => {}
            // Its process stands still, and would not answer.
            GuestState::Paused => return Err(refused("is paused and cannot be asked; resume it")),
            _ => return Err(EngineError::NotRunning { id }),
        }
        if !machine::is_one(&guest) {
            return Err(refused(
                "is a container: the host's processor executes it, and no software CPU counts",
            ));
        }
        let asked = machine::cpu_stats(&guest).await;
        asked.map_err(|error| unasked(id, error))
    }

    async fn read_files(
        &self,
        id: InstanceId,
        path: &str,
    ) -> Result<mpsc::Receiver<Result<Bytes, EngineError>>, EngineError> {
        let agent = self.agent(id).await?;
        let read = machine::files::read(id, agent, path, unanswered).await;
        read.map_err(|error| unanswered(id, error))
    }

    async fn write_files(
        &self,
        id: InstanceId,
        directory: &str,
        archive: mpsc::Receiver<Bytes>,
    ) -> Result<(), EngineError> {
        let agent = self.agent(id).await?;
        let written = machine::files::write(agent, directory, archive).await;
        written.map_err(|error| unanswered(id, error))
    }

    async fn open_root(&self, guest: &Guest) -> Result<RootView, EngineError> {
        let id = guest.id;
        let seen = self.look(id).await?;
        let guest = guest.clone();
        let Some(pid) = seen.pid else {
            return joined(tokio::task::spawn_blocking(move || root::at_rest(&guest)).await);
        };
        let opened = tokio::task::spawn_blocking(move || root::live(&guest, pid)).await;
        let view = joined(opened)?;
        // The number may have become another process's between the look and the opening.
        if self.look(id).await?.pid == Some(pid) {
            Ok(view)
        } else {
            Err(EngineError::NotRunning { id })
        }
    }
}

fn observed_exit(id: InstanceId, record: &ExitRecord) -> Observed {
    Observed {
        generation: record.generation,
        state: GuestState::Exited,
        started_at: record.started_at.map(timestamp),
        exit: Some(Exit {
            code: record.code,
            signal: record.signal,
            oom_killed: record.oom_killed,
            at: timestamp(record.finished_at),
        }),
        usage: Usage {
            cpu_ns: record.usage.cpu_ns,
            read_bytes: record.usage.io_read_bytes,
            write_bytes: record.usage.io_write_bytes,
            memory_peak_bytes: record.usage.memory_peak_bytes.unwrap_or(0),
        },
        ..Observed::absent(id)
    }
}

fn timestamp(at: shim::Timestamp) -> Timestamp {
    Timestamp::from_millis(at.seconds * 1000 + u64::from(at.nanos / 1_000_000))
}

fn kill_process(pid: i32) {
    if let Some(pid) = rustix::process::Pid::from_raw(pid) {
        // One that has gone by itself is what was wanted.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
}

/// What has gone already is as good as removed.
fn gone(result: std::io::Result<()>) -> std::io::Result<()> {
    match result {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

fn failed(
    id: InstanceId,
    action: &str,
    source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> EngineError {
    EngineError::Failed {
        id,
        action: action.to_owned(),
        source: source.into(),
    }
}

fn refused(id: InstanceId, error: ConnectionError) -> EngineError {
    match error {
        ConnectionError::Absent | ConnectionError::Closed => EngineError::NotRunning { id },
        ConnectionError::Refused(failure) => {
            let message = failure.message;
            let code = match failure.code {
                shim::protocol::ErrorCode::ProgramNotFound => PROGRAM_NOT_FOUND,
                shim::protocol::ErrorCode::ProgramNotExecutable => PROGRAM_NOT_EXECUTABLE,
                _ => return EngineError::Refused { message },
            };
            EngineError::Program { message, code }
        }
        error => failed(id, "speaking to its shim", error),
    }
}

fn not_executed(id: InstanceId, program: &str, error: AgentError) -> EngineError {
    let code = match &error {
        AgentError::Failed(failure) => match failure.kind {
            ErrorKind::NotFound => PROGRAM_NOT_FOUND,
            ErrorKind::NotExecutable => PROGRAM_NOT_EXECUTABLE,
            _ => return unanswered(id, error),
        },
        _ => return unanswered(id, error),
    };
    EngineError::Program {
        message: format!("{program:?} cannot be executed in the guest: {error}"),
        code,
    }
}

fn unasked(id: InstanceId, error: ControlError) -> EngineError {
    match error {
        ControlError::Absent => EngineError::NotRunning { id },
        ControlError::Refused(message) => EngineError::Refused { message },
        error => failed(id, "asking its process", error),
    }
}

fn unanswered(id: InstanceId, error: AgentError) -> EngineError {
    match error {
        AgentError::Absent => EngineError::NotRunning { id },
        AgentError::Failed(Failure {
            kind: ErrorKind::NotFound,
            message,
        }) => EngineError::NotFound { message },
        AgentError::Failed(failure) => EngineError::Refused {
            message: failure.message,
        },
        error => failed(id, "asking the agent in it", error),
    }
}

fn joined<T>(result: Result<T, tokio::task::JoinError>) -> T {
    result.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
