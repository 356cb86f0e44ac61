//! Without privileges: a user namespace over the user's own id, and no control groups of one's own.

// A test fails by panicking and says what it skips.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod common;

use std::os::unix::fs::{MetadataExt as _, chown};
use std::process::Command;

use common::{Bed, RUNTIME, cannot_run, skip, text};
use serde_json::json;

#[test]
fn a_user_without_privileges_runs_a_container() {
    const NAME: &str = "a_user_without_privileges_runs_a_container";
    const UID: u32 = 54_321;
    if cannot_run(NAME) {
        return;
    }
    let mut bed = Bed::new();
    let map = json!([{ "containerID": 0, "hostID": UID, "size": 1 }]);
    let linux = &mut bed.config["linux"];
    linux["uidMappings"] = map.clone();
    linux["gidMappings"] = map;
    linux["namespaces"]
        .as_array_mut()
        .unwrap()
        .push(json!({ "type": "user" }));
    linux["sysctl"] = json!({ "net.ipv4.ping_group_range": "0 0" });
    bed.script("id -u; cat /proc/self/uid_map; echo x > /dev/null && echo null; touch /mine && echo wrote; ls /sys | wc -l");
    bed.write_config();
    let state = bed.dir.path().join("state");
    std::fs::create_dir(&state).unwrap();
    for path in [state.clone(), bed.rootfs()] {
        chown(&path, Some(UID), Some(UID)).unwrap();
    }
    // The build directory may be closed to others: a copy that is open to everybody.
    let runtime = bed.dir.path().join("berth-oci");
    std::fs::copy(RUNTIME, &runtime).unwrap();
    let id = UID.to_string();
    let call = |words: &[&str]| {
        Command::new("setpriv")
            .args(["--reuid", &id, "--regid", &id, "--clear-groups"])
            .arg(&runtime)
            .arg("--root")
            .arg(&state)
            .args(words)
            .current_dir(bed.dir.path())
            .output()
    };
    let Ok(output) = call(&["run", "c"]) else {
        return skip(NAME, "needs setpriv (package util-linux)");
    };
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{out}{err}");
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines[0], "0");
    assert_eq!(
        lines[1].split_whitespace().collect::<Vec<_>>(),
        ["0", "54321", "1"]
    );
    assert_eq!(lines[2..4], ["null", "wrote"]);
    assert_ne!(lines[4], "0");
    assert_eq!(std::fs::read_dir(&state).unwrap().count(), 0);
    bed.assert_clean();
}

#[test]
fn a_user_without_privileges_has_the_ranges_that_the_host_gives_it() {
    const NAME: &str = "a_user_without_privileges_has_the_ranges_that_the_host_gives_it";
    const UID: u32 = 54_321;
    if cannot_run(NAME) {
        return;
    }
    for tool in ["newuidmap", "newgidmap", "setpriv", "unshare"] {
        if Command::new(tool).arg("--help").output().is_err() {
            return skip(NAME, &format!("needs {tool} (packages uidmap, util-linux)"));
        }
    }
    let mut bed = Bed::new();
    let place = bed.dir.path().to_owned();
    for (name, text) in [
        (
            "passwd",
            format!("root:x:0:0::/root:/bin/sh\nann:x:{UID}:{UID}::/:/bin/sh\n"),
        ),
        ("subuid", "ann:300000:65536\n".to_owned()),
        ("subgid", "ann:400000:65536\n".to_owned()),
    ] {
        std::fs::write(place.join(name), text).unwrap();
    }
    let map = |first: u32| {
        json!([
            { "containerID": 0, "hostID": UID, "size": 1 },
            { "containerID": 1, "hostID": first, "size": 65_535 },
        ])
    };
    let linux = &mut bed.config["linux"];
    linux["uidMappings"] = map(300_000);
    linux["gidMappings"] = map(400_000);
    linux["namespaces"]
        .as_array_mut()
        .unwrap()
        .push(json!({ "type": "user" }));
    bed.config["process"]["user"]["additionalGids"] = json!([7]);
    bed.script(
        "cat /proc/self/uid_map /proc/self/gid_map; id -G; touch /data/mine && chown 1000:50 /data/mine && stat -c %u:%g /data/mine",
    );
    bed.write_config();
    let state = place.join("state");
    std::fs::create_dir(&state).unwrap();
    for path in [state.clone(), bed.rootfs(), bed.rootfs().join("data")] {
        chown(&path, Some(UID), Some(UID)).unwrap();
    }
    let runtime = place.join("berth-oci");
    std::fs::copy(RUNTIME, &runtime).unwrap();
    // The host's own files of users stay as they are: these are seen by this command alone.
    let script = format!(
        "for name in passwd subuid subgid; do mount --bind $name /etc/$name || exit 125; done; \
         exec setpriv --reuid {UID} --regid {UID} --clear-groups ./berth-oci --root state run c"
    );
    let run = || {
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", &script]);
        let output = command.current_dir(&place).output().unwrap();
        (
            output.status.code(),
            text(&output.stdout),
            text(&output.stderr),
        )
    };
    let (code, out, err) = run();
    assert_eq!(code, Some(0), "{out}{err}");
    let words: Vec<Vec<&str>> = out
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(
        words[..4],
        [
            ["0", "54321", "1"],
            ["1", "300000", "65535"],
            ["0", "54321", "1"],
            ["1", "400000", "65535"]
        ],
        "{out}"
    );
    assert_eq!(words[4], ["0", "7"]);
    assert_eq!(words[5], ["1000:50"]);
    let made = std::fs::metadata(bed.rootfs().join("data/mine")).unwrap();
    assert_eq!((made.uid(), made.gid()), (300_999, 400_049));
    bed.assert_clean();

    // Ids that are not the user's are refused by whoever gives them, and nothing is left.
    bed.config["linux"]["uidMappings"] = map(500_000);
    bed.write_config();
    let (code, _, err) = run();
    assert_ne!(code, Some(0));
    assert!(err.contains("/etc/subuid"), "{err}");
    assert_eq!(std::fs::read_dir(&state).unwrap().count(), 0);
    bed.assert_clean();
}
