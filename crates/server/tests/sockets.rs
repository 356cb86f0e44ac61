//! Attach and exec over real WebSockets.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::time::Duration;

use api::stream::Control;
use common::Running;
use futures::{SinkExt as _, StreamExt as _};
use serde_json::json;
use tokio::{net::UnixStream, time::timeout};
use tokio_tungstenite::{WebSocketStream, client_async, tungstenite::Message};

type Web = WebSocketStream<UnixStream>;

async fn open(server: &Running, path: &str) -> Web {
    let stream = UnixStream::connect(server.path()).await.unwrap();
    let (web, response) = client_async(format!("ws://berth{path}"), stream)
        .await
        .unwrap();
    assert_eq!(response.status(), 101);
    web
}

async fn exec(server: &Running, command: &[&str]) -> Web {
    let mut web = open(server, "/v1/instances/box-0/exec").await;
    let first = json!({"command": command, "stdin": true}).to_string();
    web.send(Message::text(first)).await.unwrap();
    web
}

/// Output, error output, the last control message, and the close code.
async fn until_end(web: &mut Web) -> (Vec<u8>, Vec<u8>, Option<Control>, Option<u16>) {
    let (mut out, mut err, mut control, mut code) = (Vec::new(), Vec::new(), None, None);
    let all = async {
        while let Some(Ok(message)) = web.next().await {
            match message {
                Message::Binary(bytes) if bytes[0] == 2 => out.extend_from_slice(&bytes[1..]),
                Message::Binary(bytes) if bytes[0] == 3 => err.extend_from_slice(&bytes[1..]),
                Message::Text(text) => control = Some(serde_json::from_str(&text).unwrap()),
                Message::Close(frame) => code = frame.map(|frame| frame.code.into()),
                other => panic!("{other:?}"),
            }
        }
    };
    timeout(Duration::from_secs(30), all).await.unwrap();
    (out, err, control, code)
}

fn stdin(bytes: &[u8]) -> Message {
    let mut framed = vec![1];
    framed.extend_from_slice(bytes);
    Message::binary(framed)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_s_output_and_exit_code_arrive() {
    let server = Running::unix().await;
    server.fake.populate(1);
    let (out, _, control, code) = until_end(&mut exec(&server, &["exit", "7"]).await).await;
    assert_eq!(out, b"exit 7\n");
    assert_eq!(
        (control, code),
        (Some(Control::Exited { code: 7 }), Some(1000))
    );

    let mut web = open(&server, "/v1/instances/box-0/attach").await;
    web.send(Message::text("{}")).await.unwrap();
    let (_, _, control, _) = until_end(&mut web).await;
    assert_eq!(control, Some(Control::Exited { code: 0 }));
}

#[tokio::test(flavor = "multi_thread")]
async fn much_input_that_is_echoed_neither_blocks_nor_is_lost() {
    let server = Running::unix().await;
    server.fake.populate(1);
    let web = exec(&server, &["cat"]).await;
    let (mut sink, mut stream) = web.split();
    let part = vec![b'x'; 60_000];
    let send = async {
        for _ in 0..200 {
            sink.send(stdin(&part)).await.unwrap();
        }
        sink.send(Message::text(r#"{"type":"resize","rows":1,"cols":2}"#))
            .await
            .unwrap();
        // Half closed: nothing more goes in, the rest still comes out.
        sink.send(Message::text(r#"{"type":"stdin_eof"}"#))
            .await
            .unwrap();
    };
    let receive = async {
        let (mut echoed, mut resized) = (0, false);
        loop {
            match stream.next().await.unwrap().unwrap() {
                Message::Binary(bytes) if bytes[0] == 2 => echoed += bytes.len() - 1,
                Message::Binary(_) => resized = true,
                Message::Text(text) => return (echoed, resized, text.to_string()),
                _ => {}
            }
        }
    };
    let both = async { tokio::join!(send, receive).1 };
    let (echoed, resized, last) = timeout(Duration::from_secs(60), both).await.unwrap();
    assert_eq!((echoed, resized), (12_000_000, true));
    assert_eq!(last, r#"{"type":"exited","code":0}"#);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_breaks_the_protocol_is_told_so() {
    let server = Running::unix_with(|config| {
        config.body_timeout = Duration::from_millis(300);
        config.message_bytes = 4096;
    })
    .await;
    server.fake.populate(1);
    for (message, words) in [
        (Message::binary(vec![9, 9]), "byte 1"),
        (
            Message::text("{\"type\":\"explode\"}"),
            "not what this route takes",
        ),
        (
            Message::text(r#"{"type":"exited","code":0}"#),
            "resize, signal",
        ),
        (Message::binary(vec![1; 10_000]), "too long"),
    ] {
        let mut web = exec(&server, &["cat"]).await;
        web.send(message).await.unwrap();
        let (_, _, control, code) = until_end(&mut web).await;
        let Some(Control::Problem { problem }) = control else {
            panic!("{words}: {control:?}");
        };
        let said = format!("{problem}").to_lowercase();
        assert!(said.contains(words), "{words}: {said}");
        assert_eq!(code, Some(1008), "{words}");
    }
    let mut silent = open(&server, "/v1/instances/box-0/exec").await;
    let (_, _, control, _) = until_end(&mut silent).await;
    assert!(
        matches!(control, Some(Control::Problem { .. })),
        "{control:?}"
    );

    let mut absent = open(&server, "/v1/instances/none/exec").await;
    absent
        .send(Message::text(r#"{"command":["x"]}"#))
        .await
        .unwrap();
    let (_, _, control, _) = until_end(&mut absent).await;
    let Some(Control::Problem { problem }) = control else {
        panic!("{control:?}");
    };
    assert_eq!(problem.status, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_gives_no_sign_of_life_is_let_go() {
    let server =
        Running::unix_with(|config| config.ping_interval = Duration::from_millis(50)).await;
    server.fake.populate(1);
    let web = exec(&server, &["cat"]).await;
    // Whoever reads answers pings; this one does not read, and the program ends for want of input.
    let gone = async {
        loop {
            let metrics = server.send("GET", "/metrics", None).await.text();
            if metrics.contains("berth_http_sockets 0\n") {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(Duration::from_secs(30), gone).await.unwrap();
    drop(web);
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_the_server_says_so_to_every_stream() {
    let server = Running::unix().await;
    server.fake.populate(1);
    let mut web = exec(&server, &["cat"]).await;
    web.send(stdin(b"here")).await.unwrap();
    assert!(matches!(web.next().await, Some(Ok(Message::Binary(_)))));
    let stopping = tokio::spawn(server.stop());
    let (_, _, control, code) = until_end(&mut web).await;
    let Some(Control::Problem { problem }) = control else {
        panic!("{control:?}");
    };
    assert!(problem.detail.contains("stopping"), "{problem}");
    assert_eq!(code, Some(1001));
    stopping.await.unwrap();
}
