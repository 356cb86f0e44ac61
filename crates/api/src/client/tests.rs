//! The client against a small server made from the route table, over a Unix socket and TLS.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use axum::{
    Router, body::Body, http::Request as HttpRequest, response::IntoResponse, routing::any,
};
use serde_json::json;
use tokio::net::UnixListener;

use super::*;
use crate::{
    ErrorCode, ImageBuild, ImageTag, InstanceCreate, Problem, Process, Recipe, StopRequest,
    WaitFor,
    routes::{Answer, ROUTES},
    stream::{Attach, Control},
};

type Seen = Arc<Mutex<Vec<(String, String, String)>>>;

/// Records (route id, uri, content type) and answers each route with something of its shape.
fn recorder(seen: &Seen) -> Router {
    let mut router = Router::new();
    for route in ROUTES {
        let seen = Arc::clone(seen);
        let handler = move |request: HttpRequest<Body>| async move {
            let media = request
                .headers()
                .get("content-type")
                .map(|value| value.to_str().unwrap().to_owned())
                .unwrap_or_default();
            let uri = request.uri().to_string();
            seen.lock().unwrap().push((route.id.to_owned(), uri, media));
            // Whatever was sent is read, as a server must before it answers for good.
            axum::body::to_bytes(request.into_body(), 1 << 20)
                .await
                .unwrap();
            match route.answer {
                Answer::Empty => axum::http::StatusCode::NO_CONTENT.into_response(),
                // A refusal: the shapes of answers are the daemon's to test.
                _ => refusal(ErrorCode::Denied).into_response(),
            }
        };
        let filter = axum::routing::MethodFilter::try_from(
            axum::http::Method::from_bytes(route.method.as_str().as_bytes()).unwrap(),
        )
        .unwrap();
        router = router.route(route.path, axum::routing::on(filter, handler));
    }
    router
}

fn refusal(code: ErrorCode) -> impl IntoResponse {
    let problem = Problem::new(code, "not today").hint("come back");
    (
        axum::http::StatusCode::from_u16(problem.status).unwrap(),
        axum::Json(problem),
    )
}

fn serve(router: Router) -> (tempfile::TempDir, Client) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sock");
    let listener = UnixListener::bind(&path).unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await });
    (dir, Client::new(Config::unix(path)))
}

/// What a call failed with; that it failed as the server said is checked.
fn refused<T>(result: Result<T>) {
    let error = result.err().unwrap();
    assert_eq!(error.code(), Some(ErrorCode::Denied), "{error}");
    assert_eq!(error.hint().as_deref(), Some("come back"));
}

fn nothing() -> impl futures::Stream<Item = std::io::Result<bytes::Bytes>> + Send {
    futures::stream::empty()
}

#[tokio::test]
async fn there_is_a_call_for_every_route() {
    let seen = Seen::default();
    let (_dir, c) = serve(recorder(&seen));
    let stop = StopRequest::default();
    let build = ImageBuild {
        recipe: Recipe::Busybox,
        name: None,
        suite: None,
        packages: Vec::new(),
        system: false,
        vm: false,
        fresh: false,
    };
    let tag = ImageTag {
        image: "a".into(),
        reference: "b".into(),
    };
    refused(c.info().await);
    refused(c.doctor().await);
    refused(c.openapi().await);
    refused(c.metrics().await);
    refused(
        c.events(EventsQuery {
            since: Some(4),
            until_now: true,
        })
        .await,
    );
    refused(c.list_instances(Some("a=b&c"), None).await);
    refused(c.create_instance(&InstanceCreate::default(), Some(2)).await);
    refused(c.show_instance("we/b").await);
    refused(c.set_instance("web", &json!({}), Some(3)).await);
    refused(c.delete_instance("web", true, None).await);
    refused(c.start_instance("web", None).await);
    refused(c.stop_instance("web", &stop, None).await);
    refused(c.restart_instance("web", &stop, None).await);
    refused(c.pause_instance("web", None).await);
    refused(c.resume_instance("web", None).await);
    c.signal_instance("web", "SIGHUP").await.unwrap();
    refused(c.wait_instance("web", WaitFor::Healthy, 1).await);
    refused(c.attach_instance("web", &Attach::default()).await);
    refused(c.exec_instance("web", &Process::default()).await);
    refused(c.instance_logs("web", &LogsQuery::default()).await);
    refused(c.instance_stats("web").await);
    refused(c.instance_cpu_stats("web").await);
    refused(c.all_stats().await);
    refused(c.instance_top("web").await);
    refused(c.get_files("web", "/a b").await);
    c.put_files("web", "/", nothing()).await.unwrap();
    refused(c.list_operations().await);
    refused(c.show_operation("1", Some(1)).await);
    refused(c.watch_operation("1").await);
    refused(c.cancel_operation("1").await);
    refused(c.retry_operation("1").await);
    refused(c.list_images().await);
    refused(c.image_df().await);
    refused(c.show_image("a").await);
    c.delete_image("a").await.unwrap();
    refused(c.pull_image(&Default::default()).await);
    refused(c.push_image(&Default::default()).await);
    refused(c.build_image(&build).await);
    refused(c.import_image(None, nothing()).await);
    refused(c.export_image("a", ExportFormat::Oci).await);
    refused(c.tag_image(&tag).await);
    refused(c.gc_images().await);
    refused(c.list_networks().await);
    refused(c.create_network(&Default::default()).await);
    refused(c.show_network("n").await);
    c.delete_network("n").await.unwrap();
    refused(c.list_volumes().await);
    refused(c.create_volume(&Default::default()).await);
    refused(c.show_volume("v").await);
    c.delete_volume("v").await.unwrap();
    refused(c.list_tokens().await);
    refused(c.create_token(&Default::default()).await);
    c.revoke_token("t").await.unwrap();
    refused(c.list_logins().await);
    refused(c.log_in(&Default::default()).await);
    c.log_out("depot.example").await.unwrap();

    let seen = seen.lock().unwrap();
    let called: BTreeSet<_> = seen.iter().map(|(id, ..)| id.as_str()).collect();
    let all: BTreeSet<_> = ROUTES.iter().map(|route| route.id).collect();
    assert_eq!(called, all);
    let uri = |id: &str| seen.iter().find(|call| call.0 == id).unwrap().1.clone();
    assert_eq!(uri("show_instance"), "/v1/instances/we%2Fb");
    assert_eq!(uri("list_instances"), "/v1/instances?label=a%3Db%26c");
    assert_eq!(uri("events"), "/v1/events?since=4&follow=false");
    assert_eq!(uri("get_files"), "/v1/instances/web/files?path=%2Fa%20b");
    let patch = seen.iter().find(|call| call.0 == "set_instance").unwrap();
    assert_eq!(patch.2, "application/merge-patch+json");
}

#[tokio::test]
async fn requests_one_after_the_other_share_a_connection() {
    let accepted = Arc::new(AtomicUsize::new(0));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sock");
    let listener = UnixListener::bind(&path).unwrap();
    let count = Arc::clone(&accepted);
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            // The first connection is closed after two requests; the client must notice.
            let close_after = (count.fetch_add(1, Ordering::SeqCst) == 0).then_some(2);
            tokio::spawn(answer_empty_lists(stream, close_after));
        }
    });
    let client = Client::new(Config::unix(path));
    for _ in 0..5 {
        assert!(client.list_images().await.unwrap().is_empty());
        tokio::task::yield_now().await;
    }
    assert_eq!(accepted.load(Ordering::SeqCst), 2);
}

async fn answer_empty_lists(stream: tokio::net::UnixStream, close_after: Option<usize>) {
    use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
    let mut stream = BufReader::new(stream);
    let mut answered = 0;
    while close_after != Some(answered) {
        loop {
            let mut line = String::new();
            if stream.read_line(&mut line).await.unwrap_or(0) == 0 {
                return;
            }
            if line == "\r\n" {
                break;
            }
        }
        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n[]";
        stream.get_mut().write_all(answer).await.unwrap();
        answered += 1;
    }
}

#[tokio::test]
async fn what_a_server_sends_is_limited_and_checked() {
    let router = Router::new()
        .route("/v1/images", any(|| async { "x".repeat(MAX_DOCUMENT + 1) }))
        .route("/v1/networks", any(|| async { "<html>" }))
        .route(
            "/v1/volumes",
            any(|| async { (axum::http::StatusCode::BAD_GATEWAY, "<h1>proxy</h1>") }),
        )
        .route("/v1/events", any(|| async { "x".repeat(MAX_LINE + 1) }))
        .route("/v1/operations/{id}/watch", any(|| async { "{\"cut" }));
    let (_dir, client) = serve(router);
    for error in [
        client.list_images().await.unwrap_err(),
        client.list_networks().await.unwrap_err(),
        client
            .events(EventsQuery::default())
            .await
            .unwrap()
            .next()
            .await
            .unwrap_err(),
        client
            .watch_operation("1")
            .await
            .unwrap()
            .next()
            .await
            .unwrap_err(),
    ] {
        assert!(matches!(error, ClientError::Protocol { .. }), "{error:?}");
        assert!(error.to_string().len() < 500);
    }
    let proxy = client.list_volumes().await.unwrap_err();
    assert_eq!(proxy.code(), Some(ErrorCode::Internal));
    assert!(proxy.to_string().contains("<h1>proxy</h1>"));
}

#[tokio::test]
async fn no_daemon_is_said_with_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let missing = Client::new(Config::unix(dir.path().join("none")));
    let stale_path = dir.path().join("stale");
    drop(UnixListener::bind(&stale_path).unwrap());
    let stale = Client::new(Config::unix(stale_path));
    for client in [missing, stale] {
        let error = client.info().await.unwrap_err();
        assert!(matches!(error, ClientError::Unreachable { .. }));
        assert!(error.hint().unwrap().contains("systemctl start berth"));
    }
}

#[tokio::test]
async fn a_stream_carries_both_ways_and_ends_with_the_exit_code() {
    use axum::extract::ws::{Message, WebSocketUpgrade};
    let router = Router::new().route(
        "/v1/instances/{name}/exec",
        any(|upgrade: WebSocketUpgrade| async {
            upgrade.on_upgrade(|mut socket| async move {
                let first = socket.recv().await.unwrap().unwrap();
                let process: Process = serde_json::from_str(first.to_text().unwrap()).unwrap();
                assert_eq!(process.command, ["cat"]);
                while let Some(Ok(message)) = socket.recv().await {
                    match message {
                        Message::Binary(bytes) => {
                            assert_eq!(bytes[0], 1);
                            let mut echo = bytes.to_vec();
                            echo[0] = 2;
                            socket.send(Message::Binary(echo.into())).await.unwrap();
                        }
                        Message::Text(text) => {
                            let control: Control = serde_json::from_str(&text).unwrap();
                            let code = i32::from(control == Control::StdinEof) * 7;
                            let exited = serde_json::to_string(&Control::Exited { code }).unwrap();
                            socket.send(Message::Text(exited.into())).await.unwrap();
                        }
                        _ => break,
                    }
                }
            })
        }),
    );
    let (_dir, client) = serve(router);
    let process = Process {
        command: vec!["cat".into()],
        ..Process::default()
    };
    let mut session = client.exec_instance("web", &process).await.unwrap();
    session.input.stdin(b"hello").await.unwrap();
    session.input.stdin_eof().await.unwrap();
    let echoed = session.output.next().await.unwrap().unwrap();
    assert!(matches!(echoed, StreamEvent::Stdout(bytes) if bytes == "hello"));
    let ended = session.output.next().await.unwrap().unwrap();
    assert!(matches!(ended, StreamEvent::Exited(7)));
}

#[tokio::test]
async fn a_self_signed_daemon_is_trusted_by_authority_or_fingerprint_only() {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let ca_file = dir.path().join("ca.pem");
    std::fs::write(&ca_file, made.cert.pem()).unwrap();
    let address = serve_tls(&made).await;

    let client = |change: &dyn Fn(&mut Credential)| {
        let mut credential = Credential {
            token: Some("let-me-in".into()),
            ..Credential::default()
        };
        change(&mut credential);
        Client::new(Config {
            address: address.clone(),
            credential,
        })
    };
    let stranger = client(&|_| {}).list_images().await.unwrap_err();
    let ClientError::Certificate { fingerprint, .. } = &stranger else {
        panic!("{stranger:?}")
    };
    assert!(stranger.hint().unwrap().contains(fingerprint));
    let pinned =
        client(&|c| c.fingerprint = Some(fingerprint.to_uppercase().replace("SHA256", "sha256")));
    assert!(pinned.list_images().await.unwrap().is_empty());
    let by_authority = client(&|c| c.ca_file = Some(ca_file.clone()));
    assert!(by_authority.list_images().await.unwrap().is_empty());
    let wrong = format!("sha256:{}", "0".repeat(64));
    let error = client(&|c| c.fingerprint = Some(wrong.clone()))
        .list_images()
        .await;
    assert!(matches!(error, Err(ClientError::Certificate { .. })));
}

/// Serves empty lists to whoever shows the token.
async fn serve_tls(made: &rcgen::CertifiedKey<rcgen::KeyPair>) -> Address {
    let key = rustls::pki_types::PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let router = Router::new().route(
        "/v1/images",
        any(|headers: axum::http::HeaderMap| async move {
            let token = headers.get("authorization").unwrap();
            assert_eq!(token, "Bearer let-me-in");
            "[]"
        }),
    );
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let (acceptor, router) = (acceptor.clone(), router.clone());
            tokio::spawn(async move {
                // A client that refuses the certificate ends the handshake.
                let Ok(stream) = acceptor.accept(stream).await else {
                    return;
                };
                let service = hyper_util::service::TowerToHyperService::new(router);
                let _ = hyper::server::conn::http1::Builder::new()
                    .serve_connection(hyper_util::rt::TokioIo::new(stream), service)
                    .await;
            });
        }
    });
    Address::Https {
        host: "localhost".into(),
        port,
    }
}
