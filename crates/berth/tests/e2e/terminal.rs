//! At a terminal: shells, sizes, keys and signals reach the program inside, and an editor changes a spec.

use testkit::{Daemon, Terminal, code_of};

use crate::common::{daemon, status, until_so};

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
