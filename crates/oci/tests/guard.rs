//! The runtime's own file is out of a container's reach (the class of CVE-2019-5736), whichever way
//! the guard takes.

// A test fails by panicking and says what it skips.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod common;

use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{Bed, RUNTIME, cannot_run};
use serde_json::json;

/// A bed whose image turns its program into whatever executes it.
fn hostile(program: &str) -> Bed {
    let mut bed = Bed::new();
    let path = bed.rootfs().join("bin/trap");
    match program {
        "script" => {
            std::fs::write(&path, "#!/proc/self/exe\n").unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        _ => std::os::unix::fs::symlink("/proc/self/exe", &path).unwrap(),
    }
    // What would be called if the runtime ran again, inside.
    bed.config["process"]["args"] = json!(["/bin/trap", "--version"]);
    bed
}

#[test]
fn a_program_that_is_its_executor_finds_an_empty_file_and_not_the_runtime() {
    if cannot_run("a_program_that_is_its_executor") {
        return;
    }
    for program in ["script", "link"] {
        let bed = hostile(program);
        let (code, out, err) = bed.run();
        assert_ne!(code, 0, "{program}: {out}{err}");
        assert_eq!(out, "", "{program}: the runtime ran inside: {err}");
        // An empty file is no program.
        let why = "cannot run `/bin/trap`: Exec format error";
        assert!(err.contains(why), "{program}: {err}");
        bed.assert_clean();
    }
}

#[test]
fn a_hook_inside_cannot_write_to_the_runtime_that_called_it() {
    if cannot_run("a_hook_inside_cannot_write") {
        return;
    }
    let mut bed = Bed::new();
    // A copy, in case it is written.
    let runtime = bed.dir.path().join("runtime");
    std::fs::copy(RUNTIME, &runtime).unwrap();
    // The hook's parent is the runtime. It keeps that file open, and tries to write once nobody executes it.
    let attack = "exec 3</proc/1/exe; (for i in $(seq 100); do \
                  (echo x >>/proc/self/fd/3) 2>&1 && echo written; sleep 0.1; done) >/data/seen 2>&1 &";
    bed.config["hooks"] = json!({
        "startContainer": [{ "path": "/bin/sh", "args": ["sh", "-c", attack], "env": ["PATH=/bin"] }]
    });
    bed.script("sleep 30");
    bed.write_config();
    for words in [&["create", "c"][..], &["start", "c"]] {
        let mut command = Command::new(&runtime);
        command.arg("--root").arg(&bed.root).args(words);
        command.current_dir(bed.dir.path()).stdin(Stdio::null());
        command.stdout(Stdio::null());
        assert!(command.status().unwrap().success(), "{words:?}");
    }
    let deadline = Instant::now() + Duration::from_secs(20);
    let seen = loop {
        let seen = std::fs::read_to_string(bed.rootfs().join("data/seen")).unwrap_or_default();
        if seen.contains("Read-only file system") || seen.contains("written") {
            break seen;
        }
        assert!(Instant::now() < deadline, "{seen}");
        std::thread::sleep(Duration::from_millis(50));
    };
    assert!(!seen.contains("written"), "{seen}");
    assert_eq!(
        std::fs::read(RUNTIME).unwrap(),
        std::fs::read(&runtime).unwrap()
    );
    bed.ok(&["delete", "--force", "c"]);
    bed.assert_clean();
}

#[test]
fn a_process_that_let_go_of_the_runtime_has_its_rights_and_says_why_it_failed() {
    if cannot_run("a_process_that_let_go_of_the_runtime") {
        return;
    }
    let mut bed = Bed::new();
    bed.config["process"]["user"] =
        json!({ "uid": 1000, "gid": 1000, "additionalGids": [5, 6], "umask": 0o027 });
    let caps = json!(["CAP_KILL", "CAP_CHOWN"]);
    bed.config["process"]["capabilities"] = json!({
        "bounding": caps, "permitted": caps, "effective": ["CAP_KILL"],
        "inheritable": ["CAP_KILL"], "ambient": ["CAP_KILL"]
    });
    let out = bed
        .output("id; umask; grep -E 'Cap|NoNew|SigBlk' /proc/self/status; readlink /proc/self/exe");
    let mut lines = out.lines();
    assert_eq!(
        lines.next().unwrap(),
        "uid=1000(ann) gid=1000 groups=5,6",
        "{out}"
    );
    assert_eq!(lines.next().unwrap(), "0027");
    for (name, value) in [
        ("SigBlk", "0"),
        ("CapInh", "20"),
        ("CapPrm", "20"),
        ("CapEff", "20"),
        ("CapBnd", "21"),
        ("CapAmb", "20"),
        ("NoNewPrivs", "1"),
    ] {
        let line = lines.next().unwrap();
        let (key, found) = line.split_once(":\t").unwrap();
        let found = found.trim_start_matches('0');
        assert_eq!(key, name, "{out}");
        assert_eq!(found, value.trim_start_matches('0'), "{line}");
    }
    assert_eq!(lines.next().unwrap(), "/bin/busybox");
    std::fs::write(bed.rootfs().join("data/broken"), [0u8; 64]).unwrap();
    std::fs::set_permissions(
        bed.rootfs().join("data/broken"),
        std::fs::Permissions::from_mode(0o755),
    )
    .unwrap();
    bed.config["process"]["args"] = json!(["/data/broken"]);
    let (code, _, err) = bed.run();
    assert_ne!(code, 0);
    assert!(
        err.contains("cannot run `/data/broken`: Exec format error"),
        "{err}"
    );
    bed.assert_clean();
}
