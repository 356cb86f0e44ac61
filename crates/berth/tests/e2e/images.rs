//! Images through a real registry and archives; disk space; what is broken is refused.

use std::fs;

use testkit::{Daemon, Registry};

use crate::common::{clear_images, daemon, until_so};

const THERE: &str = "127.0.0.1:5000/team/box:1";

fn with_registry(test: &str) -> Option<(Daemon, Registry)> {
    if testkit::lacks(test, &["docker-registry", "curl"]) {
        return None;
    }
    let daemon = daemon(test)?;
    let registry = Registry::start(daemon.netns()).unwrap();
    Some((daemon, registry))
}

#[test]
fn images_go_to_a_registry_and_come_back() {
    let Some((daemon, registry)) = with_registry("images_go_to_a_registry") else {
        return;
    };
    daemon.berth(&["image", "push", "busybox", THERE]).unwrap();
    let before = daemon
        .berth(&["image", "show", "-o", "json", "busybox"])
        .unwrap();
    // What is shown of its layer is what the registry holds.
    let blob = registry.largest_blob().unwrap();
    let hex = blob
        .parent()
        .unwrap()
        .file_name()
        .unwrap()
        .to_str()
        .unwrap();
    let length = fs::metadata(&blob).unwrap().len();
    assert!(before.contains(&format!("sha256:{hex}")), "{before}");
    assert!(before.contains(&length.to_string()), "{before}");
    clear_images(&daemon);
    // The first use fetches it.
    assert_eq!(
        daemon
            .berth(&["run", "--rm", THERE, "echo", "hello"])
            .unwrap(),
        "hello"
    );
    let after = daemon
        .berth(&["image", "show", "-o", "json", THERE])
        .unwrap();
    let digest = |text: &str| {
        let value: serde_json::Value = serde_json::from_str(text).unwrap();
        let value = if value.is_array() {
            value[0].clone()
        } else {
            value
        };
        value["digest"].as_str().unwrap().to_owned()
    };
    assert_eq!(digest(&before), digest(&after));
    let by_digest = format!("127.0.0.1:5000/team/box@{}", digest(&before));
    daemon.berth(&["image", "pull", &by_digest]).unwrap();
    let none = daemon
        .run(&["image", "pull", "127.0.0.1:5000/team/none:1"])
        .unwrap();
    assert!(none.code != 0 && none.err.contains("team/none"), "{none:?}");

    // One flipped byte in what the registry holds: refused by its digest, nothing stays.
    clear_images(&daemon);
    for (how, damage) in [
        ("wrong", (|bytes| flip(bytes)) as fn(&mut Vec<u8>)),
        ("short", cut),
    ] {
        let blob = registry.largest_blob().unwrap();
        let good = fs::read(&blob).unwrap();
        let mut bad = good.clone();
        damage(&mut bad);
        fs::write(&blob, &bad).unwrap();
        let said = daemon.run(&["image", "pull", THERE]).unwrap();
        assert_ne!(said.code, 0, "{how}: {said:?}");
        assert_eq!(
            daemon.berth(&["image", "list", "-o", "name"]).unwrap(),
            "",
            "{how}"
        );
        fs::write(&blob, &good).unwrap();
    }
    daemon.berth(&["image", "pull", THERE]).unwrap();
}

fn flip(bytes: &mut [u8]) {
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
}

fn cut(bytes: &mut Vec<u8>) {
    bytes.truncate(bytes.len() / 2);
}

#[test]
fn archives_go_round_and_collection_spares_what_is_used() {
    let Some(daemon) = daemon("archives_go_round") else {
        return;
    };
    for format in ["oci", "docker", "rootfs"] {
        let file = daemon.root().join(format!("{format}.tar"));
        let file = file.to_str().unwrap();
        daemon
            .berth(&["image", "export", "busybox", "--format", format, "-f", file])
            .unwrap();
        let name = format!("again-{format}");
        daemon.berth(&["image", "import", file, &name]).unwrap();
        let said = daemon
            .berth(&["run", "--rm", &name, "/bin/busybox", "echo", format])
            .unwrap();
        assert_eq!(said, format);
    }
    let broken = daemon.root().join("broken.tar");
    fs::write(&broken, b"this is no archive").unwrap();
    let said = daemon
        .run(&["image", "import", broken.to_str().unwrap(), "broken"])
        .unwrap();
    assert!(said.code != 0 && !said.err.is_empty(), "{said:?}");
    assert_eq!(daemon.run(&["image", "show", "broken"]).unwrap().code, 3);
    // Imports of the same content share it.
    let layers = fs::read_dir(daemon.root().join("images/layers/sha256"))
        .unwrap()
        .count();
    assert!(layers <= 2, "{layers} layers for one busybox");
    let df = daemon.berth(&["image", "df"]).unwrap();
    assert!(df.contains("again-rootfs"), "{df}");

    daemon
        .berth(&["run", "-d", "--name", "box", "busybox", "sleep", "1000"])
        .unwrap();
    for name in daemon
        .berth(&["image", "list", "-o", "name"])
        .unwrap()
        .lines()
    {
        // What an instance has may be refused: then it is still there.
        daemon.run(&["image", "rm", name]).unwrap();
    }
    daemon.berth(&["image", "gc"]).unwrap();
    assert_eq!(
        daemon.berth(&["exec", "box", "echo", "alive"]).unwrap(),
        "alive"
    );
    daemon.berth(&["restart", "--force", "box"]).unwrap();
    daemon.berth(&["rm", "-f", "box"]).unwrap();
    clear_images(&daemon);
    let empty = |place: &str| {
        fs::read_dir(daemon.root().join("images").join(place))
            .unwrap()
            .count()
            == 0
    };
    until_so("all is collected", || {
        empty("layers/sha256") && empty("blobs/sha256")
    });
}
