//! Without privileges: a user namespace over the user's own id, and no control groups of one's own.

// A test fails by panicking and says what it skips.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod common;

use std::os::unix::fs::chown;
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
