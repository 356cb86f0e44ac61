//! Namespaces of others, named by their paths.

// A test fails by panicking and says what it skips.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod common;

use std::process::Command;

use common::{Bed, cannot_run, skip};
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

/// What a container that joins the user namespace of another sees: whose ids it has, that it is the first
/// process of its own namespaces, and that these belong to the user namespace it joined, whose root may
/// rename and mount in them.
const RIGHTS: &str = "cat /proc/self/uid_map; echo $$; hostname inside && hostname; \
    mount -t tmpfs none /data && echo mounted; id -u";

#[test]
fn new_namespaces_belong_to_the_user_namespace_joined() {
    let test = "new_namespaces_belong_to_the_user_namespace_joined";
    if cannot_run(test) {
        return;
    }
    let mut owner = Bed::new();
    let map = json!([{ "containerID": 0, "hostID": 300_000, "size": 65_536 }]);
    let linux = &mut owner.config["linux"];
    (linux["uidMappings"], linux["gidMappings"]) = (map.clone(), map);
    push(linux, json!({ "type": "user" }));
    owner.script("sleep 1000");
    owner.write_config();
    owner.ok(&["run", "-d", "owner"]);
    let state: Value = serde_json::from_str(&owner.ok(&["state", "owner"])).unwrap();
    let pid = state["pid"].as_i64().unwrap();

    let mut guest = Bed::new();
    let path = json!(format!("/proc/{pid}/ns/user"));
    push(
        &mut guest.config["linux"],
        json!({ "type": "user", "path": path }),
    );
    for set in ["bounding", "effective", "permitted"] {
        let set = &mut guest.config["process"]["capabilities"][set];
        set.as_array_mut().unwrap().push(json!("CAP_SYS_ADMIN"));
    }
    let said = guest.output(RIGHTS);
    let words: Vec<&str> = said.split_whitespace().collect();
    let expected = ["0", "300000", "65536", "1", "inside", "mounted", "0"];
    assert_eq!(words, expected, "{said}");
    // A further process is in all of them.
    guest.script("sleep 1000");
    guest.write_config();
    guest.ok(&["run", "-d", "c"]);
    let inside = |name: &str| {
        let path = format!("/proc/self/ns/{name}");
        guest
            .ok(&["exec", "c", "readlink", &path])
            .trim()
            .to_owned()
    };
    let ours = ["user", "uts"].map(inside);
    let state: Value = serde_json::from_str(&guest.ok(&["state", "c"])).unwrap();
    let first = state["pid"].as_i64().unwrap();
    assert_eq!(ours.to_vec(), links(first, &["user", "uts"]));
    assert_eq!(links(first, &["user"]), links(pid, &["user"]));
    assert_ne!(links(first, &["uts"]), links(pid, &["uts"]));
    guest.ok(&["delete", "-f", "c"]);
    guest.assert_clean();
    guest.script(RIGHTS);
    match crun(guest) {
        Some(theirs) => assert_eq!(said, theirs, "as crun does it"),
        None => skip(test, "crun is not installed, or runs nothing here"),
    }
    owner.ok(&["delete", "-f", "owner"]);
    owner.assert_clean();
}

#[test]
fn what_a_joined_user_namespace_does_not_allow_is_refused_and_undone() {
    if cannot_run("what_a_joined_user_namespace_does_not_allow") {
        return;
    }
    let (owner, pid) = sleeper();
    let mut guest = Bed::new();
    // Not a user namespace: the child fails where it would have made its successor.
    let path = json!(format!("/proc/{pid}/ns/net"));
    push(
        &mut guest.config["linux"],
        json!({ "type": "user", "path": path }),
    );
    let (code, _, err) = guest.run();
    assert_ne!(code, 0);
    assert!(err.contains("user namespace"), "{err}");
    guest.assert_clean();
    owner.ok(&["delete", "-f", "host"]);
    owner.assert_clean();
}

fn push(linux: &mut Value, namespace: Value) {
    linux["namespaces"].as_array_mut().unwrap().push(namespace);
}

/// What crun's container says with the same bundle, but for control groups, which it must not even see:
/// it refuses hosts that have both versions.
fn crun(mut bed: Bed) -> Option<String> {
    bed.config["ociVersion"] = json!("1.0.2");
    bed.config["linux"]["cgroupsPath"].take();
    let leave = |list: &mut Value| {
        let list = list.as_array_mut().unwrap();
        list.retain(|entry| entry["type"] != "cgroup");
    };
    leave(&mut bed.config["mounts"]);
    leave(&mut bed.config["linux"]["namespaces"]);
    bed.write_config();
    let mut command = Command::new("unshare");
    let script = "mount -t tmpfs none /sys/fs/cgroup && exec crun --root crun --cgroup-manager=disabled run theirs";
    command.args(["--mount", "--propagation", "private", "sh", "-c", script]);
    let output = command.current_dir(bed.dir.path()).output().ok()?;
    eprint!("{}", common::text(&output.stderr));
    output
        .status
        .success()
        .then(|| common::text(&output.stdout))
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
