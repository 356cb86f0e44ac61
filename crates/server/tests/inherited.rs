//! Socket activation by the real tool: the socket is open before the server is.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::{
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use common::raw;
use server::{CancellationToken, Config, Listener, Server, testing::Fake};

const CHILD: &str = "BERTH_TEST_INHERITED";

struct Kill(Child);

impl Drop for Kill {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_socket_of_systemd_is_served_and_left_in_place() {
    if std::env::var_os(CHILD).is_some() {
        return serve();
    }
    let name = "a_socket_of_systemd_is_served_and_left_in_place";
    let tool = "systemd-socket-activate";
    if Command::new(tool).arg("--version").output().is_err() {
        return eprintln!("SKIP {name}: {tool} is not installed");
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("berth.sock");
    let child = Command::new(tool)
        .arg("--listen")
        .arg(&path)
        .args(["--setenv", CHILD])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(CHILD, "1")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let _child = Kill(child);
    let deadline = Instant::now() + Duration::from_secs(30);
    while !path.exists() {
        assert!(Instant::now() < deadline, "{tool} opened no socket");
        std::thread::sleep(Duration::from_millis(20));
    }
    // The first connection starts the server and waits for it.
    let answer = common::talk(&path, &raw("GET", "/v1/info", "", ""));
    assert_eq!(answer.status, 200);
    let stop = common::talk(&path, &raw("POST", "/v1/images/gc", "", ""));
    assert_eq!(stop.status, 200);
    assert!(path.exists());
}

/// The activated process: serves what it was handed until killed.
fn serve() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let listeners = Listener::inherited(None).unwrap();
        assert_eq!(listeners.len(), 1);
        assert!(listeners[0].address().ends_with("/berth.sock"));
        let server = Server::new(Arc::new(Fake::new()), Config::default());
        server.run(listeners, CancellationToken::new()).await;
    });
}
