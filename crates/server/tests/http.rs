//! The server over real Unix sockets: what callers see, good and bad.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::{
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
    time::Duration,
};

use api::{ErrorCode, Problem};
use common::{Answer, Running, raw};
use serde_json::{Value, json};

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_from_create_to_delete() {
    let server = Running::unix().await;
    let body = json!({"name": "web", "spec": {"image": "busybox", "memory": "64M"}});
    let made = server
        .send("POST", "/v1/instances?wait_s=5", Some(&body))
        .await;
    assert_eq!(made.status, 202, "{made:?}");
    assert_eq!(made.header("etag"), "\"1\"");
    assert_eq!(made.json()["spec"]["memory"], "64M");

    let again = server.send("POST", "/v1/instances", Some(&body)).await;
    assert_eq!(again.problem().code, ErrorCode::Conflict);
    assert_eq!(again.header("content-type"), "application/problem+json");

    let patch = json!({"memory": null, "cpus": 1.5});
    let stale = server
        .call(raw(
            "PATCH",
            "/v1/instances/web",
            "If-Match: \"9\"\r\nContent-Type: application/merge-patch+json\r\n",
            &patch.to_string(),
        ))
        .await;
    assert_eq!(stale.status, 409, "{stale:?}");
    let set = server
        .call(raw(
            "PATCH",
            "/v1/instances/web",
            "If-Match: \"1\"\r\nContent-Type: application/merge-patch+json\r\n",
            &patch.to_string(),
        ))
        .await;
    assert_eq!(set.status, 200, "{set:?}");
    assert_eq!(set.json()["spec"].get("memory"), None);

    // A stop takes a body whose fields are all optional: none is fine too.
    let stopped = server.send("POST", "/v1/instances/web/stop", None).await;
    assert_eq!(
        (stopped.status, &stopped.json()["status"]),
        (202, &json!("stopped"))
    );
    let list = server
        .send("GET", "/v1/instances?status=stopped", None)
        .await;
    assert_eq!(list.json().as_array().unwrap().len(), 1);
    assert!(!list.header("x-request-id").is_empty());

    let gone = server.send("DELETE", "/v1/instances/web", None).await;
    assert_eq!(gone.status, 202);
    let gone = server.send("GET", "/v1/instances/web", None).await;
    assert_eq!(gone.problem().code, ErrorCode::NotFound);
    let signal = server
        .send("POST", "/v1/instances/web/signal?signal=HUP", None)
        .await;
    assert_eq!(signal.status, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_requests_are_refused_with_the_reason() {
    let server = Running::unix().await;
    let json_type = "Content-Type: application/json\r\n";
    let big = format!("{{\"spec\":{{\"image\":\"{}\"}}}}", "x".repeat(2 << 20));
    let cases = [
        (raw("GET", "/v1/instancse", "", ""), 404, "there is no path"),
        (
            raw("PUT", "/v1/instances", "", ""),
            405,
            "has no method PUT",
        ),
        (raw("BREW", "/v1/info", "", ""), 405, "has no method BREW"),
        (
            raw("GET", "/v1/instances?lable=x", "", ""),
            400,
            "\"lable\"",
        ),
        (
            raw("GET", "/v1/instances/a/logs?tail=-3", "", ""),
            400,
            "\"tail\" is \"-3\"",
        ),
        (
            raw("POST", "/v1/instances?wait_s=soon", json_type, "{}"),
            400,
            "\"wait_s\" is \"soon\"",
        ),
        (
            raw(
                "POST",
                "/v1/instances",
                "Content-Type: text/plain\r\n",
                "{}",
            ),
            415,
            "application/json",
        ),
        (raw("POST", "/v1/instances", "", "{}"), 415, "not stated"),
        (
            raw("POST", "/v1/instances", json_type, "{\"spec\":\n{,}}"),
            400,
            "line 2 column 2",
        ),
        (
            raw(
                "POST",
                "/v1/instances",
                json_type,
                "{\"spec\":{\"imag\":1}}",
            ),
            400,
            "is not what",
        ),
        (
            raw("POST", "/v1/instances", json_type, &big),
            413,
            "larger than 1048576",
        ),
        (
            raw("POST", "/v1/instances/a/signal", "", ""),
            400,
            "\"signal\" is missing",
        ),
        (
            raw("POST", "/v1/images/gc", json_type, "{}"),
            400,
            "takes no body",
        ),
        (
            raw(
                "PATCH",
                "/v1/instances/a",
                "If-Match: x\r\nContent-Type: application/json\r\n",
                "{}",
            ),
            400,
            "If-Match",
        ),
        (
            raw("GET", "/v1/instances/a/attach", "", ""),
            400,
            "WebSocket",
        ),
        (
            raw("GET", "/v1/instances/a/wait?for=ever", "", ""),
            400,
            "settled or running",
        ),
        (raw("GET", "/v1/instances/%ff", "", ""), 400, "UTF-8"),
        (
            raw("GET", "/v1/instances/none", "", ""),
            404,
            "there is no instance \"none\"",
        ),
    ];
    for (request, status, words) in cases {
        let line = request.lines().next().unwrap_or_default().to_owned();
        let answer = server.call(request).await;
        let problem = answer.problem();
        assert_eq!(
            (answer.status, problem.status),
            (status, status),
            "{line}: {problem}"
        );
        assert!(problem.detail.contains(words), "{line}: {}", problem.detail);
    }
    let answer = server.call(raw("PUT", "/v1/instances", "", "")).await;
    assert_eq!(answer.header("allow"), "GET, POST");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fault_is_an_answer_with_an_id_and_the_next_request_is_served() {
    let server = Running::unix().await;
    for (method, path) in [("GET", "/v1/info"), ("POST", "/v1/images/gc")] {
        server.fake.panic_next();
        let answer = server.send(method, path, None).await;
        let problem = answer.problem();
        assert_eq!(problem.code, ErrorCode::Internal);
        assert!(
            problem.detail.contains(&answer.header("x-request-id")),
            "{problem}"
        );
        assert!(!problem.detail.contains("told to panic"));
    }
    assert_eq!(server.send("GET", "/v1/info", None).await.status, 200);

    let problem = Problem::new(ErrorCode::Unsupported, "no such disk").hint("buy one");
    server.fake.fail_next(problem.clone());
    let answer = server.send("GET", "/v1/info", None).await;
    assert_eq!((answer.status, answer.problem()), (501, problem));

    let metrics = server.send("GET", "/metrics", None).await.text();
    for line in [
        "berth_instances 0",
        "berth_http_panics_total 2",
        "berth_http_requests_total{route=\"info\",status=\"500\"} 1",
        "berth_http_requests_total{route=\"info\",status=\"501\"} 1",
    ] {
        assert!(metrics.lines().any(|it| it == line), "{line}\n{metrics}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_connections_harm_nobody() {
    let server = Running::unix_with(|config| {
        config.header_timeout = Duration::from_millis(300);
        config.body_timeout = Duration::from_millis(300);
    })
    .await;
    let path = server.path().to_owned();
    let outcomes = tokio::task::spawn_blocking(move || {
        let talk = |bytes: &[u8]| {
            let mut stream = UnixStream::connect(&path).unwrap();
            // The server may close before all is written.
            let _ = stream.write_all(bytes);
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer);
            String::from_utf8_lossy(&answer).into_owned()
        };
        let many: String = (0..200).map(|n| format!("X-{n}: y\r\n")).collect();
        vec![
            ("slow headers", "", talk(b"GET /v1/info HTTP/1.1\r\nHost: x\r\n")),
            ("silence", "", talk(b"")),
            ("no HTTP", "400", talk(b"\x16\x03\x01\x02\x00 what\r\n\r\n")),
            ("huge header", "431", talk(format!("GET / HTTP/1.1\r\nA: {}\r\n\r\n", "a".repeat(100_000)).as_bytes())),
            ("many headers", "431", talk(format!("GET / HTTP/1.1\r\n{many}\r\n").as_bytes())),
            ("long path", "400", talk(format!("GET /{} HTTP/1.1\r\nConnection: close\r\n\r\n", "a".repeat(5000)).as_bytes())),
            (
                "slow body",
                "504",
                talk(b"POST /v1/instances HTTP/1.1\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{"),
            ),
            (
                "two lengths",
                "400",
                talk(b"POST /v1/images/gc HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab"),
            ),
        ]
    })
    .await
    .unwrap();
    for (what, status, answer) in outcomes {
        let line = answer.lines().next().unwrap_or_default();
        assert!(line.contains(status), "{what}: {line:?}");
        assert!(
            !status.is_empty() || line.is_empty() || line.contains("408"),
            "{what}: {line:?}"
        );
    }
    assert_eq!(server.send("GET", "/v1/info", None).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn archives_stream_both_ways() {
    let server = Running::unix().await;
    server.fake.populate(1);
    let archive = "0123456789abcdef".repeat(1 << 18);
    let put = raw(
        "PUT",
        "/v1/instances/box-0/files?path=%2Fsrv",
        "Content-Type: application/x-tar\r\n",
        &archive,
    );
    assert_eq!(server.call(put).await.status, 204);
    assert_eq!(
        server.fake.unpacked("box-0", "/srv").unwrap().len(),
        archive.len()
    );
    let got = server
        .send("GET", "/v1/instances/box-0/files?path=/srv", None)
        .await;
    assert_eq!((got.status, got.text() == archive), (200, true));
    assert_eq!(got.header("content-type"), "application/x-tar");

    // Refused while still being sent: the answer arrives all the same.
    let refused = raw(
        "PUT",
        "/v1/instances/none/files?path=/srv",
        "Content-Type: application/x-tar\r\n",
        &archive,
    );
    let answer = server.call(refused).await;
    assert_eq!(answer.problem().code, ErrorCode::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn events_come_line_by_line_and_end_with_a_farewell() {
    let server = Running::unix().await;
    server.fake.event("instance.started", "instances/a");
    let path = server.path().to_owned();
    let (sent, mut lines) = tokio::sync::mpsc::unbounded_channel();
    let reader = std::thread::spawn(move || {
        let mut stream = UnixStream::connect(path).unwrap();
        stream
            .write_all(raw("GET", "/v1/events?since=0", "", "").as_bytes())
            .unwrap();
        let mut all = Vec::new();
        let mut buffer = [0; 4096];
        while let Ok(length @ 1..) = stream.read(&mut buffer) {
            all.extend_from_slice(&buffer[..length]);
            let _ = sent.send(String::from_utf8_lossy(&buffer[..length]).into_owned());
        }
        Answer::parse(&all)
    });
    let wait_for = async |lines: &mut tokio::sync::mpsc::UnboundedReceiver<String>, text: &str| {
        let find = async {
            while !lines
                .recv()
                .await
                .expect("the stream goes on")
                .contains(text)
            {}
        };
        tokio::time::timeout(Duration::from_secs(20), find)
            .await
            .unwrap();
    };
    wait_for(&mut lines, "instance.started").await;
    server.fake.event("instance.stopped", "instances/a");
    wait_for(&mut lines, "instance.stopped").await;

    server.stop().await;
    let answer = reader.join().unwrap();
    let kinds: Vec<Value> = answer
        .text()
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["type"].clone())
        .collect();
    assert_eq!(
        kinds,
        ["instance.started", "instance.stopped", "daemon.stopping"]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_lets_requests_end_and_removes_the_socket() {
    let server = Running::unix().await;
    server.fake.populate(1);
    let path = server.path().to_owned();
    let waiting = {
        let path = path.clone();
        tokio::task::spawn_blocking(move || {
            let request = raw(
                "GET",
                "/v1/instances/box-0/wait?for=stopped&timeout_s=1",
                "",
                "",
            );
            common::talk(&path, &request)
        })
    };
    tokio::time::sleep(Duration::from_millis(200)).await;
    server.stop().await;
    assert_eq!(waiting.await.unwrap().problem().code, ErrorCode::Timeout);
    assert!(!path.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_was_begun_goes_on_when_its_caller_is_gone() {
    let server = Running::unix().await;
    server.fake.populate(1);
    let hold = server.fake.hold_next_stop();
    let mut caller = UnixStream::connect(server.path()).unwrap();
    let request = raw("POST", "/v1/instances/box-0/stop", "", "");
    caller.write_all(request.as_bytes()).unwrap();
    hold.begun().await;
    drop(caller);
    // The server has noticed: the connection it counts besides this request's own is gone.
    let noticed = async {
        loop {
            let metrics = server.send("GET", "/metrics", None).await.text();
            if metrics.contains("berth_http_connections 1\n") {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), noticed)
        .await
        .unwrap();
    hold.release();
    let wait = "/v1/instances/box-0/wait?for=stopped&timeout_s=20";
    let stopped = server.send("GET", wait, None).await;
    assert_eq!(stopped.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_openapi_document_is_served() {
    let server = Running::unix().await;
    let answer = server.send("GET", "/v1/openapi.json", None).await;
    assert_eq!(answer.header("content-type"), "application/json");
    assert_eq!(answer.json(), api::openapi::document());
}
