//! Requests that are wrong: each has its code, says what is wrong, and leaves nothing behind.

use std::{
    io::Write as _,
    process::{Command, Stdio},
};

use serde_json::{Value, json};
use testkit::Daemon;

use crate::common::{bare, daemon, lend_busybox, until, until_so};

/// Sends a request with a body; the status and the answer.
fn send(daemon: &Daemon, words: &[&str], path: &str, body: &[u8]) -> (u16, Value) {
    let mut curl = Command::new("curl");
    curl.args(["-sS", "-w", "\n%{http_code}", "--unix-socket"]);
    curl.arg(daemon.run_dir().join("berth.sock"));
    curl.args(words).args(["--data-binary", "@-"]);
    curl.arg(format!("http://berth{path}"));
    let mut child = curl
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(body).unwrap();
    let text = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
    let (answer, status) = text.rsplit_once('\n').unwrap();
    (
        status.parse().unwrap(),
        serde_json::from_str(answer).unwrap_or(Value::Null),
    )
}

const JSON: [&str; 2] = ["-H", "Content-Type: application/json"];

#[test]
fn wrong_requests_are_refused_and_leave_nothing() {
    if testkit::lacks("wrong_requests_are_refused", &["curl"]) {
        return;
    }
    let Some(daemon) = daemon("wrong_requests_are_refused") else {
        return;
    };
    let spec = |more: Value| {
        let mut spec = json!({"image": "busybox"});
        spec.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        json!({"name": "bad", "spec": spec})
            .to_string()
            .into_bytes()
    };
    let mount = |mount: Value| spec(json!({"mounts": [mount]}));
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    // What is sent, the status, and a word of the answer.
    let table: Vec<(Vec<u8>, u16, &str)> = vec![
        (b"{".to_vec(), 400, "not valid JSON"),
        (b"\xff\xfe".to_vec(), 400, "not valid JSON"),
        (deep.into_bytes(), 400, ""),
        (vec![b' '; 2 << 20], 413, "larger than"),
        (
            json!({"spec": {"image": "busybox"}, "nmae": "x"})
                .to_string()
                .into_bytes(),
            400,
            "name",
        ),
        (spec(json!({"comand": ["x"]})), 400, "command"),
        (
            json!({"name": "../x", "spec": {"image": "busybox"}})
                .to_string()
                .into_bytes(),
            400,
            "name",
        ),
        (
            json!({"name": "A".repeat(5000), "spec": {"image": "busybox"}})
                .to_string()
                .into_bytes(),
            400,
            "name",
        ),
        (spec(json!({"image": ""})), 400, "image"),
        (spec(json!({"image": "Not//a name!"})), 400, "image"),
        (spec(json!({"memory": "1"})), 400, "memory"),
        (spec(json!({"memory": "-5M"})), 400, "memory"),
        (spec(json!({"cpus": -1.0})), 400, "cpus"),
        (spec(json!({"cap_add": ["FLY"]})), 400, "cap_add"),
        (
            spec(json!({"sysctls": {"kernel.panic": "1"}})),
            400,
            "sysctls",
        ),
        (spec(json!({"stop_signal": "SIGNOTHING"})), 400, "signal"),
        (spec(json!({"workdir": "tmp"})), 400, "workdir"),
        (spec(json!({"env": {"A=B": "c"}})), 400, "env"),
        (spec(json!({"restart": "maybe"})), 400, "restart"),
        (spec(json!({"network": "none-such"})), 404, "none-such"),
        (spec(json!({"address": "10.99.99.1"})), 400, "address"),
        (spec(json!({"address": "10.99.99"})), 400, "address"),
        (
            spec(json!({"ports": [{"host_port": 0, "port": 80}]})),
            400,
            "port",
        ),
        (
            mount(json!({"type": "bind", "source": "here", "target": "/x"})),
            400,
            "source",
        ),
        (
            mount(json!({"type": "bind", "source": "/tmp", "target": "/a/../../b"})),
            400,
            "target",
        ),
        (
            mount(json!({"type": "volume", "source": "../v", "target": "/x"})),
            400,
            "source",
        ),
        (
            mount(json!({"type": "tmpfs", "target": "/"})),
            400,
            "target",
        ),
        (
            mount(json!({"type": "tmpfs", "target": "/x", "size": "lots"})),
            400,
            "size",
        ),
    ];
    let mut wrong = Vec::new();
    for (body, status, word) in table {
        let (answered, answer) = send(&daemon, &JSON, "/v1/instances?wait_s=20", &body);
        if answered != status || !answer.to_string().contains(word) || answer["detail"].is_null() {
            let body = String::from_utf8_lossy(&body[..body.len().min(200)]).into_owned();
            wrong.push(format!(
                "{body}: {answered} {answer}, not {status} with {word:?}"
            ));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");

    for (words, path, status) in [
        (&["-X", "GET"][..], "/v1/instances?bogus=1", 400),
        (&["-X", "GET"], "/v1/nothing", 404),
        (&["-X", "DELETE"], "/v1/instances", 405),
        (&["-X", "GET"], "/v1/instances/%2e%2e%2fx", 404),
        (&["-X", "POST"], "/v1/instances", 400),
        (&["-X", "POST"], "/v1/instances/none/start", 404),
    ] {
        let (answered, answer) = send(&daemon, words, path, b"");
        let fine = answered == status || (status == 404 && answered == 400);
        assert!(fine, "{words:?} {path}: {answered} {answer}, not {status}");
    }
    assert!(daemon.list().unwrap().is_empty());
    assert_eq!(daemon.berth(&["volume", "list", "-o", "name"]).unwrap(), "");

    let unreadable = daemon.run(&["run", "Not//a-name"]).unwrap();
    assert_eq!(unreadable.code, 2, "{unreadable:?}");

    // What only shows when it is tried: said by the command, and the instance is gone with it.
    for (words, word) in [
        (&["--pull", "never", "no-such-image"][..], "no-such-image"),
        (&["-v", "/no/such/place:/x", "busybox"], "/no/such/place"),
        (&["--user", "nobodyhere", "busybox"], "nobodyhere"),
        (&["--device", "/dev/nothing", "busybox"], "/dev/nothing"),
        (&["busybox", "/bin/nothing"], "/bin/nothing"),
        (&["--workdir", "/bin/busybox", "busybox"], "/bin/busybox"),
    ] {
        let said = daemon.run(&[&["run", "--rm"], words].concat()).unwrap();
        assert!(
            said.code != 0 && said.err.contains(word),
            "{words:?}: {said:?}"
        );
    }
    until_so("nothing stays", || daemon.list().unwrap().is_empty());
    let left = daemon.leftovers();
    let left: Vec<_> = left
        .iter()
        .filter(|it| it.starts_with("mount") || it.starts_with("cgroup") || it.starts_with("file"))
        .collect();
    assert!(left.is_empty(), "{left:#?}");
}

#[test]
fn a_full_disk_is_said_and_survived() {
    let Some(mut daemon) = bare("a_full_disk", &[]) else {
        return;
    };
    daemon.on_small_disk(24).unwrap();
    lend_busybox(&daemon);
    daemon.restart().unwrap();
    daemon
        .berth(&["run", "-d", "--name", "before", "busybox", "sleep", "1000"])
        .unwrap();
    // An archive that does not fit.
    let archive = daemon.run_dir().join("big.tar");
    let tree = tempfile::tempdir_in("/var/tmp").unwrap();
    let noise = std::fs::File::open("/dev/urandom").unwrap();
    let mut big = std::fs::File::create(tree.path().join("big")).unwrap();
    std::io::copy(&mut std::io::Read::take(noise, 40 << 20), &mut big).unwrap();
    let mut tar = Command::new("tar");
    tar.arg("-cf")
        .arg(&archive)
        .arg("-C")
        .arg(tree.path())
        .arg("big");
    assert!(tar.status().unwrap().success());
    let said = daemon
        .run(&["image", "import", archive.to_str().unwrap(), "big"])
        .unwrap();
    assert!(
        said.code == 1 && said.err.to_lowercase().contains("no space"),
        "{said:?}"
    );
    assert_eq!(daemon.run(&["image", "show", "big"]).unwrap().code, 3);
    let left = |place: &str| {
        std::fs::read_dir(daemon.root().join(place))
            .unwrap()
            .count()
    };
    until_so("nothing stays of it", || {
        left("uploads") == 0 && left("images/ingest") == 0
    });

    // No room for anything: refused, and what runs goes on.
    let filler = daemon.root().join("filler");
    let mut file = std::fs::File::create(&filler).unwrap();
    while file.write_all(&[0; 4096]).is_ok() {}
    let said = daemon
        .run(&["run", "-d", "--name", "full", "busybox", "true"])
        .unwrap();
    assert!(said.code != 0 && !said.err.is_empty(), "{said:?}");
    assert_eq!(
        daemon.berth(&["exec", "before", "echo", "alive"]).unwrap(),
        "alive"
    );
    assert_eq!(crate::common::status(&daemon, "before"), "running");
    drop(file);
    std::fs::remove_file(&filler).unwrap();
    daemon.run(&["rm", "-f", "full"]).unwrap();
    let again = until("there is room again", || {
        let said = daemon
            .run(&["run", "--rm", "busybox", "echo", "again"])
            .unwrap();
        (said.code == 0).then_some(said.out)
    });
    assert_eq!(again, "again\n");
}

#[test]
fn programs_that_cannot_be_executed_end_as_in_a_shell() {
    let Some(daemon) = daemon("programs_that_cannot_be_executed") else {
        return;
    };
    daemon
        .berth(&["run", "-d", "--name", "box", "busybox", "sleep", "1000"])
        .unwrap();
    let code = |words: &[&str]| {
        let output = daemon.command(words).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), said)
    };
    // The program, the code, and a word of why. The daemon makes /etc/hosts: a file without a program.
    for (program, expected, why) in [
        ("no-such-program", 127, "no-such-program"),
        ("/no/such/program", 127, "No such file"),
        ("/etc/hosts", 126, "Permission denied"),
        ("/etc", 126, "Permission denied"),
    ] {
        for words in [
            &["exec", "box", program][..],
            &["run", "--rm", "busybox", program],
            &["run", "busybox", program],
            &["run", "-d", "busybox", program],
        ] {
            let (code, said) = code(words);
            assert_eq!(code, Some(expected), "{words:?}: {said}");
            assert!(
                said.contains(program) && said.contains(why),
                "{words:?}: {said}"
            );
        }
    }
    // Those run with -d stay to be looked at; no other does.
    until_so("foreground runs leave nothing", || {
        daemon.list().unwrap().len() == 1 + 4
    });
    for (name, status) in daemon.list().unwrap() {
        if name != "box" {
            assert_eq!(status, "stopped", "{name}");
            let again = code(&["start", &name]);
            assert!(matches!(again.0, Some(126 | 127)), "{again:?}");
        }
    }
    daemon.remove_instances().unwrap();
}
