//! Pull and push against Debian's docker-registry, with podman and skopeo as peers.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "a test fails by panicking"
)]

mod common;

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use common::{
    Scratch, listing, needs, run,
    server::{Server, hashed},
};
use image::{
    Credential, Credentials, Event, InUse, Job, LayerError, LayerState, Limits, Mirror, PullError,
    PullOptions, PushOptions, Reference, Registries, RegistryConfig, RegistryError, Store,
};

fn registries() -> Registries {
    Registries::new(RegistryConfig::default()).unwrap()
}

/// A job that keeps its events.
fn recording() -> (Job, Arc<Mutex<Vec<Event>>>) {
    let events = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&events);
    (
        Job::new(
            move |event| kept.lock().unwrap().push(event),
            Default::default(),
        ),
        events,
    )
}

/// An image of three layers: busybox and two commits.
fn three_layers(scratch: &Scratch) -> Option<image::Digest> {
    three_layers_of(scratch, 3 << 20)
}

fn three_layers_of(scratch: &Scratch, bytes: usize) -> Option<image::Digest> {
    let mut image = scratch.busybox()?;
    for n in 0..2 {
        let upper = scratch.path(&format!("upper{n}"));
        fs::create_dir(&upper).unwrap();
        // Not compressible, so that the layer takes more than one piece of network.
        let mut noise = vec![0u8; bytes];
        fs::File::open("/dev/urandom")
            .unwrap()
            .read_exact(&mut noise)
            .unwrap();
        fs::write(upper.join(format!("file{n}")), &noise).unwrap();
        let options = image::CommitOptions::default();
        image = scratch
            .store
            .commit(&upper, &image, &options, &Job::silent())
            .unwrap();
    }
    Some(image)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_pushed_comes_back_and_peers_agree() {
    let Some(server) = Server::start(None) else {
        return;
    };
    let (here, there) = (Scratch::new(), Scratch::new());
    let Some(image) = three_layers_of(&here, 9 << 20) else {
        return;
    };
    let registries = registries();
    let (first, second) = (server.name("team/app:1"), server.name("other/app:2"));
    let push = |name: Reference, job: Job| {
        let (store, registries) = (here.store.clone(), registries.clone());
        async move {
            store
                .push(&registries, &image, &name, &PushOptions::default(), &job)
                .await
                .unwrap()
        }
    };
    let pushed = push(first.clone(), Job::silent()).await;
    assert_eq!(pushed.digest, image);
    // Longer than one piece of an upload.
    assert!(pushed.sent_bytes > 2 * (9 << 20));
    assert_eq!(
        push(first.clone(), Job::silent()).await.sent_bytes,
        0,
        "the registry has it all"
    );
    here.store.tag(&image, &first).unwrap();
    let (job, events) = recording();
    assert_eq!(
        push(second.clone(), job).await.sent_bytes,
        0,
        "mounted from the first repository"
    );
    let mounted = |event: &&Event| {
        matches!(
            event,
            Event::Layer {
                state: LayerState::Mounted,
                ..
            }
        )
    };
    assert_eq!(events.lock().unwrap().iter().filter(mounted).count(), 3);

    let (job, events) = recording();
    let pulled = there
        .store
        .pull(&registries, &first, &PullOptions::default(), &job)
        .await
        .unwrap();
    assert_eq!((pulled.image, pulled.up_to_date), (image, false));
    assert_eq!(pulled.fetched_bytes, pushed.sent_bytes);
    let done = |event: &&Event| matches!(event, Event::Layer { state: LayerState::Done, done_bytes, total_bytes, .. } if done_bytes == total_bytes);
    assert_eq!(events.lock().unwrap().iter().filter(done).count(), 3);
    let layers = |store: &Store| store.layers(&image).unwrap();
    for (ours, theirs) in layers(&here.store).iter().zip(layers(&there.store)) {
        assert_eq!(listing(ours), listing(&theirs));
    }
    let again = there
        .store
        .pull(
            &registries,
            &second,
            &PullOptions::default(),
            &Job::silent(),
        )
        .await
        .unwrap();
    assert!(again.up_to_date && again.fetched_bytes == 0);
    let by_digest = first.with_digest(image);
    assert!(
        there
            .store
            .pull(
                &registries,
                &by_digest,
                &PullOptions::default(),
                &Job::silent()
            )
            .await
            .unwrap()
            .up_to_date
    );
    assert_eq!(there.store.resolve(&by_digest.to_string()).unwrap(), image);
    assert!(there.leftovers().is_empty());

    if !needs("skopeo", &["--version"]) {
        return;
    }
    // skopeo inspects our push, copies it in the other format, and we pull what skopeo pushed.
    let source = format!("docker://{first}");
    let inspect = run("skopeo", &["inspect", "--tls-verify=false", &source]);
    let inspect: serde_json::Value = serde_json::from_slice(&inspect.stdout).unwrap();
    assert_eq!(inspect["Digest"], image.to_string());
    let schema2 = server.name("skopeo/app:s2");
    let copy = run(
        "skopeo",
        &[
            "copy",
            "--insecure-policy",
            "--src-tls-verify=false",
            "--dest-tls-verify=false",
            "--format=v2s2",
            &source,
            &format!("docker://{schema2}"),
        ],
    );
    assert!(
        copy.status.success(),
        "{}",
        String::from_utf8_lossy(&copy.stderr)
    );
    let docker = there
        .store
        .pull(
            &registries,
            &schema2,
            &PullOptions::default(),
            &Job::silent(),
        )
        .await
        .unwrap();
    assert_ne!(
        docker.image, image,
        "another manifest format is another image"
    );
    assert_eq!(docker.fetched_bytes, 0, "of the same layers");
    assert_eq!(
        layers(&there.store),
        there.store.layers(&docker.image).unwrap()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_is_asked_for_and_used_from_the_files_of_other_tools() {
    // alice:secret, made with htpasswd -nbB.
    let users = "alice:$2y$05$0hBPRGPWnMX1AHvhJ4XlZeaTTYYhRuXGxmBjcWDZZvwJSNHnpLzqi\n";
    let users = hashed("alice", "secret").unwrap_or_else(|| users.to_owned());
    let Some(server) = Server::start(Some(&users)) else {
        return;
    };
    let here = Scratch::new();
    let Some(image) = here.busybox() else { return };
    let name = server.name("private/app:1");
    let push = async |credentials: Credentials| {
        let registries = Registries::new(RegistryConfig {
            credentials,
            ..RegistryConfig::default()
        })
        .unwrap();
        here.store
            .push(
                &registries,
                &image,
                &name,
                &PushOptions::default(),
                &Job::silent(),
            )
            .await
    };
    let denied = push(Credentials::none()).await.unwrap_err().to_string();
    assert!(
        denied.contains("berth login") && denied.contains("private/app"),
        "{denied}"
    );
    let wrong = Credential::Basic {
        username: "alice".into(),
        password: "guess".into(),
    };
    let registry = format!("127.0.0.1:{}", server.port);
    assert!(
        push(Credentials::none().with(&registry, wrong))
            .await
            .is_err()
    );
    let file = here.path("config.json");
    fs::write(
        &file,
        format!(r#"{{"auths":{{"{registry}":{{"auth":"YWxpY2U6c2VjcmV0"}}}}}}"#),
    )
    .unwrap();
    push(Credentials::none().with_file(&file)).await.unwrap();
}

/// What a [`Proxy`] does to the bytes of blob answers.
#[derive(Clone, Copy, PartialEq)]
enum Fault {
    /// Cuts each connection after so many bytes of body.
    Cut(u64),
    /// Cuts, and hides that ranges are supported.
    CutWithoutRanges(u64),
    /// Cuts at once, always.
    Dead,
    /// Changes one byte at an offset of the body.
    Flip(u64),
    /// Answers 503 so many times first.
    Busy(u64),
}

/// A proxy in front of the registry that damages blob downloads.
struct Proxy {
    port: u16,
    blob_requests: Arc<AtomicU64>,
}

impl Proxy {
    fn start(upstream: u16, fault: Fault) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let blob_requests = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&blob_requests);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let count = Arc::clone(&count);
                std::thread::spawn(move || serve(client, upstream, fault, &count));
            }
        });
        Self {
            port,
            blob_requests,
        }
    }

    fn name(&self, rest: &str) -> Reference {
        format!("127.0.0.1:{}/{rest}", self.port).parse().unwrap()
    }
}

/// One request per connection: headers through, `Connection: close` both ways.
fn serve(client: TcpStream, upstream: u16, fault: Fault, count: &AtomicU64) -> Option<()> {
    let mut input = BufReader::new(client.try_clone().ok()?);
    let mut request = Vec::new();
    let mut first = String::new();
    input.read_line(&mut first).ok()?;
    loop {
        let mut line = String::new();
        input.read_line(&mut line).ok()?;
        if line.trim().is_empty() {
            break;
        }
        let lower = line.to_ascii_lowercase();
        let hidden = matches!(fault, Fault::CutWithoutRanges(_)) && lower.starts_with("range:");
        if !lower.starts_with("connection:") && !hidden {
            request.push(line);
        }
    }
    // Configurations are small blobs too; the large ones are the layers.
    let blob = first.starts_with("GET") && first.contains("/blobs/");
    let mut client = client;
    let number = if blob {
        count.fetch_add(1, Ordering::SeqCst)
    } else {
        0
    };
    if let (true, Fault::Busy(times)) = (blob, fault)
        && number < times
    {
        return client
            .write_all(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            .ok();
    }
    let mut server = TcpStream::connect(("127.0.0.1", upstream)).ok()?;
    write!(
        server,
        "{first}{}Connection: close\r\n\r\n",
        request.concat()
    )
    .ok()?;
    let mut answer = BufReader::new(server);
    let mut length = 0;
    loop {
        let mut line = String::new();
        answer.read_line(&mut line).ok()?;
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap_or(0);
        }
        client.write_all(line.as_bytes()).ok()?;
        if line.trim().is_empty() {
            break;
        }
    }
    let mut body = Vec::new();
    answer.read_to_end(&mut body).ok()?;
    if blob && length > 100_000 {
        match fault {
            Fault::Cut(at) | Fault::CutWithoutRanges(at) => {
                // Each attempt gets further when the client starts over.
                let at = if matches!(fault, Fault::CutWithoutRanges(_)) {
                    at * (number + 1)
                } else {
                    at
                };
                body.truncate(usize::try_from(at).unwrap());
            }
            Fault::Dead => body.clear(),
            Fault::Flip(at) => body[usize::try_from(at).unwrap()] ^= 1,
            Fault::Busy(_) => {}
        }
    }
    client.write_all(&body).ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_connections_are_resumed_and_damage_is_refused() {
    let Some(server) = Server::start(None) else {
        return;
    };
    let here = Scratch::new();
    let Some(image) = three_layers(&here) else {
        return;
    };
    let registries = registries();
    let name = server.name("app:1");
    here.store
        .push(
            &registries,
            &image,
            &name,
            &PushOptions::default(),
            &Job::silent(),
        )
        .await
        .unwrap();

    for fault in [
        Fault::Cut(700_000),
        Fault::CutWithoutRanges(900_000),
        Fault::Busy(3),
    ] {
        let proxy = Proxy::start(server.port, fault);
        let there = Scratch::new();
        let (job, events) = recording();
        let pulled = there
            .store
            .pull(
                &registries,
                &proxy.name("app:1"),
                &PullOptions::default(),
                &job,
            )
            .await
            .unwrap();
        assert_eq!(pulled.image, image);
        assert!(
            proxy.blob_requests.load(Ordering::SeqCst) > 4,
            "it was interrupted"
        );
        let told = |event: &Event| matches!(event, Event::Note(note) if note.contains("resuming") || note.contains("again"));
        assert!(events.lock().unwrap().iter().any(told));
    }

    let there = Scratch::new();
    let proxy = Proxy::start(server.port, Fault::Dead);
    let error = there
        .store
        .pull(
            &registries,
            &proxy.name("app:1"),
            &PullOptions::default(),
            &Job::silent(),
        )
        .await
        .unwrap_err();
    assert!(
        matches!(error, PullError::Registry(RegistryError::Transfer { .. })),
        "{error}"
    );
    let proxy = Proxy::start(server.port, Fault::Flip(50_000));
    let error = there
        .store
        .pull(
            &registries,
            &proxy.name("app:1"),
            &PullOptions::default(),
            &Job::silent(),
        )
        .await
        .unwrap_err();
    assert!(
        matches!(
            error,
            PullError::Layer {
                source: LayerError::Digest {
                    what: "compressed",
                    ..
                },
                ..
            }
        ),
        "the digest is blamed, not what the damage did to the compression: {error:?}"
    );
    assert!(there.store.list().unwrap().is_empty() && there.leftovers().is_empty());

    // A mirror that damages everything is passed over.
    let bad = Proxy::start(server.port, Fault::Flip(50_000));
    let registry = format!("127.0.0.1:{}", server.port);
    let mirrors = ["127.0.0.1:1".to_owned(), format!("127.0.0.1:{}", bad.port)];
    let mirrors = mirrors
        .map(|location| Mirror {
            registry: registry.clone(),
            location,
        })
        .to_vec();
    let mirrored = Registries::new(RegistryConfig {
        mirrors,
        ..RegistryConfig::default()
    })
    .unwrap();
    let pulled = there
        .store
        .pull(&mirrored, &name, &PullOptions::default(), &Job::silent())
        .await
        .unwrap();
    assert_eq!(pulled.image, image);
    assert!(bad.blob_requests.load(Ordering::SeqCst) > 0);
    let missing = there
        .store
        .pull(
            &registries,
            &server.name("app:none"),
            &PullOptions::default(),
            &Job::silent(),
        )
        .await;
    assert!(matches!(
        missing,
        Err(PullError::Registry(RegistryError::NotFound { .. }))
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn cancelling_full_disks_and_limits_leave_nothing() {
    let Some(server) = Server::start(None) else {
        return;
    };
    let here = Scratch::new();
    let Some(image) = three_layers(&here) else {
        return;
    };
    let registries = registries();
    let name = server.name("app:1");
    here.store
        .push(
            &registries,
            &image,
            &name,
            &PushOptions::default(),
            &Job::silent(),
        )
        .await
        .unwrap();

    let there = Scratch::new();
    let cancel = tokio_util::sync::CancellationToken::new();
    let trigger = cancel.clone();
    let job = Job::new(
        move |event| {
            if matches!(
                event,
                Event::Layer {
                    state: LayerState::Pulling,
                    done_bytes: 1..,
                    ..
                }
            ) {
                trigger.cancel();
            }
        },
        cancel,
    );
    let error = there
        .store
        .pull(&registries, &name, &PullOptions::default(), &job)
        .await
        .unwrap_err();
    assert!(matches!(error, PullError::Cancelled(_)), "{error:?}");
    assert!(there.store.list().unwrap().is_empty() && there.leftovers().is_empty());

    let limits = Limits {
        layer_bytes: 1 << 20,
        ..Limits::default()
    };
    let small = Store::open_with(there.path("limited"), limits).unwrap();
    let error = small
        .pull(&registries, &name, &PullOptions::default(), &Job::silent())
        .await
        .unwrap_err();
    assert!(
        format!("{error:?}").contains("uncompressed bytes of the layer"),
        "{error:?}"
    );

    let disk = Tmpfs::mount(&there.path("disk"), "4m");
    let Some(disk) = disk else { return };
    let full = Store::open(disk.0.join("store")).unwrap();
    let error = full
        .pull(&registries, &name, &PullOptions::default(), &Job::silent())
        .await
        .unwrap_err();
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    assert!(
        text.contains("No space left") && text.contains("berth image gc"),
        "{text}"
    );
    assert!(full.list().unwrap().is_empty());
    assert_eq!(fs::read_dir(full.root().join("ingest")).unwrap().count(), 0);
    full.gc(&InUse::default()).unwrap();
}

/// A small file system, unmounted with the test.
struct Tmpfs(std::path::PathBuf);

impl Tmpfs {
    fn mount(path: &Path, size: &str) -> Option<Self> {
        fs::create_dir(path).unwrap();
        let output = run(
            "mount",
            &[
                "-t",
                "tmpfs",
                "-o",
                &format!("size={size}"),
                "tmpfs",
                path.to_str().unwrap(),
            ],
        );
        if !output.status.success() {
            eprintln!(
                "SKIP full disk: {}",
                String::from_utf8_lossy(&output.stderr)
            );
            return None;
        }
        Some(Self(path.to_owned()))
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = run("umount", &["-l", self.0.to_str().unwrap()]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn collection_during_pulls_takes_nothing_of_them() {
    let Some(server) = Server::start(None) else {
        return;
    };
    let here = Scratch::new();
    let Some(image) = three_layers(&here) else {
        return;
    };
    let registries = registries();
    let name = server.name("app:1");
    let push = PushOptions::default();
    (here
        .store
        .push(&registries, &image, &name, &push, &Job::silent())
        .await)
        .unwrap();
    let there = Scratch::new();
    let stop = Arc::new(AtomicU64::new(0));
    let (store, stopped) = (Store::open(there.store.root()).unwrap(), Arc::clone(&stop));
    let collector = std::thread::spawn(move || {
        let mut rounds = 0;
        while stopped.load(Ordering::SeqCst) == 0 {
            store.gc(&InUse::default()).unwrap();
            rounds += 1;
        }
        rounds
    });
    let options = PullOptions::default();
    for _ in 0..2 {
        // Two at once, of which one waits for the other's layers.
        let silent = Job::silent();
        let pull = || there.store.pull(&registries, &name, &options, &silent);
        let (first, second) = tokio::join!(pull(), pull());
        assert_eq!(
            (first.unwrap().image, second.unwrap().image),
            (image, image)
        );
        for (ours, theirs) in
            (there.store.layers(&image).unwrap().iter()).zip(here.store.layers(&image).unwrap())
        {
            assert_eq!(listing(ours), listing(&theirs));
        }
        there.store.untag(&name.to_string()).unwrap();
    }
    stop.store(1, Ordering::SeqCst);
    assert!(collector.join().unwrap() > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn podman_pulls_what_we_push_and_we_pull_what_podman_pushes() {
    let Some(server) = Server::start(None) else {
        return;
    };
    if !needs("podman", &["--version"]) {
        return;
    }
    let here = Scratch::new();
    let Some(image) = here.busybox() else { return };
    let registries = registries();
    let (ours, theirs) = (server.name("ours:1"), server.name("theirs:1"));
    let push = PushOptions::default();
    (here
        .store
        .push(&registries, &image, &ours, &push, &Job::silent())
        .await)
        .unwrap();
    let podman = |args: &[&str]| {
        let mut command = Command::new("podman");
        command
            .arg("--root")
            .arg(here.path("podman"))
            .arg("--runroot")
            .arg(here.path("run"));
        command
            .args(["--storage-driver", "vfs"])
            .args(args)
            .output()
            .unwrap()
    };
    let (ours_name, theirs_name) = (ours.to_string(), theirs.to_string());
    for args in [
        &["pull", "-q", "--tls-verify=false", &ours_name][..],
        &[
            "push",
            "-q",
            "--tls-verify=false",
            "--format=v2s2",
            &ours_name,
            &theirs_name,
        ],
    ] {
        let output = podman(args);
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    let there = Scratch::new();
    let options = PullOptions::default();
    let back = there
        .store
        .pull(&registries, &theirs, &options, &Job::silent())
        .await
        .unwrap();
    let (a, b) = (
        here.store.layers(&image).unwrap(),
        there.store.layers(&back.image).unwrap(),
    );
    assert_eq!(listing(&a[0]), listing(&b[0]));
}

/// Not a test of its own: the child of the one below.
#[tokio::test(flavor = "multi_thread")]
async fn child_that_pulls_until_killed() {
    let (Ok(root), Ok(name)) = (
        std::env::var("BERTH_TEST_PULL_ROOT"),
        std::env::var("BERTH_TEST_PULL_NAME"),
    ) else {
        return;
    };
    let store = Store::open(root).unwrap();
    let name: Reference = name.parse().unwrap();
    store
        .pull(
            &registries(),
            &name,
            &PullOptions::default(),
            &Job::silent(),
        )
        .await
        .unwrap();
    println!("PULLED");
}

#[tokio::test(flavor = "multi_thread")]
async fn killing_a_pull_at_any_point_leaves_a_store_that_opens_clean() {
    let Some(server) = Server::start(None) else {
        return;
    };
    let here = Scratch::new();
    let Some(image) = three_layers(&here) else {
        return;
    };
    let name = server.name("app:1");
    here.store
        .push(
            &registries(),
            &image,
            &name,
            &PushOptions::default(),
            &Job::silent(),
        )
        .await
        .unwrap();
    let there = Scratch::new();
    let root = there.store.root().to_owned();
    let mut interrupted = 0;
    for step in 0..12 {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "child_that_pulls_until_killed", "--nocapture"]);
        command
            .env("BERTH_TEST_PULL_ROOT", &root)
            .env("BERTH_TEST_PULL_NAME", name.to_string());
        let mut child = command
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(std::time::Duration::from_millis(20 * step));
        child.kill().unwrap();
        interrupted += u32::from(!child.wait().unwrap().success());
        // While it lies there, and after recovery: what is listed is whole.
        let store = Store::open(&root).unwrap();
        assert!(there.leftovers().is_empty());
        for image in store.list().unwrap() {
            assert!(
                store
                    .layers(&image.id)
                    .unwrap()
                    .iter()
                    .all(|layer| layer.is_dir())
            );
        }
        for layer in fs::read_dir(root.join("layers/sha256")).unwrap() {
            assert!(
                layer.unwrap().path().join("layer.json").exists(),
                "a visible layer is complete"
            );
        }
        if step % 3 == 0 {
            store.gc(&InUse::default()).unwrap();
        }
    }
    assert!(interrupted > 0, "at least the first was killed in time");
    there
        .store
        .pull(
            &registries(),
            &name,
            &PullOptions::default(),
            &Job::silent(),
        )
        .await
        .unwrap();
    for (ours, theirs) in there
        .store
        .layers(&image)
        .unwrap()
        .iter()
        .zip(here.store.layers(&image).unwrap())
    {
        assert_eq!(listing(ours), listing(&theirs));
    }
    there.store.untag(&name.to_string()).unwrap();
    assert!(there.store.gc(&InUse::default()).unwrap().layers.len() == 3);
    for dir in ["blobs/sha256", "layers/sha256", "images", "refs", "ingest"] {
        assert_eq!(
            fs::read_dir(root.join(dir)).unwrap().count(),
            0,
            "{dir} is empty"
        );
    }
}
