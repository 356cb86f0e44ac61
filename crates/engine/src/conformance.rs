//! What every engine must do, as one suite. It panics at the first thing that does not hold.
//!
//! The caller supplies guests whose program is `true`, `false`, `sleep 1000` or, for an exec,
//! `cat` and `false`, and that have no [`NO_PROGRAM`]; how they come to exist (an image, a root) is the caller's.

use std::{
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::Bytes;
use model::{
    InstanceId,
    instance::{Limits, LogSpec},
    units::ByteSize,
};

use crate::{
    Engine, EngineError, Guest, GuestNetwork, GuestProcess, GuestState, Input, Output, Root,
    Session, SessionEnd, Target,
};

/// A program that no guest has.
pub const NO_PROGRAM: &str = "/no/such/program";

/// Makes guests for the suite.
pub trait Guests: Send {
    /// A guest with an identity of its own, the files it needs in place, that runs `args`.
    fn make(&mut self, args: &[&str]) -> Guest;
}

/// Guests without any program behind them, for engines that need none; their directories are
/// made below `directory`.
#[must_use]
pub fn plain_guests(directory: &Path) -> impl Guests {
    struct Plain(PathBuf, u128);
    impl Guests for Plain {
        fn make(&mut self, args: &[&str]) -> Guest {
            self.1 += 1;
            let id = format!("00000000-0000-7000-8000-{:012x}", self.1);
            let directory = self.0.join(&id);
            let id = id.parse().expect("twelve digits complete a UUID");
            let guest = guest(id, directory, Vec::new(), args);
            std::fs::create_dir_all(&guest.root.upper).expect("the guest's directory");
            guest
        }
    }
    Plain(directory.to_owned(), 0)
}

/// A guest shut in as usual but for its users, with its own files below `directory`.
#[must_use]
pub fn guest(id: InstanceId, directory: PathBuf, layers: Vec<PathBuf>, args: &[&str]) -> Guest {
    Guest {
        id,
        generation: 1,
        machine: None,
        root: Root {
            layers,
            upper: directory.join("root/upper"),
            work: directory.join("root/work"),
            read_only: false,
        },
        directory,
        process: process(args),
        system: false,
        limits: Limits::default(),
        capabilities: Vec::new(),
        seccomp: true,
        allow_new_privileges: false,
        idmap: None,
        mounts: Vec::new(),
        devices: Vec::new(),
        ulimits: Vec::new(),
        sysctls: std::collections::BTreeMap::new(),
        hostname: "guest".to_owned(),
        network: GuestNetwork::Own,
        log: LogSpec::default(),
    }
}

fn process(args: &[&str]) -> GuestProcess {
    GuestProcess {
        args: args.iter().map(|word| (*word).to_owned()).collect(),
        env: vec!["PATH=/bin:/usr/bin".to_owned()],
        cwd: "/".to_owned(),
        stdin: true,
        ..GuestProcess::default()
    }
}

/// Runs the suite.
pub async fn run(engine: &dyn Engine, guests: &mut dyn Guests) {
    absence_is_no_error(engine, guests).await;
    a_guest_is_prepared_then_runs_then_ends(engine, guests).await;
    exit_codes_are_told(engine, guests).await;
    older_generations_are_refused(engine, guests).await;
    signals_end_and_removal_takes_away(engine, guests).await;
    programs_run_inside(engine, guests).await;
    a_program_that_is_not_there_is_said_to_be_missing(engine, guests).await;
    the_root_is_the_same_running_or_not(engine, guests).await;
    if engine.capabilities().pause {
        pausing_freezes(engine, guests).await;
    }
    if engine.capabilities().live_limits {
        limits_change_while_running(engine, guests).await;
    }
}

async fn absence_is_no_error(engine: &dyn Engine, guests: &mut dyn Guests) {
    let id = guests.make(&["true"]).id;
    assert_eq!(
        engine.observe(id).await.expect("observe").state,
        GuestState::Absent
    );
    engine.remove(id).await.expect("removing nothing");
    engine.signal(id, 15).await.expect("a signal to nobody");
    assert!(engine.stats(id).await.expect("stats of nobody").is_none());
    assert!(matches!(
        engine.attach(id, false).await,
        Err(EngineError::NotRunning { .. })
    ));
}

async fn a_guest_is_prepared_then_runs_then_ends(engine: &dyn Engine, guests: &mut dyn Guests) {
    let guest = guests.make(&["true"]);
    let mut events = engine.events();
    let prepared = engine
        .ensure(&guest, Target::Prepared)
        .await
        .expect("prepare");
    assert_eq!(prepared.state, GuestState::Prepared);
    assert!(
        prepared.pid.is_some(),
        "a prepared guest has a process to attach a network to"
    );
    let again = engine
        .ensure(&guest, Target::Prepared)
        .await
        .expect("prepare again");
    assert_eq!(again.pid, prepared.pid, "preparing twice is preparing once");
    assert!(
        engine
            .list()
            .await
            .expect("list")
            .iter()
            .any(|seen| seen.id == guest.id)
    );
    let session = engine
        .attach(guest.id, false)
        .await
        .expect("attach before the start");
    engine.ensure(&guest, Target::Running).await.expect("run");
    assert_eq!(end(session).await, SessionEnd::Exited { code: 0 });
    let seen = exited(engine, guest.id).await;
    assert_eq!(seen.exit.expect("an exit").code, 0);
    let heard = async {
        while let Ok(event) = events.recv().await {
            if event.id == guest.id {
                return;
            }
        }
        panic!("the end of a guest is an event");
    };
    within("an event", heard).await;
    let stays = engine
        .ensure(&guest, Target::Running)
        .await
        .expect("ensure after the exit");
    assert_eq!(
        stays.state,
        GuestState::Exited,
        "what has ended is not started again unasked"
    );
    engine.remove(guest.id).await.expect("remove");
    engine
        .ensure(&guest, Target::Running)
        .await
        .expect("a new run after the removal");
    exited(engine, guest.id).await;
    engine.remove(guest.id).await.expect("remove");
    assert_eq!(
        engine.observe(guest.id).await.expect("observe").state,
        GuestState::Absent
    );
}

async fn exit_codes_are_told(engine: &dyn Engine, guests: &mut dyn Guests) {
    let guest = guests.make(&["false"]);
    engine.ensure(&guest, Target::Running).await.expect("run");
    let exit = exited(engine, guest.id).await.exit.expect("an exit");
    assert_eq!((exit.code, exit.signal), (1, None));
    engine.remove(guest.id).await.expect("remove");
}

async fn older_generations_are_refused(engine: &dyn Engine, guests: &mut dyn Guests) {
    let mut guest = guests.make(&["sleep", "1000"]);
    guest.generation = 5;
    engine.ensure(&guest, Target::Running).await.expect("run");
    guest.generation = 4;
    let refused = engine.ensure(&guest, Target::Running).await;
    assert!(matches!(
        refused,
        Err(EngineError::Stale {
            given: 4,
            current: 5,
            ..
        })
    ));
    engine.remove(guest.id).await.expect("remove");
}

async fn signals_end_and_removal_takes_away(engine: &dyn Engine, guests: &mut dyn Guests) {
    let guest = guests.make(&["sleep", "1000"]);
    engine.ensure(&guest, Target::Running).await.expect("run");
    assert!(
        engine
            .stats(guest.id)
            .await
            .expect("stats")
            .is_some_and(|stats| stats.pids >= 1)
    );
    let inside = engine.processes(guest.id).await.expect("processes");
    assert!(
        inside.iter().any(|process| process.inner_pid == 1),
        "{inside:?}"
    );
    engine.signal(guest.id, 9).await.expect("kill");
    let exit = exited(engine, guest.id).await.exit.expect("an exit");
    assert_eq!((exit.code, exit.signal), (137, Some(9)));
    engine.remove(guest.id).await.expect("remove");

    let guest = guests.make(&["sleep", "1000"]);
    let running = engine.ensure(&guest, Target::Running).await.expect("run");
    assert_eq!(running.state, GuestState::Running);
    engine.remove(guest.id).await.expect("remove what runs");
    assert_eq!(
        engine.observe(guest.id).await.expect("observe").state,
        GuestState::Absent
    );
    assert!(
        !engine
            .list()
            .await
            .expect("list")
            .iter()
            .any(|seen| seen.id == guest.id)
    );
}

async fn programs_run_inside(engine: &dyn Engine, guests: &mut dyn Guests) {
    let guest = guests.make(&["sleep", "1000"]);
    engine.ensure(&guest, Target::Running).await.expect("run");
    let failing = engine
        .exec(guest.id, &process(&["false"]))
        .await
        .expect("exec false");
    assert_eq!(end(failing).await, SessionEnd::Exited { code: 1 });

    let mut echo = engine
        .exec(guest.id, &process(&["cat"]))
        .await
        .expect("exec cat");
    echo.input
        .send(Input::Stdin(Bytes::from_static(b"ahoy")))
        .await
        .expect("send");
    let answer = within("an answer", echo.output.recv()).await;
    assert_eq!(answer, Some(Output::Stdout(Bytes::from_static(b"ahoy"))));
    echo.input.send(Input::Eof).await.expect("end of input");
    assert_eq!(end(echo).await, SessionEnd::Exited { code: 0 });
    engine.remove(guest.id).await.expect("remove");
}

async fn a_program_that_is_not_there_is_said_to_be_missing(
    engine: &dyn Engine,
    guests: &mut dyn Guests,
) {
    let missing = |error: &EngineError| matches!(error, EngineError::Program { code: 127, message } if message.contains(NO_PROGRAM));
    let guest = guests.make(&[NO_PROGRAM]);
    let refused = engine.ensure(&guest, Target::Running).await;
    assert!(refused.as_ref().is_err_and(missing), "{refused:?}");
    assert_eq!(
        engine.observe(guest.id).await.expect("observe").state,
        GuestState::Absent,
        "what was begun is taken away"
    );
    let guest = guests.make(&["sleep", "1000"]);
    engine.ensure(&guest, Target::Running).await.expect("run");
    let refused = engine.exec(guest.id, &process(&[NO_PROGRAM])).await;
    let error = refused.expect_err("there is no such program");
    assert!(missing(&error), "{error:?}");
    engine.remove(guest.id).await.expect("remove");
}

async fn the_root_is_the_same_running_or_not(engine: &dyn Engine, guests: &mut dyn Guests) {
    let mut guest = guests.make(&["sleep", "1000"]);
    let file = |view: &crate::RootView| {
        PathBuf::from(format!("/proc/self/fd/{}/ahoy", view.directory.as_raw_fd()))
    };
    let stopped = engine.open_root(&guest).await.expect("a root at rest");
    std::fs::write(file(&stopped), "from outside").expect("a file in a root at rest");
    drop(stopped);
    engine.ensure(&guest, Target::Running).await.expect("run");
    let live = engine.open_root(&guest).await.expect("a root in use");
    let seen = std::fs::read_to_string(file(&live)).expect("the file inside");
    assert_eq!(seen, "from outside");
    engine.remove(guest.id).await.expect("remove");
    drop(live);
    guest.root.read_only = true;
    let reading = engine.open_root(&guest).await.expect("a root to read");
    let both = engine.open_root(&guest).await.expect("a second reader");
    for view in [reading, both] {
        let seen = std::fs::read_to_string(file(&view)).expect("the file at rest");
        assert_eq!(seen, "from outside");
    }
}

async fn pausing_freezes(engine: &dyn Engine, guests: &mut dyn Guests) {
    let guest = guests.make(&["sleep", "1000"]);
    engine.ensure(&guest, Target::Running).await.expect("run");
    let paused = engine.ensure(&guest, Target::Paused).await.expect("pause");
    assert_eq!(paused.state, GuestState::Paused);
    let resumed = engine
        .ensure(&guest, Target::Running)
        .await
        .expect("resume");
    assert_eq!(resumed.state, GuestState::Running);
    engine
        .ensure(&guest, Target::Paused)
        .await
        .expect("pause again");
    engine
        .remove(guest.id)
        .await
        .expect("remove what is frozen");
    assert_eq!(
        engine.observe(guest.id).await.expect("observe").state,
        GuestState::Absent
    );
}

async fn limits_change_while_running(engine: &dyn Engine, guests: &mut dyn Guests) {
    let mut guest = guests.make(&["sleep", "1000"]);
    guest.limits.memory = Some(ByteSize(64 << 20));
    engine.ensure(&guest, Target::Running).await.expect("run");
    let limits = Limits {
        memory: Some(ByteSize(96 << 20)),
        pids: Some(50),
        ..Limits::default()
    };
    engine
        .set_limits(guest.id, &limits)
        .await
        .expect("other limits");
    let seen = engine.observe(guest.id).await.expect("observe");
    assert_eq!(
        seen.state,
        GuestState::Running,
        "other limits do not disturb the program"
    );
    engine.remove(guest.id).await.expect("remove");
}

async fn exited(engine: &dyn Engine, id: InstanceId) -> crate::Observed {
    let wait = async {
        loop {
            let seen = engine.observe(id).await.expect("observe");
            if seen.state == GuestState::Exited {
                return seen;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    within("the end of a program", wait).await
}

async fn end(mut session: Session) -> SessionEnd {
    let wait = async {
        loop {
            match session.output.recv().await {
                Some(Output::End(end)) => return end,
                Some(_) => {}
                None => panic!("a session ends in End"),
            }
        }
    };
    within("the end of a session", wait).await
}

/// Waits, but not for ever: a suite that hangs tells nobody why.
async fn within<T>(what: &str, wait: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), wait)
        .await
        .unwrap_or_else(|_| panic!("waited 20 s for {what}"))
}
