//! A running server over the fake, and a client of few lines that sends exactly what it is told.

#![allow(dead_code, reason = "each test program uses its own part")]

use std::{
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    sync::Arc,
};

use api::Problem;
use serde_json::Value;
use server::{CancellationToken, Config, Listener, Server, testing::Fake};

/// A server that runs until dropped.
pub struct Running {
    pub fake: Fake,
    path: PathBuf,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
    directory: tempfile::TempDir,
}

impl Running {
    /// On a Unix socket with the usual limits.
    pub async fn unix() -> Self {
        Self::unix_with(|_| {}).await
    }

    /// On a Unix socket with other limits.
    pub async fn unix_with(change: impl FnOnce(&mut Config)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("berth.sock");
        let listener = Listener::unix(&path, "berth").unwrap();
        let mut config = Config::default();
        change(&mut config);
        let (fake, stop) = (Fake::new(), CancellationToken::new());
        let server = Server::new(Arc::new(fake.clone()), config);
        let task = tokio::spawn(server.run(vec![listener], stop.clone()));
        Self {
            fake,
            path,
            stop,
            task,
            directory,
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Tells it to stop and waits until it has.
    pub async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }

    /// Sends a request with an optional JSON body.
    pub async fn send(&self, method: &str, path: &str, body: Option<&Value>) -> Answer {
        let (headers, body) = match body {
            Some(body) => ("Content-Type: application/json\r\n", body.to_string()),
            None => ("", String::new()),
        };
        self.call(raw(method, path, headers, &body)).await
    }

    /// Sends the bytes of a request and reads the answer.
    pub async fn call(&self, request: String) -> Answer {
        let path = self.path.clone();
        tokio::task::spawn_blocking(move || talk(&path, &request))
            .await
            .unwrap()
    }
}

/// A request that closes the connection.
pub fn raw(method: &str, path: &str, headers: &str, body: &str) -> String {
    let length = match body.len() {
        0 => String::new(),
        length => format!("Content-Length: {length}\r\n"),
    };
    format!(
        "{method} {path} HTTP/1.1\r\nHost: berth\r\nConnection: close\r\n{headers}{length}\r\n{body}"
    )
}

/// Sends a request on a connection of its own.
pub fn talk(path: &Path, request: &str) -> Answer {
    let mut stream = UnixStream::connect(path).unwrap();
    // A server that refuses early may stop reading; its answer counts.
    let _ = stream.write_all(request.as_bytes());
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    Answer::parse(&answer)
}

#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Answer {
    /// Of the bytes of a response.
    pub fn parse(bytes: &[u8]) -> Self {
        let end = bytes.windows(4).position(|it| it == b"\r\n\r\n");
        let end = end.unwrap_or_else(|| panic!("{:?}", String::from_utf8_lossy(bytes)));
        let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let mut body = bytes[end + 4..].to_vec();
        if head.to_lowercase().contains("transfer-encoding: chunked") {
            body = unchunk(&body);
        }
        Self { status, head, body }
    }

    pub fn header(&self, name: &str) -> String {
        let found = self.head.lines().find_map(|line| {
            let (key, value) = line.split_once(": ")?;
            key.eq_ignore_ascii_case(name).then(|| value.to_owned())
        });
        found.unwrap_or_default()
    }

    pub fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("{}", self.text()))
    }

    pub fn problem(&self) -> Problem {
        serde_json::from_value(self.json()).unwrap()
    }
}

fn unchunk(mut rest: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    while let Some(end) = rest.windows(2).position(|it| it == b"\r\n") {
        let size = std::str::from_utf8(&rest[..end]).unwrap();
        let size = usize::from_str_radix(size, 16).unwrap();
        body.extend_from_slice(&rest[end + 2..end + 2 + size]);
        rest = &rest[end + 2 + size + 2..];
    }
    body
}
