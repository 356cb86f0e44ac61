//! The daemon: the composition root. The one place that names the store's backend, the engine,
//! the pool and the networks, puts them together, serves, and lets go.
//!
//! Stopping it, however, touches no guest: what runs is taken back at the next start.

mod doctor;
mod heap;
mod logging;
mod recover;
mod registries;

use std::{path::PathBuf, process::ExitCode, sync::Arc};

use anyhow::{Context, Result, bail};
use api::{Check, Verdict};
use control::{Control, Identity, Parts};
use engines::container::{Config as EngineConfig, ContainerEngine};
use model::instance::PowerState;
use node::{Node, Paths, Wiring, clock};
use server::{CancellationToken, Config as ServerConfig, Listener, Server};
use tokio::signal::unix::{SignalKind, signal};
use volume::DirectoryPool;

use crate::cli::daemon::DaemonArgs;

pub use recover::main as recover;

/// File that says in which boot of the host the daemon last ran.
const BOOT_FILE: &str = "boot_id";

/// Name of the check of control groups, whose finding `info` shows by itself.
const CONTROL_GROUPS: &str = "control groups";

/// Runs the daemon until it is told to stop.
#[must_use]
pub fn main(args: DaemonArgs) -> ExitCode {
    logging::start(&args);
    match run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("the daemon cannot run: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: DaemonArgs) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("it has to be root to make namespaces and networks; run it with sudo");
    }
    if let Some(path) = &args.netns {
        // Before any thread is made: every later one starts here.
        enter(path)?;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(workers())
        .enable_all()
        .build()
        .context("no threads can be made")?;
    runtime.block_on(serve(args))
}

/// Threads for waiting on sockets: the work itself is done by guests and blocking threads.
fn workers() -> usize {
    std::thread::available_parallelism().map_or(2, |count| count.get().clamp(2, 4))
}

fn enter(path: &PathBuf) -> Result<()> {
    use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
    let namespace = std::fs::File::open(path)
        .with_context(|| format!("the network namespace {} cannot be opened", path.display()))?;
    move_into_link_name_space(
        std::os::fd::AsFd::as_fd(&namespace),
        Some(LinkNameSpaceType::Network),
    )
    .with_context(|| format!("{} is not a network namespace to enter", path.display()))
}

async fn serve(args: DaemonArgs) -> Result<()> {
    let paths = Paths::new(&args.place.root, &args.place.run_dir);
    paths.make()?;
    let _lock = lock(&paths)?;
    let control = compose(&args, &paths).await?;
    let listeners = listeners(&args, &paths).await?;
    for listener in &listeners {
        tracing::info!(address = listener.address(), "listening");
    }
    let stop = CancellationToken::new();
    tokio::spawn(stop_on_signal(stop.clone()));
    server::systemd::ready("serving");
    let server = Server::new(Arc::new(control.clone()), ServerConfig::default());
    server.run(listeners, stop).await;
    control.shutdown().await;
    tracing::info!("stopped; guests go on");
    Ok(())
}

/// One daemon at a time has a root: held until the process ends, however it ends.
fn lock(paths: &Paths) -> Result<std::fs::File> {
    let path = paths.root().join("lock");
    let file = std::fs::File::create(&path)
        .with_context(|| format!("{} cannot be written", path.display()))?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => bail!(
            "another daemon has {}; stop it, or use another --root and --run-dir",
            paths.root().display()
        ),
        Err(error) => Err(error).with_context(|| format!("{} cannot be locked", path.display())),
    }
}

async fn compose(args: &DaemonArgs, paths: &Paths) -> Result<Control> {
    let store = store::sqlite::open(paths.database(), store::sqlite::Options::default())?;
    let images = image::Store::open(paths.images())?;
    let volumes = DirectoryPool::open(&paths.pool())?;
    let prefix = network::Prefix::parse(&args.prefix)?;
    let vmm = beside_runtime(args, "berth-vmm")?;
    let findings = doctor::examine(&vmm, control_groups(), &volumes);
    for check in findings
        .checks
        .iter()
        .filter(|it| it.verdict != Verdict::Ok)
    {
        let advice = check.advice.as_deref().unwrap_or_default();
        tracing::warn!(found = check.found, advice, "{}", check.name);
    }
    let engine = ContainerEngine::new(EngineConfig {
        runtime: runtime(args)?,
        vmm,
        accel: findings.accel,
        guests: paths.guests(),
        instances: paths.instances(),
        cgroup: format!("/{prefix}"),
    });
    // What a crash left half removed; in the background, for there may be much of it.
    let trash = paths.clone();
    tokio::task::spawn_blocking(move || {
        if let Err(error) = node::directory::empty_trash(&trash) {
            tracing::warn!(%error, "the trash cannot be emptied");
        }
    });
    let fresh_boot = boot_changed(paths);
    if fresh_boot {
        start_again(&store).await?;
    }
    tokio::spawn(heap::give_back_when_quiet(store.clone()));
    let node = Node::start(node::Parts {
        paths: paths.clone(),
        store,
        engine: Arc::new(engine),
        images,
        agent: beside_runtime(args, "berth-agent")?,
        volumes: Arc::new(volumes),
        wiring: Wiring::open(&prefix)?,
    })
    .await?;
    let registries = registries::load(args.registries.as_deref(), paths)?;
    let identity = identity(args, findings.checks);
    Ok(Control::open(Parts {
        node,
        registries,
        identity,
    })
    .await?)
}

/// The static runtime: as told, beside this program, or this program itself.
fn runtime(args: &DaemonArgs) -> Result<PathBuf> {
    if let Some(path) = &args.runtime {
        return std::path::absolute(path).context("the runtime has no absolute path");
    }
    let own = std::env::current_exe().context("this program cannot be found")?;
    let beside = own.with_file_name("berth-oci");
    Ok(if beside.exists() { beside } else { own })
}

/// A program that comes with the static runtime, beside it. That one is missing is told to whoever
/// needs it.
fn beside_runtime(args: &DaemonArgs, name: &str) -> Result<PathBuf> {
    Ok(runtime(args)?.with_file_name(name))
}

/// Whether the host was started anew since the daemon last ran, which is then noted.
fn boot_changed(paths: &Paths) -> bool {
    let now = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let file = paths.root().join(BOOT_FILE);
    let before = std::fs::read_to_string(&file).unwrap_or_default();
    if before != now {
        // If it cannot be noted, instances are started once more than needed: no harm.
        let _ = std::fs::write(&file, &now);
    }
    !before.is_empty() && before != now
}

/// After a start of the host, what is always to run is wanted again even if it was stopped.
async fn start_again(store: &store::Store) -> Result<()> {
    use model::instance::RestartPolicy;
    use node::tables::INSTANCES;
    for entry in INSTANCES.list(store).await?.entries {
        let mut record = entry.value;
        if record.spec.restart != RestartPolicy::Always || record.desired == PowerState::Running {
            continue;
        }
        record.desired = PowerState::Running;
        record.run += 1;
        record.generation += 1;
        let mut txn = store::Txn::new();
        INSTANCES.update(&mut txn, &entry.id, entry.revision, &record)?;
        store.commit(txn).await?;
    }
    Ok(())
}

fn identity(args: &DaemonArgs, checks: Vec<Check>) -> Identity {
    Identity {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        prefix: args.prefix.clone(),
        cgroups: checks
            .iter()
            .find(|check| check.name == CONTROL_GROUPS)
            .map_or_else(|| "none".to_owned(), |check| check.found.clone()),
        checks,
        started_at: clock::now(),
    }
}

fn control_groups() -> Check {
    let check = |verdict, found: &str, advice| Check {
        name: CONTROL_GROUPS.to_owned(),
        verdict,
        found: found.to_owned(),
        advice,
    };
    let layout = match cgroup::Layout::detect() {
        Ok(layout) => layout,
        Err(error) => {
            let advice = format!("nothing can be limited: {error}");
            return check(Verdict::Missing, "none", Some(advice));
        }
    };
    let mode = match layout.mode() {
        cgroup::Mode::Unified => "v2",
        cgroup::Mode::Legacy => "v1",
        cgroup::Mode::Hybrid => "hybrid",
        cgroup::Mode::None => "none",
    };
    let found = layout.controllers();
    let missing: Vec<&str> = ["cpu", "memory", "pids"]
        .into_iter()
        .filter(|name| cgroup::Controller::from_name(name).is_none_or(|one| !found.contains(one)))
        .collect();
    if missing.is_empty() {
        return check(Verdict::Ok, mode, None);
    }
    let advice = format!("this kernel cannot limit {}", missing.join(", "));
    check(Verdict::Limited, mode, Some(advice))
}

async fn listeners(args: &DaemonArgs, paths: &Paths) -> Result<Vec<Listener>> {
    let identity = match (&args.tls_cert, &args.tls_key) {
        (Some(certificate), Some(key)) => Some(server::Identity::load(certificate, key)?),
        _ if args.listen.is_empty() => None,
        _ => {
            let mut names = vec!["localhost".to_owned()];
            names.push(
                rustix::system::uname()
                    .nodename()
                    .to_string_lossy()
                    .into_owned(),
            );
            names.extend(args.listen.iter().map(|address| address.ip().to_string()));
            Some(server::Identity::self_signed(
                &paths.root().join("tls"),
                &names,
            )?)
        }
    };
    let mut listeners = Listener::inherited(identity.as_ref())?;
    if listeners.is_empty() {
        listeners.push(Listener::unix(&paths.socket(), &args.group)?);
    }
    if let Some(identity) = &identity {
        tracing::info!(
            fingerprint = format!("sha256:{}", identity.fingerprint()),
            "certificate, for BERTH_FINGERPRINT"
        );
        for address in &args.listen {
            listeners.push(Listener::tls(*address, identity).await?);
        }
    }
    Ok(listeners)
}

async fn stop_on_signal(stop: CancellationToken) {
    let (Ok(mut terminate), Ok(mut interrupt)) = (
        signal(SignalKind::terminate()),
        signal(SignalKind::interrupt()),
    ) else {
        return;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    server::systemd::stopping();
    stop.cancel();
}
