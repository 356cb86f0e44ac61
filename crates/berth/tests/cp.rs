//! `berth cp` against a real daemon and real containers, running and stopped.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "e2e/common.rs"]
#[allow(dead_code, reason = "shared with the other tests of a whole daemon")]
mod common;

use std::{
    fs,
    io::Write,
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    path::Path,
    process::Stdio,
};

use common::{daemon, status, until_so};
use testkit::Daemon;

/// Something of everything `cp` keeps.
fn tree(at: &Path) {
    fs::create_dir_all(at.join("sub/empty")).unwrap();
    fs::write(at.join("page"), "ahoy\n").unwrap();
    fs::write(at.join("sub/big"), vec![b'x'; 3 << 20]).unwrap();
    fs::set_permissions(at.join("sub/big"), fs::Permissions::from_mode(0o640)).unwrap();
    fs::hard_link(at.join("sub/big"), at.join("sub/same")).unwrap();
    symlink("../page", at.join("sub/link")).unwrap();
    let long = "n".repeat(180);
    fs::write(at.join(long), "long").unwrap();
}

fn copy(daemon: &Daemon, from: &str, to: &str) {
    let said = daemon.run(&["cp", from, to]).unwrap();
    assert_eq!((said.code, said.err.as_str()), (0, ""), "{from} {to}");
}

fn inside(daemon: &Daemon, name: &str, script: &str) -> String {
    daemon.berth(&["exec", name, "sh", "-c", script]).unwrap()
}

#[test]
fn files_go_in_and_out_of_what_runs() {
    let Some(daemon) = daemon("files_go_in_and_out_of_what_runs") else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let here = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    tree(&dir.path().join("site"));
    let run = ["run", "-d", "--name", "web", "-v", "data:/data", "busybox"];
    daemon
        .berth(&[&run[..], &["sleep", "1000"]].concat())
        .unwrap();

    // A directory: under its own name, under another, and only what is in it.
    copy(&daemon, &here("site"), "web:/srv-new");
    copy(&daemon, &here("site"), "web:/tmp");
    copy(&daemon, &here("site/."), "web:/data");
    let script = "cat /srv-new/page /tmp/site/page /data/page; readlink /tmp/site/sub/link; \
                  stat -c '%u:%g %a %h' /tmp/site/sub/big; wc -c < /data/sub/big";
    let seen = inside(&daemon, "web", script);
    assert_eq!(seen, "ahoy\nahoy\nahoy\n../page\n0:0 640 2\n3145728");
    // Through a link to a directory, and with owners.
    inside(&daemon, "web", "mkdir /real; ln -s /real /alias");
    fs::write(here("owned"), "mine").unwrap();
    std::os::unix::fs::chown(here("owned"), Some(33), Some(34)).unwrap();
    copy(&daemon, &here("owned"), "web:/alias");
    daemon
        .berth(&["cp", "-a", &here("owned"), "web:/alias/kept"])
        .unwrap();
    let seen = inside(&daemon, "web", "stat -c %u:%g /real/owned /real/kept");
    assert_eq!(seen, "0:0\n33:34");
    // A file that Berth mounts there is written in place.
    fs::write(here("hosts"), "127.0.0.1 localhost here\n").unwrap();
    copy(&daemon, &here("hosts"), "web:/etc/hosts");
    assert!(inside(&daemon, "web", "cat /etc/hosts").contains("here"));

    // And back: the same tree.
    copy(&daemon, "web:/tmp/site", &here("back"));
    let back = dir.path().join("back");
    assert_eq!(fs::read(back.join("sub/big")).unwrap(), vec![b'x'; 3 << 20]);
    assert_eq!(
        fs::metadata(back.join("sub/big")).unwrap().mode() & 0o777,
        0o640
    );
    assert!(back.join("sub/empty").is_dir());
    assert_eq!(
        fs::read_link(back.join("sub/link")).unwrap(),
        Path::new("../page")
    );
    copy(&daemon, "web:/data/page", &here("one"));
    assert_eq!(fs::read(here("one")).unwrap(), b"ahoy\n");
    copy(&daemon, "web:/data/.", &here("back/sub/empty"));
    assert!(back.join("sub/empty/page").is_file());
    // Owned by users inside, not by whom they are on the host.
    let archive = daemon
        .command(&["cp", "web:/alias/kept", "-"])
        .output()
        .unwrap()
        .stdout;
    let mut archive = tar::Archive::new(&archive[..]);
    let kept = archive.entries().unwrap().next().unwrap().unwrap();
    assert_eq!(
        (kept.header().uid().unwrap(), kept.header().gid().unwrap()),
        (33, 34)
    );
    // The whole, the kernel's own files aside.
    copy(&daemon, "web:/", &here("all"));
    assert!(dir.path().join("all/data/page").is_file());
    assert_eq!(
        fs::read_dir(dir.path().join("all/proc")).unwrap().count(),
        0
    );

    // From one to another, in one go and as a stream.
    daemon
        .berth(&["run", "-d", "--name", "db", "busybox", "sleep", "1000"])
        .unwrap();
    copy(&daemon, "web:/tmp/site", "db:/moved");
    copy(&daemon, "web:/alias/kept", "db:/tmp");
    let seen = inside(&daemon, "db", "cat /moved/page; stat -c %u:%g /tmp/kept");
    assert_eq!(seen, "ahoy\n33:34");
    let mut put = daemon.command(&["cp", "-", "db:/tmp"]);
    let mut put = put.stdin(Stdio::piped()).spawn().unwrap();
    let archive = daemon
        .command(&["cp", "web:/data", "-"])
        .output()
        .unwrap()
        .stdout;
    put.stdin.take().unwrap().write_all(&archive).unwrap();
    assert!(put.wait().unwrap().success());
    assert_eq!(inside(&daemon, "db", "cat /tmp/data/page"), "ahoy");
}

#[test]
fn files_go_in_and_out_of_what_rests() {
    let Some(daemon) = daemon("files_go_in_and_out_of_what_rests") else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let here = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    tree(&dir.path().join("site"));
    let run = ["run", "-d", "--name", "web", "-v", "data:/data", "busybox"];
    daemon
        .berth(&[&run[..], &["sleep", "1000"]].concat())
        .unwrap();
    inside(
        &daemon,
        "web",
        "echo old > /old; rm /etc/passwd; chown 7:8 /old",
    );
    daemon.berth(&["stop", "-f", "web"]).unwrap();

    copy(&daemon, "web:/old", &here("old"));
    assert_eq!(fs::read(here("old")).unwrap(), b"old\n");
    let said = daemon
        .run(&["cp", "web:/etc/passwd", &here("gone")])
        .unwrap();
    assert_eq!(said.code, 3, "what was removed stays so: {said:?}");
    copy(&daemon, &here("site"), "web:/srv-new");
    copy(&daemon, "web:/srv-new/page", &here("page"));
    let said = daemon
        .run(&["cp", &here("page"), "web:/data/page"])
        .unwrap();
    assert!(
        said.code == 4 && said.err.contains("berth start web"),
        "{said:?}"
    );
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(
        !mounts.contains(daemon.root().to_str().unwrap()),
        "{mounts}"
    );

    // A start does not wait for a copy that nobody reads.
    let big = fs::File::create(here("big")).unwrap();
    big.set_len(64 << 20).unwrap();
    copy(&daemon, &here("big"), "web:/big");
    let mut slow = daemon.command(&["cp", "web:/big", "-"]);
    let slow = slow
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    daemon.berth(&["start", "web"]).unwrap();
    let seen = inside(
        &daemon,
        "web",
        "cat /old /srv-new/page; stat -c %u:%g /old /srv-new/page",
    );
    assert_eq!(seen, "old\nahoy\n7:8\n0:0");
    // Read to the end or not: it is told apart from a whole archive.
    let slow = slow.wait_with_output().unwrap();
    assert!(
        slow.status.success() == (slow.stdout.len() > 64 << 20),
        "{:?}",
        slow.status
    );
    daemon.berth(&["rm", "-f", "web"]).unwrap();
}

#[test]
fn refusals_say_what_to_do() {
    let Some(daemon) = daemon("refusals_say_what_to_do") else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let here = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    fs::write(here("f"), "f").unwrap();
    let web = ["run", "-d", "--name", "web", "busybox", "sleep", "1000"];
    daemon.berth(&web).unwrap();
    let fixed = [
        "run",
        "-d",
        "--name",
        "fixed",
        "--read-only",
        "busybox",
        "sleep",
        "1000",
    ];
    daemon.berth(&fixed).unwrap();
    inside(
        &daemon,
        "web",
        "mkfifo /pipe; ln -s /nowhere /dangling; mkdir /d",
    );
    let f = here("f");
    let cases: [(&str, &str, i32, &str); 9] = [
        ("web:/none", "x", 3, "there is no \"/none\" inside"),
        (&f, "web:/none/f", 3, "\"/none/\""),
        ("wbe:/etc", "x", 3, "did you mean \"web\"?"),
        ("web:/pipe", "x", 2, "a pipe"),
        ("web:/dev/null", "x", 2, "a device"),
        ("web:/proc/version", "x", 2, "a file of the kernel"),
        (&f, "fixed:/f", 4, "can only be read"),
        ("/nonexistent/f", "web:/", 3, "cannot be read"),
        ("web:/etc/hosts", "no/such/dir", 2, "mkdir -p"),
    ];
    for (from, to, code, says) in cases {
        let mut command = daemon.command(&["cp", from, to]);
        let output = command.current_dir(dir.path()).output().unwrap();
        let err = String::from_utf8_lossy(&output.stderr);
        assert!(err.contains(says), "{from} {to}: {err}");
        assert_eq!(output.status.code(), Some(code), "{from} {to}: {err}");
    }
    assert_eq!(
        fs::read_dir(dir.path()).unwrap().count(),
        1,
        "nothing half-done here"
    );

    daemon.berth(&["pause", "web"]).unwrap();
    until_so("it is paused", || status(&daemon, "web") == "paused");
    let said = daemon.run(&["cp", &f, "web:/f"]).unwrap();
    assert!(
        said.code == 4 && said.err.contains("berth resume web"),
        "{said:?}"
    );
    copy(&daemon, "web:/etc/hosts", &here("hosts"));
    daemon.berth(&["resume", "web"]).unwrap();

    // An archive that leads outside: refused by the name of its entry, nothing written.
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.as_mut_bytes()[..9].copy_from_slice(b"../../esc");
    header.set_size(0);
    header.set_mode(0o644);
    header.set_cksum();
    builder.append(&header, &b""[..]).unwrap();
    let mut put = daemon.command(&["cp", "-", "web:/d"]);
    let mut put = put
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let sent = put
        .stdin
        .take()
        .unwrap()
        .write_all(&builder.into_inner().unwrap());
    drop(sent);
    let said = put.wait_with_output().unwrap();
    let err = String::from_utf8_lossy(&said.stderr);
    assert!(!said.status.success() && err.contains("../../esc"), "{err}");
    assert_eq!(
        inside(&daemon, "web", "ls /d; ls -d /esc 2>/dev/null || true"),
        ""
    );
}
