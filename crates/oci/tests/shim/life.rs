//! From launch to nothing: states, the lock, the record, failures, and who may die when.

use container::shim::client::ClientError;
use container::shim::protocol::{Attach, ErrorCode, Phase, Request};
use container::shim::{CleanupError, cleanup, holder};

use crate::world::{Wish, World, collect, is_alive, wait_until};

#[test]
fn the_program_finds_open_what_it_was_given_and_nothing_else() {
    let directory = tempfile::tempdir().unwrap();
    let files = ["first", "second"].map(|name| directory.path().join(name));
    for file in &files {
        std::fs::write(file, "").unwrap();
    }
    let wish = Wish {
        descriptors: files.to_vec(),
        ..Wish::default()
    };
    let script = "echo one >&3; echo two >&4; ! (: >&5) 2>/dev/null";
    let Some(mut world) = World::new("descriptors", script, wish) else {
        return;
    };
    world.launch();
    let mut stream = world.attached(Attach::default());
    world.client().command(&Request::Start).unwrap();
    let (text, exited) = collect(&mut stream);
    assert_eq!(exited.code, 0, "{text}");
    let written = files.map(|file| std::fs::read_to_string(file).unwrap());
    assert_eq!(written, ["one\n", "two\n"]);
}

#[test]
fn a_container_goes_from_created_to_a_durable_record_and_leaves_nothing() {
    let script = "echo hello; echo sorry >&2; exit 3";
    let Some(mut world) = World::new("life", script, Wish::default()) else {
        return;
    };
    let launched = world.launch();
    assert!(is_alive(launched.pid) && is_alive(launched.shim_pid));
    assert_eq!(holder(&world.dir()).unwrap(), Some(launched.shim_pid));
    let groups = std::fs::read_to_string(format!("/proc/{}/cgroup", launched.shim_pid)).unwrap();
    if let Some(group) = groups.lines().find_map(|line| line.strip_prefix("0::")) {
        // Not its launcher's, and not one that ends with its container.
        assert_eq!(Some(group), world.config.shim_cgroup.as_deref());
    }
    let mut control = world.client();
    let state = control.state().unwrap();
    assert_eq!(
        (state.phase, state.pid, state.generation),
        (Phase::Created, launched.pid, 7)
    );
    assert!(matches!(
        cleanup(&world.dir()),
        Err(CleanupError::Alive { .. })
    ));

    let second = world.launch_raw();
    assert!(!second.status.success());
    assert!(
        String::from_utf8_lossy(&second.stderr).contains("already serves"),
        "{second:?}"
    );

    let mut stream = world.attached(Attach::default());
    control.command(&Request::Start).unwrap();
    let (text, exited) = collect(&mut stream);
    let record = world
        .record()
        .expect("the record is there before anybody is told");
    assert_eq!(
        (exited.code, exited.signal, exited.oom_killed),
        (3, None, false)
    );
    assert_eq!(
        (record.code, record.exited(), record.generation),
        (3, exited, 7)
    );
    assert!(record.started_at.unwrap() <= record.finished_at);
    assert!(record.usage.cpu_ns > 0, "{record:?}");
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["hello", "sorry"]);
    drop((control, stream));
    world.assert_gone();
    wait_until("the shim process is gone", || !is_alive(launched.shim_pid));
    let log = std::fs::read_to_string(&world.config.log.as_ref().unwrap().path).unwrap();
    assert!(
        log.contains(" stdout F hello\n") && log.contains(" stderr F sorry\n"),
        "{log}"
    );
}

#[test]
fn killing_the_shim_takes_the_container_along_and_cleanup_removes_the_rest() {
    let script = "sleep 1000 & sleep 1000";
    let Some(mut world) = World::new("kill9", script, Wish::default()) else {
        return;
    };
    let launched = world.launch();
    world.start();
    wait_until("both sleep", || {
        let layout = cgroup::Layout::detect().unwrap();
        let path = cgroup::CgroupPath::parse(&world.config.cgroup).unwrap();
        cgroup::Cgroup::open(&layout, &path).is_ok_and(|g| g.pids().unwrap().len() >= 2)
    });
    // SAFETY: the shim that this test launched.
    unsafe { libc::kill(launched.shim_pid, libc::SIGKILL) };
    wait_until("the container is gone", || !is_alive(launched.pid));
    assert_eq!(holder(&world.dir()).unwrap(), None);
    cleanup(&world.dir()).unwrap();
    world.assert_clean();
    cleanup(&world.dir()).unwrap();
    assert_eq!(world.record(), None, "nobody saw how it ended");
    world.launch();
    assert_eq!(
        world.client().state().unwrap().phase,
        Phase::Created,
        "the directory is usable again"
    );
}

#[test]
fn killing_the_shim_of_a_container_not_started_leaves_no_process() {
    let Some(mut world) = World::new("kill9c", "sleep 1000", Wish::default()) else {
        return;
    };
    let launched = world.launch();
    // SAFETY: the shim that this test launched.
    unsafe { libc::kill(launched.shim_pid, libc::SIGKILL) };
    wait_until("the container is gone", || !is_alive(launched.pid));
    cleanup(&world.dir()).unwrap();
    world.assert_clean();
}

#[test]
fn a_launch_that_fails_says_why_and_leaves_nothing() {
    let Some(world) = World::new("fails", "true", Wish::default()) else {
        return;
    };
    std::fs::remove_dir_all(world.config.bundle.join("rootfs")).unwrap();
    let output = world.launch_raw();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && output.stdout.is_empty());
    assert!(errors.contains("rootfs"), "{errors}");
    world.assert_clean();
    assert_eq!(holder(&world.dir()).unwrap(), None);

    let mut config = world.config.clone();
    config.terminal = true;
    config.save(&world.dir()).unwrap();
    let errors = String::from_utf8_lossy(&world.launch_raw().stderr).into_owned();
    assert!(errors.contains("config.json says false"), "{errors}");
    std::fs::write(world.dir().join("shim.json"), r#"{"version":99}"#).unwrap();
    let errors = String::from_utf8_lossy(&world.launch_raw().stderr).into_owned();
    assert!(errors.contains("version 99"), "{errors}");
}

#[test]
fn a_program_that_is_not_there_fails_the_start() {
    let Some(mut world) = World::new("noprog", "true", Wish::default()) else {
        return;
    };
    let path = world.config.bundle.join("config.json");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace("\"sh\"", "\"/bin/cat\"")).unwrap();
    world.launch();
    std::fs::remove_file(world.config.bundle.join("rootfs/bin/busybox")).unwrap();
    let error = world.client().command(&Request::Start).unwrap_err();
    assert!(
        matches!(&error, ClientError::Refused(f) if f.message.contains("/bin/cat")),
        "{error}"
    );
    world.assert_gone();
    assert_eq!(world.record().unwrap().started_at, None);
}

#[test]
fn pause_update_stats_and_signals_reach_the_container() {
    let script = "trap 'exit 42' TERM; while :; do sleep 0.05; done";
    let Some(mut world) = World::new("control", script, Wish::default()) else {
        return;
    };
    world.launch();
    world.start();
    let mut control = world.client();
    let refused = control.command(&Request::Start);
    assert!(matches!(refused, Err(ClientError::Refused(f)) if f.code == ErrorCode::Conflict));
    control.command(&Request::Pause).unwrap();
    assert_eq!(control.state().unwrap().phase, Phase::Paused);
    control.command(&Request::Resume).unwrap();
    assert_eq!(control.state().unwrap().phase, Phase::Running);
    let resources = serde_json::json!({ "pids": { "limit": 33 } });
    control.command(&Request::Update { resources }).unwrap();
    match control.ask(&Request::Stats).unwrap() {
        container::shim::protocol::Reply::Stats(stats) => {
            if let Some(pids) = stats.pids {
                assert_eq!(pids.limit, Some(33));
            }
        }
        other => panic!("{other:?}"),
    }
    let bad = control.command(&Request::Signal {
        signal: 99,
        all: false,
    });
    assert!(matches!(bad, Err(ClientError::Refused(f)) if f.code == ErrorCode::Invalid));
    // The shell needs a moment to set its trap; until then TERM does nothing to a first process.
    let mut waiter = world.client();
    waiter.send(&Request::Wait).unwrap();
    wait_until("it ends by TERM", || {
        let _ = control.command(&Request::Signal {
            signal: libc::SIGTERM,
            all: false,
        });
        world.record().is_some()
    });
    let frame = waiter.receive().unwrap();
    assert!(
        String::from_utf8_lossy(&frame.payload).contains(r#""code":42"#),
        "{frame:?}"
    );
    drop((control, waiter));
    world.assert_gone();
}

/// The shim is killed a little later each time: while it makes the container, while that waits, runs
/// and ends. Whatever is left then, cleanup removes it.
#[test]
fn a_shim_killed_at_any_moment_leaves_nothing_that_cleanup_does_not_remove() {
    let script = "echo begins; sleep 0.01";
    let Some(mut world) = World::new("anytime", script, Wish::default()) else {
        return;
    };
    for step in 0..24 {
        let dir = world.dir();
        let mut launcher = std::process::Command::new(env!("CARGO_BIN_EXE_berth-oci"))
            .args(["shim", "--dir"])
            .arg(&dir)
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let mut shim = None;
        wait_until("a shim has the directory", || {
            shim = holder(&dir).unwrap();
            shim.is_some() || launcher.try_wait().unwrap().is_some()
        });
        if step % 2 == 1 {
            launcher.wait().unwrap();
            if let Ok(mut client) = container::shim::client::Client::connect(&dir) {
                let _ = client.command(&Request::Start);
            }
        }
        std::thread::sleep(std::time::Duration::from_micros(900 * step));
        if let Some(pid) = shim.filter(|_| holder(&dir).unwrap() == shim) {
            // SAFETY: the shim of this test, by the id that its lock states.
            unsafe { libc::kill(pid, libc::SIGKILL) };
        }
        launcher.wait().unwrap();
        wait_until("the shim is gone", || holder(&dir).unwrap().is_none());
        cleanup(&dir).unwrap();
        world.assert_clean();
    }
    world.launch();
}
