//! Logging in at a real registry over TLS: with a password, and with tokens from a server of their own.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test fails by panicking, and says when it skips"
)]

mod common;

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpListener,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use base64::Engine as _;
use common::{
    Scratch,
    server::{Server, hashed},
};
use image::{
    Credential, Credentials, Job, PullOptions, PushOptions, Registries, RegistryConfig,
    RegistryError,
};
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, SigningKey as _};

/// A certificate for 127.0.0.1 that is its own authority: `cert.pem` and `key.pem` in `dir`.
fn certify(dir: &Path) -> (KeyPair, Vec<u8>) {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    let certificate = params.self_signed(&key).unwrap();
    fs::write(dir.join("cert.pem"), certificate.pem()).unwrap();
    fs::write(dir.join("key.pem"), key.serialize_pem()).unwrap();
    (key, certificate.der().to_vec())
}

fn tls(dir: &Path) -> String {
    let dir = dir.display();
    format!(", tls: {{certificate: {dir}/cert.pem, key: {dir}/key.pem}}")
}

fn client(file: &Path, authority: Option<&Path>) -> Registries {
    Registries::new(RegistryConfig {
        ca_files: authority.map(Path::to_owned).into_iter().collect(),
        credentials: Credentials::none().with_file(file),
        ..RegistryConfig::default()
    })
    .unwrap()
}

fn alice(password: &str) -> Credential {
    Credential::Basic {
        username: "alice".into(),
        password: password.into(),
    }
}

/// Logs in as nobody knows, as alice, and goes on until the login is forgotten.
async fn log_in_push_pull_and_out(server: &Server, file: &Path) {
    let here = Scratch::new();
    let Some(image) = here.busybox() else { return };
    let registry = format!("127.0.0.1:{}", server.port);
    let authority = server.dir.path().join("cert.pem");
    let name = server.name("private/app:1");
    let job = Job::silent();

    let stranger = client(file, None);
    let (right, wrong) = (alice("secret"), alice("guess"));
    let distrusted = stranger.log_in(&registry, &right, file, &job);
    let distrusted = distrusted.await.unwrap_err();
    assert!(
        matches!(
            distrusted,
            RegistryError::Unreachable { .. } | RegistryError::Status { .. }
        ),
        "a certificate nobody vouches for: {distrusted:?}"
    );

    let registries = client(file, Some(&authority));
    let refused = registries.log_in(&registry, &wrong, file, &job);
    let refused = refused.await.unwrap_err();
    assert!(
        matches!(refused, RegistryError::Login { .. }),
        "{refused:?}"
    );
    assert!(!file.exists(), "what was refused is not kept");

    let options = PushOptions::default();
    let push = async || {
        here.store
            .push(&registries, &image, &name, &options, &job)
            .await
    };
    assert!(push().await.is_err(), "nobody may push");
    registries
        .log_in(&registry, &right, file, &job)
        .await
        .unwrap();
    let saved = Credentials::saved(file).unwrap();
    assert_eq!(saved, [(registry.clone(), Some("alice".to_owned()))]);
    push().await.unwrap();
    let there = Scratch::new();
    let pull = PullOptions::default();
    let pulled = there.store.pull(&registries, &name, &pull, &job);
    assert_eq!(pulled.await.unwrap().image, image);

    assert!(registries.log_out(&registry, file).unwrap());
    assert!(!registries.log_out(&registry, file).unwrap());
    assert!(
        push().await.is_err(),
        "what was granted before is forgotten too"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_is_tried_over_tls_before_it_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    certify(dir.path());
    let Some(users) = hashed("alice", "secret") else {
        eprintln!("SKIP a_password_is_tried_over_tls: nothing here makes htpasswd lines");
        return;
    };
    fs::write(dir.path().join("users"), users).unwrap();
    let auth = format!(
        "htpasswd: {{realm: test, path: {}/users}}",
        dir.path().display()
    );
    let http = tls(dir.path());
    let Some(server) = Server::in_directory(dir, Some(&auth), &http) else {
        return;
    };
    let place = tempfile::tempdir().unwrap();
    log_in_push_pull_and_out(&server, &place.path().join("credentials.json")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_come_from_a_server_that_knows_the_password() {
    let dir = tempfile::tempdir().unwrap();
    let (key, certificate) = certify(dir.path());
    let issuer = Issuer::start(key, &certificate);
    let auth = format!(
        "token: {{realm: \"http://127.0.0.1:{}/token\", service: depot, issuer: harbour, rootcertbundle: {}/cert.pem}}",
        issuer.port,
        dir.path().display()
    );
    let http = tls(dir.path());
    let Some(server) = Server::in_directory(dir, Some(&auth), &http) else {
        return;
    };
    let place = tempfile::tempdir().unwrap();
    log_in_push_pull_and_out(&server, &place.path().join("credentials.json")).await;
    assert!(issuer.issued.load(Ordering::Relaxed) > 2);
}

/// A token server (distribution's token authentication specification): whoever is alice with her
/// password gets a token for what they ask for, nobody else one. Lives as long as the process.
struct Issuer {
    port: u16,
    issued: Arc<AtomicU32>,
}

impl Issuer {
    fn start(key: KeyPair, certificate: &[u8]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let issued = Arc::new(AtomicU32::new(0));
        let count = Arc::clone(&issued);
        let chain = base64::engine::general_purpose::STANDARD.encode(certificate);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let mut reader = BufReader::new(stream);
                let mut head = Vec::new();
                for line in reader.by_ref().lines().map_while(Result::ok) {
                    if line.is_empty() {
                        break;
                    }
                    head.push(line);
                }
                // alice:secret
                let known = head
                    .iter()
                    .any(|line| line.ends_with("Basic YWxpY2U6c2VjcmV0"));
                let (status, body) = if known {
                    count.fetch_add(1, Ordering::Relaxed);
                    let token = token(&key, &chain, head.first().map_or("", |line| line));
                    (
                        "200 OK",
                        serde_json::json!({ "token": token, "expires_in": 300 }),
                    )
                } else {
                    ("401 Unauthorized", serde_json::json!({}))
                };
                let body = body.to_string();
                let _ = write!(
                    reader.get_mut(),
                    "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
                    body.len()
                );
            }
        });
        Self { port, issued }
    }
}

/// A JSON web token that grants what the request line asks for.
fn token(key: &KeyPair, chain: &str, request: &str) -> String {
    let query = request.split(' ').nth(1).unwrap_or_default();
    let query = query.split_once('?').map_or("", |(_, query)| query);
    let access: Vec<_> = query
        .split('&')
        .filter_map(|pair| pair.strip_prefix("scope="))
        .map(|scope| {
            scope
                .replace("%3A", ":")
                .replace("%2F", "/")
                .replace("%2C", ",")
        })
        .filter_map(|scope| {
            let mut parts = scope.splitn(3, ':').map(str::to_owned);
            let (kind, name, actions) = (parts.next()?, parts.next()?, parts.next()?);
            let actions: Vec<_> = actions.split(',').collect();
            Some(serde_json::json!({ "type": kind, "name": name, "actions": actions }))
        })
        .collect();
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_secs();
    let header = serde_json::json!({ "typ": "JWT", "alg": "ES256", "x5c": [chain] });
    let claims = serde_json::json!({
        "iss": "harbour", "sub": "alice", "aud": "depot", "exp": now + 300, "nbf": now - 60,
        "iat": now - 60, "jti": "1", "access": access,
    });
    let encode = |bytes: &[u8]| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes);
    let signed = format!(
        "{}.{}",
        encode(header.to_string().as_bytes()),
        encode(claims.to_string().as_bytes())
    );
    let signature = raw_signature(&key.sign(signed.as_bytes()).unwrap());
    format!("{signed}.{}", encode(&signature))
}

/// An ECDSA signature on P-256 as JSON web tokens have it (RFC 7518, 3.4): both numbers in 32 bytes
/// each, from the DER sequence of two integers.
fn raw_signature(der: &[u8]) -> Vec<u8> {
    let mut raw = Vec::new();
    let mut rest = &der[2..];
    for _ in 0..2 {
        let (length, number) = (usize::from(rest[1]), &rest[2..]);
        let digits = &number[..length];
        let digits = &digits[digits.len().saturating_sub(32)..];
        raw.extend(std::iter::repeat_n(0, 32 - digits.len()));
        raw.extend_from_slice(digits);
        rest = &number[length..];
    }
    raw
}
