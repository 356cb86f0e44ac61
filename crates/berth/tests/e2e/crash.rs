//! Death at every step: the daemon's at each named point between two effects, a shim's, that of all
//! processes at once, and at random. Afterwards the list is right, what was acknowledged is there, and
//! nothing is left over.

use std::{
    collections::BTreeSet,
    process::{Command, Stdio},
    time::Duration,
};

use testkit::{Daemon, Registry};

use crate::common::{PATIENCE, clear_images, daemon, status, until, until_so};

/// A program that ends with 7 when asked to.
const OBEDIENT: &str = "trap 'exit 7' TERM; echo ready; while :; do sleep 0.05; done";

/// What is passed from a create to a running program.
const CREATE: [&str; 14] = [
    "launch.instance_create",
    "step.instance_create.image.run",
    "step.instance_create.image.ran",
    "step.instance_create.directory.run",
    "step.instance_create.directory.ran",
    "ending.instance_create",
    "ended.instance_create",
    "node.prepare.before",
    "node.prepare.ensured",
    "node.prepare.attached",
    "node.prepare.after",
    "node.start.before",
    "node.start.ensured",
    "node.start.after",
];

/// What guests have on the host. The daemon's own (itself, bridges, rules) is not counted.
fn residue(daemon: &Daemon) -> BTreeSet<String> {
    let all = daemon.leftovers().into_iter();
    let of_guests = |line: &String| match line.split_once(' ') {
        Some(("process", rest)) => !rest.contains(" daemon --root "),
        // Links of instances have a dot, bridges have none.
        Some(("link", name)) => name.contains('.'),
        Some(("table", _)) => false,
        _ => true,
    };
    all.filter(of_guests).collect()
}

/// Starts the daemon to die at `point`, does something that gets it there, and starts it again.
fn die_at(daemon: &mut Daemon, point: &str, words: &[&str]) {
    daemon.stop();
    daemon.restart_to_die_at(point).unwrap();
    // The answer is lost with the daemon, or came just before.
    daemon.run(words).unwrap();
    assert!(daemon.has_died(PATIENCE), "{point} is never passed");
    daemon.restart().unwrap();
}

fn start(daemon: &Daemon, name: &str) {
    let words = ["run", "-d", "--name", name, "busybox", "sh", "-c", OBEDIENT];
    daemon.berth(&words).unwrap();
    until_so("it listens", || {
        daemon.berth(&["logs", name]).unwrap() == "ready"
    });
}

fn becomes(daemon: &Daemon, name: &str, wanted: &str) {
    let end = std::time::Instant::now() + PATIENCE;
    while status(daemon, name) != wanted {
        assert!(
            std::time::Instant::now() < end,
            "not {wanted}: {:#}",
            daemon.inspect(name).unwrap()
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn remove(daemon: &Daemon, name: &str) {
    daemon.berth(&["rm", "-f", name]).unwrap();
    gone(daemon, name);
}

fn gone(daemon: &Daemon, after: &str) {
    let mut left = BTreeSet::new();
    let end = std::time::Instant::now() + PATIENCE;
    while std::time::Instant::now() < end {
        left = residue(daemon);
        if left.is_empty() && daemon.list().unwrap().is_empty() {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    panic!("left over after {after}: {left:#?} {:?}", daemon.list());
}

#[test]
fn a_daemon_that_dies_while_creating_finishes_after() {
    let Some(mut daemon) = daemon("a_daemon_that_dies_while_creating") else {
        return;
    };
    for point in CREATE {
        let words = [
            "run", "-d", "--name", "box", "busybox", "sh", "-c", OBEDIENT,
        ];
        die_at(&mut daemon, point, &words);
        until_so("it runs", || {
            daemon.list().unwrap() == [("box".to_owned(), "running".to_owned())]
        });
        let address = daemon.inspect("box").unwrap()["addresses"][0]
            .as_str()
            .unwrap()
            .to_owned();
        let links = daemon
            .berth(&["exec", "box", "ip", "addr", "show", "eth0"])
            .unwrap();
        assert!(links.contains(&address), "{point}: {links}");
        let gateway = format!("{}.1", address.rsplit_once('.').unwrap().0);
        daemon
            .berth(&["exec", "box", "ping", "-c", "1", "-W", "5", &gateway])
            .unwrap();
        remove(&daemon, "box");
    }
}

#[test]
fn everything_may_die_while_creating_stopping_and_deleting() {
    let Some(mut daemon) = daemon("everything_may_die_while") else {
        return;
    };
    let create = [
        "run", "-d", "--name", "box", "busybox", "sh", "-c", OBEDIENT,
    ];
    let all_at = |daemon: &mut Daemon, point: &str, words: &[&str]| {
        daemon.stop();
        daemon.restart_to_die_at(point).unwrap();
        daemon.run(words).unwrap();
        assert!(daemon.has_died(PATIENCE), "{point} is never passed");
        daemon.kill_all();
        daemon.restart().unwrap();
        comes_to_rest(daemon);
    };
    for point in CREATE {
        all_at(&mut daemon, point, &create);
        // It was asked for; whether its first run had begun is the only question.
        assert_eq!(daemon.list().unwrap().len(), 1, "{point}");
        if status(&daemon, "box") == "stopped" {
            daemon.berth(&["start", "box"]).unwrap();
        }
        daemon.berth(&["exec", "box", "true"]).unwrap();
        remove(&daemon, "box");
    }
    for (point, verb) in [
        ("node.ask.after", "stop"),
        ("node.settle.before", "stop"),
        ("node.settle.written", "stop"),
        ("node.settle.removed", "stop"),
    ] {
        start(&daemon, "box");
        all_at(&mut daemon, point, &[verb, "box"]);
        assert_eq!(status(&daemon, "box"), "stopped", "{point}");
        remove(&daemon, "box");
    }
    for point in [
        "launch.instance_delete",
        "step.instance_delete.end.ran",
        "ending.instance_delete",
    ] {
        start(&daemon, "box");
        all_at(&mut daemon, point, &["rm", "-f", "box"]);
        gone(&daemon, point);
    }
}

#[test]
fn what_a_lost_foreground_run_prepared_goes_away() {
    let Some(mut daemon) = daemon("what_a_lost_foreground_run") else {
        return;
    };
    for point in ["step.instance_create.directory.run", "node.prepare.after"] {
        die_at(&mut daemon, point, &["run", "--rm", "busybox", "true"]);
        gone(&daemon, point);
        // Without --rm it waits for who comes back.
        die_at(
            &mut daemon,
            point,
            &["run", "--name", "box", "busybox", "echo", "begun"],
        );
        until_so("it is prepared", || {
            daemon.list().unwrap() == [("box".to_owned(), "prepared".to_owned())]
        });
        daemon.berth(&["start", "box"]).unwrap();
        becomes(&daemon, "box", "stopped");
        assert_eq!(daemon.berth(&["logs", "box"]).unwrap(), "begun");
        remove(&daemon, "box");
    }
}

#[test]
fn a_daemon_that_dies_while_stopping_finishes_after() {
    let Some(mut daemon) = daemon("a_daemon_that_dies_while_stopping") else {
        return;
    };
    start(&daemon, "box");
    for point in [
        "node.ask.before",
        "node.ask.after",
        "node.settle.before",
        "node.settle.written",
        "node.settle.removed",
        "node.settle.after",
    ] {
        die_at(&mut daemon, point, &["stop", "box"]);
        becomes(&daemon, "box", "stopped");
        let exit = daemon.inspect("box").unwrap()["exit"].clone();
        assert_eq!(exit["code"], 7, "{point}: {exit}");
        until_so("nothing is left but its directory", || {
            residue(&daemon)
                .iter()
                .all(|line| line.contains("root/instances/"))
        });
        daemon.berth(&["start", "box"]).unwrap();
        until_so("it listens", || {
            daemon.berth(&["logs", "-n", "1", "box"]).unwrap() == "ready"
        });
    }
    for point in ["node.end.before", "node.end.after"] {
        die_at(&mut daemon, point, &["stop", "--force", "box"]);
        becomes(&daemon, "box", "stopped");
        assert_eq!(
            daemon.inspect("box").unwrap()["exit"]["code"],
            137,
            "{point}"
        );
        daemon.berth(&["start", "box"]).unwrap();
    }
    for (point, verb, wanted) in [
        ("node.pause.before", "pause", "paused"),
        ("node.resume.before", "resume", "running"),
        ("node.pause.after", "pause", "paused"),
        ("node.resume.after", "resume", "running"),
    ] {
        die_at(&mut daemon, point, &[verb, "box"]);
        becomes(&daemon, "box", wanted);
    }
    remove(&daemon, "box");
}

#[test]
fn a_daemon_that_dies_while_deleting_finishes_after() {
    let Some(mut daemon) = daemon("a_daemon_that_dies_while_deleting") else {
        return;
    };
    for point in [
        "launch.instance_delete",
        "step.instance_delete.end.run",
        "step.instance_delete.end.ran",
        "step.instance_delete.directory.run",
        "step.instance_delete.directory.ran",
        "ending.instance_delete",
        "ended.instance_delete",
    ] {
        start(&daemon, "box");
        die_at(&mut daemon, point, &["rm", "-f", "box"]);
        gone(&daemon, point);
    }
    let operations = daemon.berth(&["op", "list", "-o", "json"]).unwrap();
    assert!(!operations.contains("stuck"), "{operations}");
}

#[test]
fn a_daemon_that_dies_while_pulling_starts_over() {
    if testkit::lacks(
        "a_daemon_that_dies_while_pulling",
        &["docker-registry", "curl"],
    ) {
        return;
    }
    let Some(mut daemon) = daemon("a_daemon_that_dies_while_pulling") else {
        return;
    };
    let _registry = Registry::start(daemon.netns()).unwrap();
    let there = "127.0.0.1:5000/box:1";
    daemon.berth(&["image", "push", "busybox", there]).unwrap();
    let works = |daemon: &Daemon| {
        operations_end(daemon);
        daemon.berth(&["image", "pull", there]).unwrap();
        assert_eq!(
            daemon
                .berth(&["run", "--rm", "--pull", "never", there, "echo", "fine"])
                .unwrap(),
            "fine"
        );
        let unfinished = daemon.root().join("images/ingest");
        assert_eq!(std::fs::read_dir(unfinished).unwrap().count(), 0);
    };
    for point in [
        "launch.image_pull",
        "step.image_pull.pull.run",
        "step.image_pull.pull.ran",
        "ending.image_pull",
        "ended.image_pull",
    ] {
        clear_images(&daemon);
        die_at(&mut daemon, point, &["image", "pull", there]);
        works(&daemon);
    }
    // And in the middle of its only step.
    for wait in [2, 5, 10, 20, 40] {
        clear_images(&daemon);
        let mut pull = daemon.command(&["image", "pull", there]);
        let mut pull = pull
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(wait));
        daemon.kill();
        pull.wait().unwrap();
        daemon.restart().unwrap();
        works(&daemon);
    }
    clear_images(&daemon);
}

#[test]
fn a_daemon_that_dies_while_pushing_building_or_importing_starts_over() {
    let test = "a_daemon_that_dies_while_pushing";
    if testkit::lacks(test, &["docker-registry", "curl"]) {
        return;
    }
    let Some(mut daemon) = daemon(test) else {
        return;
    };
    let _registry = Registry::start(daemon.netns()).unwrap();
    let there = "127.0.0.1:5000/box:1";
    let archive = daemon.root().with_file_name("box.tar");
    let archive = archive.to_str().unwrap();
    daemon
        .berth(&["image", "export", "busybox", "-f", archive])
        .unwrap();
    // What is done, and the image that is there after it, to be run and taken away.
    for (kind, words, made) in [
        ("push", &["image", "push", "busybox", there][..], there),
        (
            "build",
            &["image", "build", "--recipe", "busybox", "--name", "made"],
            "made",
        ),
        (
            "import",
            &["image", "import", archive, "brought"],
            "brought",
        ),
    ] {
        let points = [
            format!("launch.image_{kind}"),
            format!("step.image_{kind}.{kind}.run"),
            format!("step.image_{kind}.{kind}.ran"),
            format!("ending.image_{kind}"),
            format!("ended.image_{kind}"),
        ];
        for point in &points {
            die_at(&mut daemon, point, words);
            operations_end(&daemon);
            // Again, whatever came of it: nothing stands in the way.
            daemon.berth(words).unwrap();
            let pull = if kind == "push" { "always" } else { "never" };
            let ran = daemon.berth(&["run", "--rm", "--pull", pull, made, "echo", "fine"]);
            assert_eq!(ran.unwrap(), "fine", "{point}");
            until_so("its image is free", || {
                daemon.berth(&["image", "rm", made]).is_ok()
            });
            let images = daemon.berth(&["image", "list", "-o", "name"]).unwrap();
            assert_eq!(images.lines().count(), 1, "{point}: {images}");
            let unfinished = daemon.root().join("images/ingest");
            assert_eq!(std::fs::read_dir(unfinished).unwrap().count(), 0, "{point}");
            gone(&daemon, point);
        }
    }
    let operations = daemon.berth(&["op", "list", "-o", "json"]).unwrap();
    assert!(!operations.contains("stuck"), "{operations}");
}

fn operations_end(daemon: &Daemon) {
    until_so("the operation of before ends", || {
        let all = daemon.berth(&["op", "list", "-o", "json"]).unwrap();
        !all.contains("\"running\"") && !all.contains("\"pending\"")
    });
}

#[test]
fn guests_do_not_notice_that_the_daemon_dies() {
    let Some(mut daemon) = daemon("guests_do_not_notice") else {
        return;
    };
    start(&daemon, "stays");
    daemon
        .berth(&[
            "run",
            "-d",
            "--name",
            "ends",
            "busybox",
            "sh",
            "-c",
            "sleep 1; echo last words; exit 5",
        ])
        .unwrap();
    daemon
        .berth(&[
            "run", "-d", "--rm", "--name", "goes", "busybox", "sleep", "1",
        ])
        .unwrap();
    daemon
        .berth(&["run", "-d", "--name", "frozen", "busybox", "sleep", "1000"])
        .unwrap();
    daemon.berth(&["pause", "frozen"]).unwrap();
    let before = daemon.inspect("stays").unwrap();
    daemon.kill();
    until_so("it ends while nobody looks", || {
        !residue(&daemon)
            .iter()
            .any(|line| line.contains("sh -c sleep 1; echo last"))
    });
    daemon.restart().unwrap();
    let after = daemon.inspect("stays").unwrap();
    for same in ["pid", "started_at", "status", "addresses"] {
        assert_eq!(before[same], after[same], "{same}");
    }
    becomes(&daemon, "ends", "stopped");
    assert_eq!(daemon.inspect("ends").unwrap()["exit"]["code"], 5);
    assert_eq!(daemon.berth(&["logs", "ends"]).unwrap(), "last words");
    assert_eq!(status(&daemon, "frozen"), "paused");
    until_so("--rm holds after a crash", || {
        daemon.run(&["show", "goes"]).unwrap().code == 3
    });
    daemon
        .berth(&["exec", "stays", "nslookup", "frozen"])
        .unwrap();
    daemon.berth(&["stop", "stays"]).unwrap();
    assert_eq!(daemon.inspect("stays").unwrap()["exit"]["code"], 7);
}

#[test]
fn a_killed_shim_takes_its_guest_along_and_leaks_nothing() {
    let Some(mut daemon) = daemon("a_killed_shim") else {
        return;
    };
    let kill = |daemon: &Daemon, name: &str| {
        let id = daemon.inspect(name).unwrap()["id"]
            .as_str()
            .unwrap()
            .to_owned();
        let shim = until("there is a shim", || daemon.shim(&id));
        assert!(
            Command::new("kill")
                .args(["-9", &shim.to_string()])
                .status()
                .unwrap()
                .success()
        );
    };
    start(&daemon, "box");
    kill(&daemon, "box");
    becomes(&daemon, "box", "stopped");
    let only_directories = |daemon: &Daemon| {
        residue(daemon)
            .iter()
            .all(|line| line.contains("root/instances/"))
    };
    until_so("its guest is gone too", || only_directories(&daemon));
    daemon.berth(&["start", "box"]).unwrap();
    daemon.berth(&["pause", "box"]).unwrap();
    kill(&daemon, "box");
    becomes(&daemon, "box", "stopped");
    until_so("its frozen guest is gone too", || only_directories(&daemon));
    // While the daemon is away, too.
    daemon.berth(&["start", "box"]).unwrap();
    becomes(&daemon, "box", "running");
    let id = daemon.inspect("box").unwrap()["id"]
        .as_str()
        .unwrap()
        .to_owned();
    daemon.kill();
    let shim = daemon.shim(&id).unwrap();
    assert!(
        Command::new("kill")
            .args(["-9", &shim.to_string()])
            .status()
            .unwrap()
            .success()
    );
    daemon.restart().unwrap();
    becomes(&daemon, "box", "stopped");
    until_so("its guest is gone too", || only_directories(&daemon));
    let words = [
        "run",
        "-d",
        "--name",
        "back",
        "--restart",
        "always",
        "busybox",
        "sleep",
        "1000",
    ];
    daemon.berth(&words).unwrap();
    let first = daemon.inspect("back").unwrap()["pid"].clone();
    kill(&daemon, "back");
    until_so("it is started again", || {
        let shown = daemon.inspect("back").unwrap();
        shown["status"] == "running" && shown["pid"] != first
    });
}

#[test]
fn all_processes_may_die_at_once() {
    let Some(mut daemon) = daemon("all_processes_may_die") else {
        return;
    };
    start(&daemon, "once");
    let words = [
        "run",
        "-d",
        "--name",
        "always",
        "--restart",
        "always",
        "busybox",
        "sleep",
        "1000",
    ];
    daemon.berth(&words).unwrap();
    daemon
        .berth(&["exec", "always", "sh", "-c", "echo mine > /own; sync"])
        .unwrap();
    let addresses = daemon.inspect("always").unwrap()["addresses"].clone();
    daemon.kill_all();
    daemon.restart().unwrap();
    becomes(&daemon, "once", "stopped");
    becomes(&daemon, "always", "running");
    assert_eq!(daemon.inspect("always").unwrap()["addresses"], addresses);
    assert_eq!(
        daemon.berth(&["exec", "always", "cat", "/own"]).unwrap(),
        "mine"
    );
    daemon.berth(&["start", "once"]).unwrap();
    remove_all(&daemon);
}

fn remove_all(daemon: &Daemon) {
    daemon.remove_instances().unwrap();
    gone(daemon, "all");
}

/// For minutes, on demand: `BERTH_CHAOS_SECONDS=600 cargo test -p berth --test e2e chaos -- --ignored`.
/// `BERTH_CHAOS_SEED` repeats the same commands and crashes.
#[test]
#[ignore = "takes as long as it is told"]
fn chaos() {
    let Some(mut daemon) = daemon("chaos") else {
        return;
    };
    let number = |name: &str| {
        std::env::var(name)
            .ok()
            .and_then(|text| text.parse::<u64>().ok())
    };
    let seconds = number("BERTH_CHAOS_SECONDS").unwrap_or(60);
    let seed =
        number("BERTH_CHAOS_SEED").unwrap_or_else(|| u64::from(std::process::id()) << 20 | seconds);
    std::io::Write::write_all(
        &mut std::io::stderr(),
        format!("BERTH_CHAOS_SEED={seed}\n").as_bytes(),
    )
    .unwrap();
    let mut dice = seed | 1;
    let mut throw = move |sides: u64| {
        // Marsaglia's xorshift64.
        dice ^= dice << 13;
        dice ^= dice >> 7;
        dice ^= dice << 17;
        (dice >> 11) % sides
    };
    let end = std::time::Instant::now() + Duration::from_secs(seconds);
    while std::time::Instant::now() < end {
        let mut children = Vec::new();
        for _ in 0..6 {
            let name = format!("box{}", throw(4));
            let words: Vec<&str> = match throw(7) {
                0 | 1 => vec![
                    "run", "-d", "--name", &name, "busybox", "sh", "-c", OBEDIENT,
                ],
                2 => vec!["stop", "--force", &name],
                3 => vec!["start", &name],
                4 => vec!["rm", "-f", &name],
                5 => vec!["pause", &name],
                _ => vec!["run", "--rm", "busybox", "true"],
            };
            let mut command = daemon.command(&words);
            command.stdout(Stdio::null()).stderr(Stdio::null());
            children.push(command.spawn().unwrap());
            std::thread::sleep(Duration::from_millis(throw(30)));
        }
        match throw(3) {
            0 => daemon.kill(),
            1 => daemon.kill_all(),
            _ => daemon.stop(),
        }
        for mut child in children {
            child.wait().unwrap();
        }
        daemon.restart().unwrap();
        comes_to_rest(&daemon);
        if throw(4) == 0 {
            remove_all(&daemon);
        }
    }
    remove_all(&daemon);
}

/// Every instance is somewhere it may stay, and can be taken away.
fn comes_to_rest(daemon: &Daemon) {
    let at_rest = |status: &str| ["running", "stopped", "paused"].contains(&status);
    let end = std::time::Instant::now() + PATIENCE;
    loop {
        let all = daemon.list().unwrap();
        if all.iter().all(|(_, status)| at_rest(status)) {
            return;
        }
        if std::time::Instant::now() > end {
            let operations = daemon.run(&["op", "list", "-o", "json"]).unwrap().out;
            panic!("not at rest: {all:?} {operations}");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}
