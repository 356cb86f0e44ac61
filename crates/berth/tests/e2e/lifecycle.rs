//! The life of a container: run, look, stop, start, freeze, enter, watch, remove.

use std::{fs, io::Read, os::unix::fs::PermissionsExt, process::Stdio, time::Duration};

use serde_json::Value;

use crate::common::{daemon, idle, status, until_so};

/// A program that ends with 7 when asked to, and says so.
const OBEDIENT: &str = "trap 'echo bye; exit 7' TERM; echo ready; while :; do sleep 0.05; done";

#[test]
fn a_foreground_run_passes_on_output_and_exit_code() {
    let Some(daemon) = daemon("a_foreground_run") else {
        return;
    };
    let said = daemon
        .run(&[
            "run",
            "--rm",
            "busybox",
            "sh",
            "-c",
            "echo out; echo err >&2; exit 42",
        ])
        .unwrap();
    assert_eq!((said.code, said.out.as_str()), (42, "out\n"), "{said:?}");
    assert!(said.err.contains("err\n"), "{said:?}");
    let listed = daemon.list().unwrap();
    assert!(listed.is_empty(), "it is gone with its program: {listed:?}");

    let input = daemon.command(&["run", "--rm", "-i", "busybox", "cat"]);
    let said = fed(input, "through and back\n");
    assert_eq!(said.out, "through and back\n", "{said:?}");

    let words = [
        "run",
        "--name",
        "kept",
        "--env",
        "A=b",
        "--workdir",
        "/tmp",
        "busybox",
        "sh",
        "-c",
    ];
    let script = "echo $A; pwd; hostname; touch /made; kill -TERM $$; sleep 5";
    let said = daemon.run(&[&words[..], &[script]].concat()).unwrap();
    // Signals that a first process does not handle are not delivered: it sleeps and ends well.
    assert_eq!(
        (said.code, said.out.as_str()),
        (0, "b\n/tmp\nkept\n"),
        "{said:?}"
    );
    let shown = daemon.inspect("kept").unwrap();
    assert_eq!(shown["status"], "stopped");
    assert_eq!(shown["exit"]["code"], 0);
    let absent = daemon
        .run(&["run", "--rm", "busybox", "no-such-program"])
        .unwrap();
    assert_eq!(absent.code, 127, "{absent:?}");
    assert!(absent.err.contains("no-such-program"), "{absent:?}");
}

/// A runtime that does nothing until a file is gone.
const SLOW: &str = "#!/bin/sh\nwhile [ -e GATE ]; do sleep 0.02; done\nexec RUNTIME \"$@\"\n";

#[test]
fn a_create_that_takes_long_is_waited_for() {
    let Some(mut daemon) = idle("a_create_that_takes_long_is_waited_for", &[]) else {
        return;
    };
    let place = tempfile::tempdir().unwrap();
    let (program, gate) = (place.path().join("runtime"), place.path().join("gate"));
    let runtime = daemon.stand_before_runtime(&program);
    let script = SLOW
        .replace("GATE", gate.to_str().unwrap())
        .replace("RUNTIME", runtime.to_str().unwrap());
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    daemon.restart().unwrap();
    for (words, code, out) in [
        (
            &["--rm", "busybox", "sh", "-c", "echo here; exit 7"][..],
            7,
            "here\n",
        ),
        (&["--rm", "busybox", "no-such-program"], 127, ""),
        (
            &["-d", "--name", "box", "busybox", "sleep", "1000"],
            0,
            "box\n",
        ),
        (
            &["-d", "--name", "none", "busybox", "no-such-program"],
            127,
            "",
        ),
    ] {
        fs::write(&gate, "").unwrap();
        let mut run = daemon.command(&[&["run"], words].concat());
        run.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut run = run.spawn().unwrap();
        // Longer than the daemon is asked to wait with its answer.
        std::thread::sleep(Duration::from_millis(2500));
        let early = run.try_wait().unwrap();
        fs::remove_file(&gate).unwrap();
        let said = testkit::Said::of(&run.wait_with_output().unwrap());
        assert_eq!(early, None, "{words:?}: {said:?}");
        assert_eq!((said.code, &*said.out), (code, out), "{words:?}: {said:?}");
    }
    assert_eq!(status(&daemon, "box"), "running");
}

#[test]
fn power_verbs_do_what_they_say() {
    let Some(daemon) = daemon("power_verbs") else {
        return;
    };
    daemon
        .berth(&[
            "run", "-d", "--name", "web", "busybox", "sh", "-c", OBEDIENT,
        ])
        .unwrap();
    assert_eq!(
        daemon.list().unwrap(),
        [("web".to_owned(), "running".to_owned())]
    );
    let id = daemon.inspect("web").unwrap()["id"]
        .as_str()
        .unwrap()
        .to_owned();
    until_so("it listens", || {
        daemon.berth(&["logs", "web"]).unwrap() == "ready"
    });

    daemon.berth(&["stop", &id[..13]]).unwrap();
    let shown = daemon.inspect("web").unwrap();
    assert_eq!(
        (&shown["status"], &shown["exit"]["code"]),
        (&"stopped".into(), &7.into())
    );
    assert_eq!(
        daemon.berth(&["logs", "--tail", "1", "web"]).unwrap(),
        "bye"
    );

    daemon.berth(&["start", "web"]).unwrap();
    assert_eq!(status(&daemon, "web"), "running");
    let first = daemon.inspect("web").unwrap()["pid"].clone();
    daemon.berth(&["restart", "--force", "web"]).unwrap();
    let second = daemon.inspect("web").unwrap()["pid"].clone();
    assert_ne!(first, second);

    daemon.berth(&["pause", "web"]).unwrap();
    assert_eq!(status(&daemon, "web"), "paused");
    daemon.berth(&["resume", "web"]).unwrap();
    assert_eq!(status(&daemon, "web"), "running");
    daemon.berth(&["pause", "web"]).unwrap();
    // A frozen program is thawed to hear that it shall end.
    daemon.berth(&["stop", "web"]).unwrap();
    assert_eq!(daemon.inspect("web").unwrap()["exit"]["code"], 7);

    daemon.berth(&["start", "web"]).unwrap();
    daemon.berth(&["kill", "web"]).unwrap();
    let said = daemon.run(&["wait", "web"]).unwrap();
    assert!(said.out.contains("137"), "{said:?}");
    daemon.berth(&["rm", "web"]).unwrap();
    assert!(daemon.list().unwrap().is_empty());
}

#[test]
fn what_ignores_the_signal_is_ended_by_force() {
    let Some(daemon) = daemon("what_ignores_the_signal") else {
        return;
    };
    let stubborn = "trap '' TERM; echo ready; while :; do sleep 0.05; done";
    let words = [
        "run",
        "-d",
        "--name",
        "deaf",
        "--stop-timeout",
        "1",
        "busybox",
        "sh",
        "-c",
    ];
    daemon.berth(&[&words[..], &[stubborn]].concat()).unwrap();
    until_so("it is deaf", || {
        daemon.berth(&["logs", "deaf"]).unwrap() == "ready"
    });
    let refused = daemon.run(&["rm", "deaf"]).unwrap();
    assert_eq!(refused.code, 4, "{refused:?}");
    daemon.berth(&["stop", "deaf"]).unwrap();
    let shown = daemon.inspect("deaf").unwrap();
    assert_eq!(
        (&shown["exit"]["code"], &shown["exit"]["signal"]),
        (&137.into(), &9.into())
    );
    daemon.berth(&["start", "deaf"]).unwrap();
    daemon.berth(&["rm", "-f", "deaf"]).unwrap();
}

#[test]
fn programs_are_run_inside_and_watched() {
    let Some(daemon) = daemon("programs_are_run_inside") else {
        return;
    };
    let words = [
        "run", "-d", "--name", "box", "--label", "tier=web", "busybox", "sh", "-c",
    ];
    daemon
        .berth(
            &[
                &words[..],
                &["trap 'exit 0' TERM; while :; do sleep 0.05; done"],
            ]
            .concat(),
        )
        .unwrap();
    let said = daemon
        .run(&[
            "exec",
            "-e",
            "X=1",
            "-u",
            "1000:1001",
            "-w",
            "/tmp",
            "box",
            "sh",
            "-c",
            "echo $X $(id -u) $(id -g) $(pwd); exit 9",
        ])
        .unwrap();
    assert_eq!(
        (said.code, said.out.as_str()),
        (9, "1 1000 1001 /tmp\n"),
        "{said:?}"
    );
    let tty = daemon
        .run(&["exec", "-t", "box", "sh", "-c", "tty; stty size"])
        .unwrap();
    assert!(tty.out.starts_with("/dev/pts/"), "{tty:?}");
    let cat = fed(
        daemon.command(&["exec", "-i", "box", "cat"]),
        "to the program",
    );
    assert_eq!((cat.code, cat.out.as_str()), (0, "to the program"));
    let missing = daemon.run(&["exec", "box", "nothing-there"]).unwrap();
    assert!(missing.code == 127 || missing.code == 1, "{missing:?}");

    let top: Value =
        serde_json::from_str(&daemon.berth(&["top", "-o", "json", "box"]).unwrap()).unwrap();
    assert_eq!(top[0]["inner_pid"], 1, "{top}");
    assert_eq!(top[0]["uid"], 0);
    let stats = daemon.berth(&["stats", "-o", "json", "box"]).unwrap();
    let stats: Value = serde_json::from_str(&stats).unwrap();
    assert!(stats[0]["memory_bytes"].as_u64().unwrap() > 0, "{stats}");
    let said = daemon.run(&["show", "box", "--cpu-stats"]).unwrap();
    assert!(
        said.code == 1 && said.err.contains("\"box\" is a container"),
        "{said:?}"
    );
    let found = daemon
        .berth(&["list", "-q", "--filter", "label=tier=web"])
        .unwrap();
    assert_eq!(found, "box");
    assert_eq!(
        daemon
            .berth(&["list", "-q", "--filter", "label=tier=db"])
            .unwrap(),
        ""
    );

    daemon.berth(&["stop", "box"]).unwrap();
    daemon.berth(&["rm", "box"]).unwrap();
    let events = daemon
        .berth(&["events", "--since", "0", "--no-follow", "-o", "json"])
        .unwrap();
    for kind in ["instance.created", "instance.started", "instance.exited"] {
        assert!(events.contains(kind), "{kind} in {events}");
    }
}

#[test]
fn logs_are_kept_followed_and_cut() {
    let Some(daemon) = daemon("logs_are_kept") else {
        return;
    };
    let script =
        "for i in 1 2 3; do echo line $i; done; echo oops >&2; read go; echo after; read go";
    daemon
        .berth(&[
            "run", "-d", "-i", "--name", "talker", "busybox", "sh", "-c", script,
        ])
        .unwrap();
    until_so("all is said", || {
        daemon.berth(&["logs", "talker"]).unwrap().contains("oops")
    });
    assert_eq!(
        daemon
            .berth(&["logs", "--stream", "stdout", "talker"])
            .unwrap(),
        "line 1\nline 2\nline 3"
    );
    // What was said on the other stream since is not counted.
    assert_eq!(
        daemon
            .berth(&["logs", "-n", "2", "--stream", "stdout", "talker"])
            .unwrap(),
        "line 2\nline 3"
    );
    let errors = daemon
        .run(&["logs", "--stream", "stderr", "talker"])
        .unwrap();
    assert_eq!((errors.out + &errors.err).trim(), "oops");
    let stamped = daemon
        .berth(&["logs", "-t", "--stream", "stdout", "talker"])
        .unwrap();
    assert!(
        stamped.starts_with("20") && stamped.ends_with("Z line 3"),
        "{stamped}"
    );
    assert_eq!(
        daemon
            .berth(&["logs", "--since", "2100-01-01T00:00:00Z", "talker"])
            .unwrap(),
        ""
    );

    let mut follow = daemon.command(&["logs", "-f", "--stream", "stdout", "talker"]);
    let mut follow = follow.stdout(Stdio::piped()).spawn().unwrap();
    let mut attach = daemon.command(&["attach", "talker"]);
    let mut attach = attach
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Write::write_all(attach.stdin.as_mut().unwrap(), b"go\n").unwrap();
    until_so("it goes on", || {
        daemon.berth(&["logs", "talker"]).unwrap().contains("after")
    });
    std::io::Write::write_all(attach.stdin.as_mut().unwrap(), b"go\n").unwrap();
    // Both end with the program.
    let mut text = String::new();
    follow
        .stdout
        .take()
        .unwrap()
        .read_to_string(&mut text)
        .unwrap();
    assert_eq!(text, "line 1\nline 2\nline 3\nafter\n");
    assert!(follow.wait().unwrap().success());
    assert!(attach.wait_with_output().unwrap().status.success());
}

#[test]
fn mistakes_have_their_own_exit_codes() {
    let Some(mut daemon) = idle("mistakes_have_their_own", &[]) else {
        return;
    };
    let down = daemon.run(&["list"]).unwrap();
    assert_eq!(down.code, 6, "{down:?}");
    daemon.restart().unwrap();
    daemon
        .berth(&["run", "-d", "--name", "one", "busybox", "sleep", "1000"])
        .unwrap();
    let again = daemon
        .run(&["run", "-d", "--name", "one", "busybox", "true"])
        .unwrap();
    assert_eq!(again.code, 4, "{again:?}");
    let unknown = daemon.run(&["show", "oen"]).unwrap();
    assert_eq!(unknown.code, 3, "{unknown:?}");
    let wrong = daemon.run(&["run", "--memory", "much", "busybox"]).unwrap();
    assert_eq!(wrong.code, 2, "{wrong:?}");
    let slow = daemon.run(&["wait", "--timeout", "100ms", "one"]).unwrap();
    assert_eq!(slow.code, 7, "{slow:?}");
}

/// Runs a command with input.
fn fed(mut command: std::process::Command, input: &str) -> testkit::Said {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), input.as_bytes()).unwrap();
    testkit::Said::of(&child.wait_with_output().unwrap())
}
