//! TCP: TLS, tokens, scopes, and what guessing costs.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use api::{ErrorCode, Problem};
use model::token::Scope;
use rustls::{
    ClientConfig, RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};
use server::{CancellationToken, Config, Identity, Listener, Server, testing::Fake};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;

struct Remote {
    fake: Fake,
    address: SocketAddr,
    connector: TlsConnector,
    stop: CancellationToken,
    _directory: tempfile::TempDir,
}

impl Drop for Remote {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Remote {
    async fn start(config: Config) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
        let identity = Identity::self_signed(directory.path(), &names).unwrap();
        let listener = Listener::tls("127.0.0.1:0".parse().unwrap(), &identity)
            .await
            .unwrap();
        let address = listener
            .address()
            .strip_prefix("https://")
            .unwrap()
            .parse()
            .unwrap();

        let mut roots = RootCertStore::empty();
        let certificate = CertificateDer::from_pem_file(directory.path().join("cert.pem")).unwrap();
        roots.add(certificate).unwrap();
        let client = ClientConfig::builder_with_provider(aws_lc_rs::default_provider().into())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let (fake, stop) = (Fake::new(), CancellationToken::new());
        let server = Server::new(Arc::new(fake.clone()), config);
        tokio::spawn(server.run(vec![listener], stop.clone()));
        Self {
            fake,
            address,
            connector: TlsConnector::from(Arc::new(client)),
            stop,
            _directory: directory,
        }
    }

    /// Status and body.
    async fn get(&self, method: &str, path: &str, token: Option<&str>) -> (u16, String) {
        let header = token.map_or(String::new(), |it| {
            format!("Authorization: Bearer {it}\r\n")
        });
        let request =
            format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{header}\r\n");
        let stream = TcpStream::connect(self.address).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        let mut stream = self.connector.connect(name, stream).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        match stream.read_to_end(&mut answer).await {
            Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => panic!("{error}"),
            _ => {}
        }
        let answer = String::from_utf8(answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (
            head.split(' ').nth(1).unwrap().parse().unwrap(),
            body.to_owned(),
        )
    }
}

#[tokio::test]
async fn tokens_open_what_their_scope_allows() {
    let remote = Remote::start(Config::default()).await;
    remote.fake.allow("looker", Scope::Read);
    remote.fake.allow("doer", Scope::Operate);
    remote.fake.allow("boss", Scope::Admin);
    for (method, path, token, status) in [
        ("GET", "/v1/openapi.json", None, 200),
        ("GET", "/v1/info", None, 401),
        ("GET", "/v1/info", Some("guess"), 401),
        ("GET", "/v1/info", Some("looker"), 200),
        ("POST", "/v1/images/gc", Some("looker"), 403),
        ("POST", "/v1/images/gc", Some("doer"), 200),
        ("GET", "/v1/tokens", Some("doer"), 403),
        ("GET", "/v1/tokens", Some("boss"), 200),
    ] {
        let (got, body) = remote.get(method, path, token).await;
        assert_eq!(got, status, "{method} {path} {token:?}: {body}");
    }
    let (_, body) = remote.get("GET", "/v1/tokens", Some("looker")).await;
    let problem: Problem = serde_json::from_str(&body).unwrap();
    assert_eq!(problem.code, ErrorCode::Denied);
    assert!(problem.hint.unwrap().contains("--scope admin"));
}

#[tokio::test]
async fn who_guesses_has_to_wait_and_others_do_not() {
    let config = Config {
        auth_failures: 3,
        auth_forgive: Duration::from_secs(3600),
        ..Config::default()
    };
    let remote = Remote::start(config).await;
    remote.fake.allow("good", Scope::Read);
    for _ in 0..3 {
        assert_eq!(remote.get("GET", "/v1/info", Some("bad")).await.0, 401);
    }
    // Even the right token now: else guessing would go on at full speed.
    let (status, body) = remote.get("GET", "/v1/info", Some("good")).await;
    assert_eq!(status, 429, "{body}");
    assert!(body.contains("try again in"), "{body}");
    assert!(body.contains("rate_limited"), "{body}");
    assert_eq!(remote.get("GET", "/v1/openapi.json", None).await.0, 200);
}

#[tokio::test]
async fn only_tls_is_spoken_and_one_address_gets_no_more_than_its_share() {
    let config = Config {
        connections_per_address: 2,
        handshake_timeout: Duration::from_millis(300),
        ..Config::default()
    };
    let remote = Remote::start(config).await;
    let mut plain = TcpStream::connect(remote.address).await.unwrap();
    plain
        .write_all(b"GET /v1/openapi.json HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .unwrap();
    let mut answer = Vec::new();
    let _ = plain.read_to_end(&mut answer).await;
    assert!(!answer.starts_with(b"HTTP"), "{answer:?}");

    // Two that say nothing hold both places; a third is closed at once, and so are they in time.
    let mut silent = Vec::new();
    for _ in 0..3 {
        silent.push(TcpStream::connect(remote.address).await.unwrap());
    }
    for stream in &mut silent {
        let closed = tokio::time::timeout(Duration::from_secs(20), stream.read(&mut [0; 16])).await;
        assert!(matches!(closed, Ok(Ok(0) | Err(_))), "{closed:?}");
    }
    assert_eq!(remote.get("GET", "/v1/openapi.json", None).await.0, 200);
}
