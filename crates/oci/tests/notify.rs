//! System calls that somebody else answers: `SCMP_ACT_NOTIFY`, its listener and the message that comes
//! with it (config-linux.md, "The Container Process State"; seccomp_unotify(2)).

// A test fails by panicking and says what it skips.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod common;

use std::io::{IoSliceMut, Read as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread::ScopedJoinHandle;
use std::time::Duration;

use common::{Bed, cannot_run};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use serde_json::{Value, json};

/// Waits for a connection, as long as `giver` runs that should bring it.
fn accept(socket: &UnixListener, giver: &ScopedJoinHandle<'_, String>) -> UnixStream {
    socket.set_nonblocking(true).unwrap();
    loop {
        // Looked at first: what it brought before it ended is there then.
        let ended = giver.is_finished();
        match socket.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false).unwrap();
                return stream;
            }
            Err(_) if !ended => std::thread::sleep(Duration::from_millis(2)),
            Err(error) => panic!("no listener came: {error}"),
        }
    }
}

/// Takes the listener and the message that one connection brings.
fn receive(mut stream: UnixStream) -> (OwnedFd, Value) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut bytes = vec![0; 64 << 10];
    let got = rustix::net::recvmsg(
        &stream,
        &mut [IoSliceMut::new(&mut bytes)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )
    .unwrap();
    bytes.truncate(got.bytes);
    stream.read_to_end(&mut bytes).unwrap();
    let mut fds: Vec<OwnedFd> = control
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => Some(fds),
            _ => None,
        })
        .flatten()
        .collect();
    assert_eq!(fds.len(), 1);
    (fds.remove(0), serde_json::from_slice(&bytes).unwrap())
}

/// Takes one notification and answers its call with an error; which process made it.
fn refuse(listener: &OwnedFd, errno: i32) -> u32 {
    // SAFETY: both structures are plain integers, for which all zeroes is a value.
    let (mut call, mut answer): (libc::seccomp_notif, libc::seccomp_notif_resp) =
        unsafe { std::mem::zeroed() };
    // SAFETY: the request takes a zeroed `struct seccomp_notif` and fills it.
    let got = unsafe {
        libc::ioctl(
            listener.as_raw_fd(),
            libc::SECCOMP_IOCTL_NOTIF_RECV,
            &raw mut call,
        )
    };
    assert_eq!(got, 0, "{}", std::io::Error::last_os_error());
    answer.id = call.id;
    answer.error = -errno;
    // SAFETY: the request reads a `struct seccomp_notif_resp`.
    let sent = unsafe {
        libc::ioctl(
            listener.as_raw_fd(),
            libc::SECCOMP_IOCTL_NOTIF_SEND,
            &raw mut answer,
        )
    };
    assert_eq!(sent, 0, "{}", std::io::Error::last_os_error());
    call.pid
}

#[test]
fn the_listener_is_handed_over_with_the_state_and_answers_the_calls() {
    if cannot_run("the_listener_is_handed_over") {
        return;
    }
    for nnp in [true, false] {
        let mut bed = Bed::new();
        let path = bed.dir.path().join("listener");
        let socket = UnixListener::bind(&path).unwrap();
        bed.config["process"]["noNewPrivileges"] = json!(nnp);
        bed.config["annotations"] = json!({ "is": "kept" });
        bed.config["linux"]["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "listenerPath": path,
            "listenerMetadata": "who am I",
            "syscalls": [{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_NOTIFY" }]
        });
        bed.script("mkdir /tmp/x 2>/tmp/said; echo $? >>/tmp/said; exec sleep 1000");
        bed.write_config();
        bed.ok(&["create", "c"]);
        let started = std::thread::scope(|scope| {
            let start = scope.spawn(|| bed.ok(&["start", "c"]));
            let received = receive(accept(&socket, &start));
            start.join().unwrap();
            received
        });
        let (listener, message) = started;
        let state: Value = serde_json::from_str(&bed.ok(&["state", "c"])).unwrap();
        assert_eq!(message["fds"], json!(["seccompFd"]));
        assert_eq!(message["pid"], state["pid"]);
        assert_eq!(message["metadata"], "who am I");
        assert_eq!(message["state"]["id"], "c");
        assert_eq!(message["state"]["annotations"]["is"], "kept");
        refuse(&listener, libc::EMULTIHOP);
        let said = bed.rootfs().join("tmp/said");
        let text = || std::fs::read_to_string(&said).unwrap_or_default();
        while !text().ends_with("1\n") {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        assert!(text().contains("Multihop attempted"), "{}", text());
        assert!(!bed.rootfs().join("tmp/x").exists());

        // A further program has a filter, and a listener, of its own.
        std::thread::scope(|scope| {
            let script = "mkdir /tmp/y 2>&1; echo $? $$";
            let exec = scope.spawn(|| bed.ok(&["exec", "c", "sh", "-c", script]));
            let (listener, message) = receive(accept(&socket, &exec));
            assert_ne!(message["pid"], state["pid"]);
            assert_eq!(message["state"]["id"], "c");
            refuse(&listener, libc::EMULTIHOP);
            let said = exec.join().unwrap();
            assert!(
                said.contains("Multihop attempted") && said.contains("1 "),
                "{said}"
            );
        });
        bed.ok(&["delete", "--force", "c"]);
        bed.assert_clean();
    }
}

#[test]
fn without_anybody_who_listens_nothing_runs() {
    if cannot_run("without_anybody_who_listens_nothing_runs") {
        return;
    }
    let mut bed = Bed::new();
    let path = bed.dir.path().join("listener");
    let notify = |names: Value| {
        json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "listenerPath": path,
            "syscalls": [{ "names": names, "action": "SCMP_ACT_NOTIFY" }]
        })
    };
    bed.config["linux"]["seccomp"] = notify(json!(["mkdir"]));
    bed.script("touch /tmp/ran");
    let (code, _, err) = bed.run();
    assert_ne!(code, 0);
    assert!(err.contains("listener"), "{err}");
    bed.ok(&["delete", "--force", "c"]);
    bed.assert_clean();
    // Nobody could hand over a listener that its own hand-over waits for.
    bed.config["linux"]["seccomp"] = notify(json!(["sendmsg"]));
    let (code, _, err) = bed.run();
    assert_ne!(code, 0);
    assert!(err.contains("sendmsg"), "{err}");
    bed.assert_clean();
}
