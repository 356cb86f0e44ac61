//! A lost database: instances are found again by their directories.

use std::fs;

use crate::common::{daemon, status};

#[test]
fn instances_are_recovered_from_their_directories() {
    let Some(mut daemon) = daemon("instances_are_recovered") else {
        return;
    };
    let words = [
        "run",
        "-d",
        "--name",
        "box",
        "-v",
        "data:/data",
        "-l",
        "a=b",
        "busybox",
        "sh",
        "-c",
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
    daemon
        .berth(&[
            "exec",
            "box",
            "sh",
            "-c",
            "echo mine > /own; echo shared > /data/f",
        ])
        .unwrap();
    daemon.berth(&["set", "box", "--memory", "64M"]).unwrap();
    daemon.berth(&["stop", "box"]).unwrap();
    let before = daemon.inspect("box").unwrap();
    daemon.stop();
    for entry in fs::read_dir(daemon.root()).unwrap() {
        let path = entry.unwrap().path();
        if path
            .file_name()
            .unwrap()
            .to_string_lossy()
            .starts_with("berth.db")
        {
            fs::remove_file(path).unwrap();
        }
    }
    // Not to be mistaken for an instance.
    fs::create_dir(daemon.root().join("instances/not-one")).unwrap();
    let root = daemon.root();
    let place = ["--root", root.to_str().unwrap()];
    let dry = daemon
        .run(&[&["recover", "--dry-run"], &place[..]].concat())
        .unwrap();
    assert!(
        dry.out.contains("box") && dry.out.contains("not-one"),
        "{dry:?}"
    );
    let said = daemon.berth(&[&["recover"], &place[..]].concat()).unwrap();
    assert!(
        said.contains("recovered box") && said.contains("not-one"),
        "{said}"
    );
    let again = daemon.berth(&[&["recover"], &place[..]].concat()).unwrap();
    assert!(again.contains("0 recovered"), "{again}");
    fs::remove_dir(daemon.root().join("instances/not-one")).unwrap();

    daemon.restart().unwrap();
    let running = daemon.run(&[&["recover"], &place[..]].concat()).unwrap();
    assert!(
        running.code != 0 && running.err.contains("another daemon"),
        "{running:?}"
    );
    assert_eq!(status(&daemon, "box"), "stopped");
    let after = daemon.inspect("box").unwrap();
    for same in ["id", "addresses", "labels", "image_digest", "directory"] {
        assert_eq!(before[same], after[same], "{same}");
    }
    assert_eq!(before["spec"], after["spec"]);
    daemon.berth(&["start", "box"]).unwrap();
    let data = daemon
        .berth(&["exec", "box", "cat", "/own", "/data/f"])
        .unwrap();
    assert_eq!(data, "mine\nshared");
    assert!(
        daemon
            .berth(&["volume", "list", "-o", "name"])
            .unwrap()
            .contains("data")
    );
    // What is held already is not given to others.
    daemon
        .berth(&["run", "-d", "--name", "next", "busybox", "sleep", "1000"])
        .unwrap();
    assert_ne!(
        daemon.inspect("next").unwrap()["addresses"],
        after["addresses"]
    );
}
