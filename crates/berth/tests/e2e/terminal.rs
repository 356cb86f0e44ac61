//! At a terminal: shells, sizes, keys and signals reach the program inside, and an editor changes a spec.

use std::{
    fs::{self, File},
    io::Write,
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use testkit::{Daemon, Terminal, code_of};

use crate::common::{daemon, status, until, until_so};

fn sleeping(daemon: &Daemon) {
    daemon
        .berth(&["run", "-d", "--name", "box", "busybox", "sleep", "1000"])
        .unwrap();
}

#[test]
fn a_shell_has_the_terminal_its_size_and_its_keys() {
    let Some(daemon) = daemon("a_shell_has_the_terminal") else {
        return;
    };
    sleeping(&daemon);
    let mut terminal = Terminal::open().unwrap();
    let mut shell = daemon.command(&["shell", "box"]);
    let shell = terminal.spawn(shell.env("TERM", "xterm")).unwrap();
    terminal.until("# ").unwrap();
    // Asked of the kernel in one piece: what is typed is seen too, so the answer must not be in it.
    terminal.resize(&shell, 33, 77).unwrap();
    let mut asked = 0;
    until_so("the size arrives", || {
        asked += 1;
        terminal
            .press(&format!("echo size $(stty size) no$((900 + {asked}))\n"))
            .unwrap();
        let seen = terminal.until(&format!("no{}", 900 + asked)).unwrap();
        seen.contains("size 33 77")
    });
    terminal
        .press("echo $TERM on $(tty | cut -c1-9)\n")
        .unwrap();
    terminal.until("xterm on /dev/pts/").unwrap();
    // Ctrl-C ends what runs in the foreground inside, and nothing else.
    terminal
        .press("echo be$((1 + 1))gin; sleep 1000; echo after $?\n")
        .unwrap();
    terminal.until("be2gin").unwrap();
    terminal.press("\x03").unwrap();
    terminal.press("echo still $((6 * 7))\n").unwrap();
    terminal.until("still 42").unwrap();
    terminal.press("exit 9\n").unwrap();
    assert_eq!(code_of(shell).unwrap(), Some(9));
    assert!(!terminal.is_raw().unwrap(), "the terminal is given back");
    assert_eq!(status(&daemon, "box"), "running");
}

#[test]
fn a_foreground_run_has_the_terminal_and_is_left_by_its_keys() {
    let Some(daemon) = daemon("a_foreground_run_has_the_terminal") else {
        return;
    };
    let mut terminal = Terminal::open().unwrap();
    let script = "stty size; trap 'echo now $(stty size)' WINCH; echo ready; \
                  while :; do read -t 1 line && echo got $line; [ \"$line\" = end ] && exit 3; done";
    let words = ["run", "-it", "--name", "tty", "busybox", "sh", "-c", script];
    let child = terminal.spawn(&mut daemon.command(&words)).unwrap();
    terminal.until("ready").unwrap();
    terminal.resize(&child, 41, 99).unwrap();
    terminal.until("now 41 99").unwrap();
    terminal.press("\x10\x11").unwrap();
    assert!(
        terminal
            .until("berth attach tty")
            .unwrap()
            .contains("Left tty running")
    );
    assert_eq!(code_of(child).unwrap(), Some(0));
    assert_eq!(status(&daemon, "tty"), "running");
    let child = terminal
        .spawn(&mut daemon.command(&["attach", "tty"]))
        .unwrap();
    terminal.press("end\n").unwrap();
    terminal.until("got end").unwrap();
    assert_eq!(code_of(child).unwrap(), Some(3));
}

#[test]
fn signals_are_passed_on_to_the_program() {
    let Some(daemon) = daemon("signals_are_passed_on") else {
        return;
    };
    sleeping(&daemon);
    let script = "trap 'echo heard; exit 12' TERM; trap 'echo user' USR1; echo ready; \
                  while :; do sleep 0.05; done";
    for words in [
        &["exec", "box", "sh", "-c", script][..],
        &["run", "--rm", "busybox", "sh", "-c", script],
    ] {
        let mut terminal = Terminal::open().unwrap();
        let child = terminal.spawn(&mut daemon.command(words)).unwrap();
        terminal.until("ready").unwrap();
        let pid = rustix::process::Pid::from_child(&child);
        for (signal, answer) in [
            (rustix::process::Signal::USR1, "user"),
            (rustix::process::Signal::TERM, "heard"),
        ] {
            rustix::process::kill_process(pid, signal).unwrap();
            terminal.until(answer).unwrap();
        }
        assert_eq!(code_of(child).unwrap(), Some(12), "{words:?}");
    }
}

#[test]
fn an_editor_changes_a_spec_and_loses_no_work() {
    let Some(daemon) = daemon("an_editor_changes_a_spec") else {
        return;
    };
    let words = [
        "run", "-d", "--name", "box", "--memory", "32M", "busybox", "sleep", "1000",
    ];
    daemon.berth(&words).unwrap();
    let edit = |editor: &str| {
        let mut command = daemon.command(&["edit", "box"]);
        command.env_remove("VISUAL").env("EDITOR", editor);
        let output = command.output().unwrap();
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    };
    let memory = || daemon.inspect("box").unwrap()["spec"]["memory"].clone();
    let before = memory();
    let (code, said) = edit("true");
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(memory(), before);
    let (code, said) = edit("sed -i 's/^memory:.*/memory: 48M/'");
    assert_eq!(code, Some(0), "{said}");
    assert!(
        memory().as_str().unwrap().starts_with("48M"),
        "{}",
        memory()
    );
    // What cannot be read, what cannot be, and what somebody else changed meanwhile.
    let set = format!(
        "sh -c '{} set box -l other=1 && sed -i s/^memory:.*/memory:\\ 64M/ \"$1\"' x",
        crate::common::BERTH
    );
    for (editor, expected) in [
        ("sed -i 's/^memory:.*/memory: [/'", 2),
        ("sed -i 's/^memory:.*/memory: lots/'", 2),
        (&*set, 4),
    ] {
        let (code, said) = edit(editor);
        assert_eq!(code, Some(expected), "{editor}: {said}");
        let kept = said.rsplit("kept in ").next().unwrap().trim();
        assert!(std::fs::read_to_string(kept).is_ok(), "{editor}: {said}");
        std::fs::remove_file(kept).unwrap();
        assert!(memory().as_str().unwrap().starts_with("48M"), "{editor}");
    }
    let (code, said) = edit("false");
    assert_eq!(code, Some(1), "{said}");
    // Other limits were told once, and the mark, which is none, not at all.
    let events = daemon
        .berth(&["events", "--since", "0", "--no-follow", "-o", "json"])
        .unwrap();
    assert_eq!(
        events.matches("instance.limits_changed").count(),
        1,
        "{events}"
    );
}

/// A command that goes on while the test does other things; what it says goes to files.
struct Going {
    child: Child,
    said: PathBuf,
    place: tempfile::TempDir,
}

impl Going {
    fn start(daemon: &Daemon, words: &[&str]) -> Self {
        let place = tempfile::tempdir().unwrap();
        let said = place.path().join("err");
        let child = daemon
            .command(words)
            .stdin(Stdio::piped())
            .stdout(File::create(place.path().join("out")).unwrap())
            .stderr(File::create(&said).unwrap())
            .spawn()
            .unwrap();
        Self { child, said, place }
    }

    fn out(&self) -> String {
        fs::read_to_string(self.place.path().join("out")).unwrap()
    }

    fn until_out(&self, text: &str) {
        until_so(text, || self.out().contains(text));
    }

    fn until_said(&self, text: &str) {
        until_so(text, || {
            fs::read_to_string(&self.said).unwrap().contains(text)
        });
    }

    fn code(mut self) -> Option<i32> {
        let status = until("it ends", || self.child.try_wait().unwrap());
        status.code()
    }
}

impl Drop for Going {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const AWAY: &str = "waiting for the daemon";
const BACK: &str = "Connected again";

#[test]
fn a_program_in_the_foreground_stays_there_while_the_daemon_is_replaced() {
    let Some(mut daemon) = daemon("a_program_in_the_foreground_stays_there") else {
        return;
    };
    let script = "echo ready; read line; echo got $line; exit 9";
    for (name, more) in [("kept", &[][..]), ("gone", &["--rm"])] {
        let words = [&["run", "-i", "--name", name], more].concat();
        let words = [&words[..], &["busybox", "sh", "-c", script]].concat();
        let mut run = Going::start(&daemon, &words);
        run.until_out("ready");
        match name {
            "kept" => daemon.kill(),
            _ => daemon.stop(),
        }
        run.until_said(AWAY);
        daemon.restart().unwrap();
        run.until_said(BACK);
        run.child.stdin.take().unwrap().write_all(b"on\n").unwrap();
        run.until_out("ready\ngot on\n");
        assert_eq!(run.code(), Some(9), "{name}");
    }

    // At a terminal, which is its own again.
    let mut terminal = Terminal::open().unwrap();
    let words = ["run", "-it", "--rm", "busybox", "sh", "-c", script];
    let child = terminal.spawn(&mut daemon.command(&words)).unwrap();
    terminal.until("ready").unwrap();
    daemon.kill();
    terminal.until(AWAY).unwrap();
    daemon.restart().unwrap();
    terminal.until(BACK).unwrap();
    terminal.press("on\n").unwrap();
    terminal.until("got on").unwrap();
    assert_eq!(code_of(child).unwrap(), Some(9));
    assert!(!terminal.is_raw().unwrap());
}

#[test]
fn how_a_program_ended_while_the_daemon_was_away_is_told() {
    let Some(mut daemon) = daemon("how_a_program_ended_while_the_daemon_was_away") else {
        return;
    };
    let script = "trap 'exit 5' TERM; echo ready; while :; do sleep 0.05; done";
    let run = |daemon: &Daemon, name: &str, more: &[&str]| {
        let words = [&["run", "--name", name], more].concat();
        let words = [&words[..], &["busybox", "sh", "-c", script]].concat();
        let run = Going::start(daemon, &words);
        run.until_out("ready");
        run
    };
    let runs = [run(&daemon, "kept", &[]), run(&daemon, "gone", &["--rm"])];
    let pids = ["kept", "gone"].map(|name| daemon.inspect(name).unwrap()["pid"].to_string());
    daemon.kill();
    for going in &runs {
        going.until_said(AWAY);
    }
    for pid in pids {
        let killed = Command::new("kill").arg(pid).status().unwrap();
        assert!(killed.success());
    }
    daemon.restart().unwrap();
    for going in runs {
        assert_eq!(going.code(), Some(5));
    }
    // Who does not want to wait does not have to.
    let waits = run(&daemon, "left", &[]);
    daemon.kill();
    waits.until_said(AWAY);
    let pid = waits.child.id().to_string();
    Command::new("kill").args(["-INT", &pid]).status().unwrap();
    assert_eq!(waits.code(), Some(130));
    daemon.restart().unwrap();
    assert_eq!(status(&daemon, "left"), "running");
}
