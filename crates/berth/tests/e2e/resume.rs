//! A download that goes on after its daemon has died, from a registry that counts what it serves.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    os::fd::AsFd,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use testkit::Daemon;

use crate::common::{clear_images, daemon, until_so};

const THERE: &str = "127.0.0.1:5000/box:1";
/// What is larger is served by half at first.
const LARGE: u64 = 100_000;

/// A registry of one image, in a daemon's network namespace; it ends with the test's process.
struct Registry {
    /// An OCI layout.
    layout: PathBuf,
    /// Whether large blobs are served whole.
    open: AtomicBool,
    /// What was served of large blobs: first byte, and how many.
    served: Mutex<Vec<(u64, u64)>>,
}

impl Registry {
    fn start(daemon: &Daemon, layout: PathBuf) -> Arc<Self> {
        let registry = Arc::new(Self {
            layout,
            open: AtomicBool::new(false),
            served: Mutex::default(),
        });
        let netns = File::open(daemon.netns().path()).unwrap();
        let serving = Arc::clone(&registry);
        let listener = std::thread::spawn(move || {
            move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            TcpListener::bind("127.0.0.1:5000").unwrap()
        });
        let listener = listener.join().unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let registry = Arc::clone(&serving);
                // A client that goes away is no failure.
                std::thread::spawn(move || registry.serve(stream));
            }
        });
        registry
    }

    fn serve(&self, stream: TcpStream) -> Option<()> {
        let mut input = BufReader::new(stream.try_clone().ok()?);
        let mut output = stream;
        loop {
            let (mut path, mut from) = (String::new(), 0);
            loop {
                let mut line = String::new();
                if input.read_line(&mut line).ok()? == 0 {
                    return None;
                }
                if let Some(target) = line.strip_prefix("GET ") {
                    path = target.split(' ').next()?.to_owned();
                }
                let lower = line.to_ascii_lowercase();
                if let Some(range) = lower.strip_prefix("range: bytes=") {
                    from = range.trim().trim_end_matches('-').parse().ok()?;
                }
                if line == "\r\n" {
                    break;
                }
            }
            self.answer(&path, from, &mut output)?;
        }
    }

    fn answer(&self, path: &str, from: u64, output: &mut TcpStream) -> Option<()> {
        let last = path.rsplit('/').next()?;
        let digest = match last {
            "1" => self.manifest(),
            other => other.to_owned(),
        };
        let file = self.layout.join("blobs").join(digest.replace(':', "/"));
        let Ok(bytes) = fs::read(&file) else {
            let empty = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
            return output.write_all(empty.as_bytes()).ok();
        };
        let (size, media) = (
            bytes.len() as u64,
            "application/vnd.oci.image.manifest.v1+json",
        );
        let rest = &bytes[usize::try_from(from).ok()?..];
        let status = match from {
            0 => "200 OK".to_owned(),
            _ => format!(
                "206 Partial Content\r\nContent-Range: bytes {from}-{}/{size}",
                size - 1
            ),
        };
        let length = rest.len();
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Type: {media}\r\nContent-Length: {length}\r\n\r\n"
        );
        output.write_all(head.as_bytes()).ok()?;
        if size <= LARGE {
            return output.write_all(rest).ok();
        }
        let open = self.open.load(Ordering::SeqCst);
        let part = if open { rest } else { &rest[..length / 2] };
        let count = part.len() as u64;
        self.served.lock().unwrap().push((from, count));
        output.write_all(part).ok()?;
        if !open {
            // The rest never comes; until the client goes.
            let _ = output.read(&mut [0]);
            return None;
        }
        Some(())
    }

    /// The digest of the one manifest.
    fn manifest(&self) -> String {
        let index = fs::read(self.layout.join("index.json")).unwrap();
        let index: serde_json::Value = serde_json::from_slice(&index).unwrap();
        index["manifests"][0]["digest"].as_str().unwrap().to_owned()
    }
}

/// The image `busybox` as an OCI layout; the size of its layer.
fn layout(daemon: &Daemon, place: &Path) -> u64 {
    let archive = place.join("image.tar");
    let file = archive.to_str().unwrap();
    let words = ["image", "export", "busybox", "--format", "oci", "-f", file];
    daemon.berth(&words).unwrap();
    let mut unpack = Command::new("tar");
    unpack.arg("-xf").arg(&archive).arg("-C").arg(place);
    assert!(unpack.status().unwrap().success());
    let blobs = fs::read_dir(place.join("blobs/sha256")).unwrap();
    let sizes = blobs.map(|blob| blob.unwrap().metadata().unwrap().len());
    sizes.max().unwrap()
}

/// How much of a layer the daemon has on its disk.
fn received(daemon: &Daemon) -> u64 {
    let ingest = daemon.root().join("images/ingest");
    let leases = fs::read_dir(ingest).into_iter().flatten().flatten();
    let files = leases.flat_map(|lease| fs::read_dir(lease.path()).into_iter().flatten().flatten());
    let parts = files.filter(|file| file.file_name().to_string_lossy().starts_with("part-"));
    parts
        .filter_map(|part| part.metadata().ok())
        .map(|meta| meta.len())
        .sum()
}

#[test]
fn a_download_goes_on_after_the_daemon_was_away() {
    let Some(mut daemon) = daemon("a_download_goes_on_after_the_daemon_was_away") else {
        return;
    };
    let place = tempfile::tempdir().unwrap();
    let size = layout(&daemon, place.path());
    assert!(size > LARGE, "the layer is too small for this test: {size}");
    let registry = Registry::start(&daemon, place.path().to_owned());
    for killed in [true, false] {
        clear_images(&daemon);
        registry.open.store(false, Ordering::SeqCst);
        registry.served.lock().unwrap().clear();
        let mut pull = daemon.command(&["image", "pull", THERE]);
        let mut pull = pull
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        until_so("half of the layer is here", || {
            received(&daemon) == size / 2
        });
        match killed {
            true => daemon.kill(),
            false => daemon.stop(),
        }
        pull.wait().unwrap();
        registry.open.store(true, Ordering::SeqCst);
        daemon.restart().unwrap();
        // It goes on by itself; whoever asks for the image waits for that.
        daemon.berth(&["image", "pull", THERE]).unwrap();
        let half = size / 2;
        let served = registry.served.lock().unwrap().clone();
        assert_eq!(served, [(0, half), (half, size - half)], "killed: {killed}");
        assert_eq!(
            daemon
                .berth(&["run", "--rm", THERE, "echo", "whole"])
                .unwrap(),
            "whole"
        );
        let kept = fs::read_dir(daemon.root().join("images/partial")).unwrap();
        assert_eq!(kept.count(), 0);
    }
}
