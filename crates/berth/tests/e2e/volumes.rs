//! What is mounted inside: named volumes, directories of the host, memory.

use std::fs;

use crate::common::daemon;

#[test]
fn volumes_outlive_containers_and_keep_their_rules() {
    let Some(daemon) = daemon("volumes_outlive_containers") else {
        return;
    };
    let run = |options: &[&str], script: &str| {
        let words = [&["run", "--rm"], options, &["busybox", "sh", "-c", script]].concat();
        daemon.run(&words).unwrap()
    };
    // A new volume begins as the image is where it is mounted.
    let copied = run(
        &["-v", "data:/etc"],
        "cat /etc/passwd | head -1; echo kept > /etc/mine",
    );
    assert!(copied.out.starts_with("root:"), "{copied:?}");
    assert_eq!(
        run(&["-v", "data:/data"], "cat /data/mine; ls -ln /data/mine")
            .out
            .lines()
            .next(),
        Some("kept")
    );
    let owner = run(&["-v", "data:/data"], "stat -c %u:%g /data/mine");
    assert_eq!(
        owner.out, "0:0\n",
        "the same ids in every container: {owner:?}"
    );
    let denied = run(&["-v", "data:/data:ro"], "echo no > /data/x");
    assert!(
        denied.code != 0 && denied.err.contains("Read-only"),
        "{denied:?}"
    );

    daemon
        .berth(&[
            "run",
            "-d",
            "--name",
            "box",
            "-v",
            "data:/data",
            "busybox",
            "sleep",
            "1000",
        ])
        .unwrap();
    let used = daemon.run(&["volume", "rm", "data"]).unwrap();
    assert_eq!(used.code, 4, "{used:?}");
    daemon.berth(&["rm", "-f", "box"]).unwrap();
    assert!(daemon.berth(&["volume", "list"]).unwrap().contains("data"));
    daemon.berth(&["volume", "rm", "data"]).unwrap();
    assert_eq!(daemon.berth(&["volume", "list", "-o", "name"]).unwrap(), "");

    let host = tempfile::tempdir_in("/var/tmp").unwrap();
    fs::write(host.path().join("page"), "from the host").unwrap();
    let bind = |mode: &str| format!("{}:/host{mode}", host.path().display());
    let read = run(&["-v", &bind(":ro")], "cat /host/page; touch /host/no");
    assert!(read.out == "from the host" && read.code != 0, "{read:?}");
    let written = run(&["-v", &bind("")], "echo back > /host/made");
    assert_eq!(written.code, 0, "{written:?}");
    assert_eq!(
        fs::read_to_string(host.path().join("made")).unwrap(),
        "back\n"
    );

    let full = run(
        &["--tmpfs", "/fast:size=1M"],
        "dd if=/dev/zero of=/fast/x bs=64k count=64",
    );
    assert!(full.err.contains("No space left"), "{full:?}");
    let missing = daemon
        .run(&["run", "--rm", "-v", "/no/such/place:/x", "busybox", "true"])
        .unwrap();
    assert!(
        missing.code == 1 && missing.err.contains("/no/such/place"),
        "{missing:?}"
    );
}
