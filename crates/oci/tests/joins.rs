//! Namespaces of others, named by their paths.

// A test fails by panicking and says what it skips.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod common;

use common::{Bed, cannot_run};
use serde_json::{Value, json};

/// A container that sleeps, and its process id.
fn sleeper() -> (Bed, i64) {
    let mut bed = Bed::new();
    bed.script("sleep 1000");
    bed.write_config();
    bed.ok(&["run", "-d", "host"]);
    let state: Value = serde_json::from_str(&bed.ok(&["state", "host"])).unwrap();
    let pid = state["pid"].as_i64().unwrap();
    (bed, pid)
}

/// Has the configuration join the namespaces of `kinds` that process `pid` is in.
fn join(bed: &mut Bed, kinds: &[(&str, &str)], pid: i64) {
    for namespace in bed.config["linux"]["namespaces"].as_array_mut().unwrap() {
        let kind = kinds.iter().find(|(kind, _)| namespace["type"] == *kind);
        if let Some((_, file)) = kind {
            namespace["path"] = json!(format!("/proc/{pid}/ns/{file}"));
        }
    }
}

const KINDS: [(&str, &str); 4] = [
    ("network", "net"),
    ("ipc", "ipc"),
    ("uts", "uts"),
    ("pid", "pid"),
];

/// The links that say which namespaces a process is in.
fn links(pid: i64, files: &[&str]) -> Vec<String> {
    let link = |file: &&str| std::fs::read_link(format!("/proc/{pid}/ns/{file}")).unwrap();
    let links = files.iter().map(link);
    links
        .map(|link| link.to_str().unwrap().to_owned())
        .collect()
}

#[test]
fn a_container_joins_the_namespaces_of_another_and_leaves_it_be() {
    if cannot_run("a_container_joins_the_namespaces_of_another") {
        return;
    }
    let (host, pid) = sleeper();
    let mut guest = Bed::new();
    join(&mut guest, &KINDS, pid);
    guest.config.as_object_mut().unwrap().remove("hostname");
    let out = guest.output(
        "for n in net ipc uts pid mnt; do readlink /proc/self/ns/$n; done; hostname; ps | grep -c '[s]leep 1000'; \
         [ $$ = 1 ] && echo first || echo joined",
    );
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines[..4], links(pid, &["net", "ipc", "uts", "pid"]));
    assert_ne!(lines[4], links(pid, &["mnt"])[0], "the root is its own");
    assert_eq!(lines[5..], ["bed", "1", "joined"], "{out}");
    // The end of the one that joined is not the other's.
    guest.assert_clean();
    assert_eq!(host.status("host"), "running");
    host.ok(&["delete", "-f", "host"]);
    host.assert_clean();
}

#[test]
fn a_path_that_leads_to_no_such_namespace_is_refused_by_name() {
    if cannot_run("a_path_that_leads_to_no_such_namespace") {
        return;
    }
    let mut bed = Bed::new();
    for (path, says) in [
        ("/proc/self/ns/uts", "network namespace /proc/self/ns/uts"),
        ("/nowhere/net", "/nowhere/net"),
        ("/etc/passwd", "network namespace /etc/passwd"),
    ] {
        for namespace in bed.config["linux"]["namespaces"].as_array_mut().unwrap() {
            if namespace["type"] == "network" {
                namespace["path"] = json!(path);
            }
        }
        let (code, _, err) = bed.run();
        assert_ne!(code, 0);
        assert!(err.contains(says), "{path}: {err}");
        bed.assert_clean();
    }
}
