//! Exit codes, signals and pipes.

use std::{
    io::{BufRead, BufReader, Write},
    process::Stdio,
};

use rustix::process::{Pid, Signal, kill_process};

use crate::{
    fake::Fake,
    session_text::{berth, run},
};

#[test]
fn every_class_of_failure_has_its_code() {
    let fake = Fake::start();
    fake.instance("web", "running");
    for (words, code) in [
        (&["ls"][..], 0),
        (&["stop", "broken"], 1),
        (&["nonsense"], 2),
        (&["run", "-p", "x", "debian"], 2),
        (&["show", "none"], 3),
        (&["rm", "web"], 4),
        (&["stop", "forbidden"], 5),
        (&["-H", "unix:///nonexistent", "ls"], 6),
        (&["stop", "late"], 7),
        (&["run", "--rm", "debian", "code", "42"], 42),
        (&["exec", "web", "code", "41"], 41),
        (&["run", "--rm", "debian", "complain", "loudly"], 1),
        (&["run", "--name", "v", "debian", "vanish"], 6),
        (&["start", "web", "none", "forbidden"], 3),
    ] {
        let output = run(&fake, words, "");
        assert_eq!(output.status.code(), Some(code), "{words:?}: {output:?}");
        // Whoever fails says why, and nothing of it on stdout; a program speaks for itself.
        if (1..=7).contains(&code) && !words.contains(&"complain") {
            assert!(!output.stderr.is_empty(), "{words:?}");
        }
    }
}

#[test]
fn a_pipe_goes_through_a_program() {
    let fake = Fake::start();
    let text = "line\n".repeat(20_000);
    let output = run(&fake, &["run", "--rm", "-i", "debian", "cat"], &text);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(String::from_utf8(output.stdout).unwrap(), text);
}

#[test]
fn signals_reach_the_program_and_three_interrupts_end_it() {
    let fake = Fake::start();
    let start = || {
        let mut child = berth(&fake, &["run", "--rm", "debian", "linger"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert_eq!(lines.next().unwrap().unwrap(), "waiting");
        (child, lines)
    };
    let send = |child: &std::process::Child, signal| {
        kill_process(Pid::from_child(child), signal).unwrap();
    };
    let (mut child, mut lines) = start();
    send(&child, Signal::HUP);
    assert_eq!(
        lines.next().unwrap().unwrap(),
        "Signal { signal: \"SIGHUP\" }"
    );
    send(&child, Signal::TERM);
    assert_eq!(child.wait().unwrap().code(), Some(143));

    let (mut child, mut lines) = start();
    for _ in 0..2 {
        send(&child, Signal::INT);
        assert_eq!(
            lines.next().unwrap().unwrap(),
            "Signal { signal: \"SIGINT\" }"
        );
    }
    send(&child, Signal::INT);
    assert_eq!(child.wait().unwrap().code(), Some(137));
}

#[test]
fn whoever_has_enough_of_the_output_ends_it_quietly() {
    let fake = Fake::start();
    for number in 0..2000 {
        fake.instance(&format!("web-{number}"), "running");
    }
    let mut child = berth(&fake, &["ls"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    let mut first = String::new();
    lines.read_line(&mut first).unwrap();
    drop(lines);
    let output = child.wait_with_output().unwrap();
    assert!(output.stderr.is_empty(), "{output:?}");
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn a_password_never_stands_on_the_command_line() {
    let fake = Fake::start();
    let output = run(&fake, &["image", "pull", "--username", "me", "nginx"], "");
    assert_eq!(output.status.code(), Some(2));
    let mut child = berth(
        &fake,
        &[
            "image",
            "pull",
            "--username",
            "me",
            "--password-stdin",
            "nginx",
        ],
    )
    .stdin(Stdio::piped())
    .stdout(Stdio::piped())
    .spawn()
    .unwrap();
    child.stdin.take().unwrap().write_all(b"secret\n").unwrap();
    assert!(child.wait_with_output().unwrap().status.success());
}
