//! What the tests share: a daemon with images, and waiting.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use testkit::Daemon;

/// The binary under test.
pub const BERTH: &str = env!("CARGO_BIN_EXE_berth");

/// Most time anything is waited for. Never measured, only to end a test that would hang.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A daemon with the image `busybox`; `None`, said loudly, where the host cannot run one.
pub fn daemon(test: &str) -> Option<Daemon> {
    let mut daemon = idle(test, &[])?;
    daemon.restart().unwrap();
    Some(daemon)
}

/// As [`daemon`], with options, and not started yet.
pub fn idle(test: &str, options: &[&str]) -> Option<Daemon> {
    let daemon = bare(test, options)?;
    lend_busybox(&daemon);
    Some(daemon)
}

/// A daemon not started yet, without images.
pub fn bare(test: &str, options: &[&str]) -> Option<Daemon> {
    if testkit::lacks(test, &["ip", "nft", "nsenter", "busybox"]) {
        return None;
    }
    Some(Daemon::new(Path::new(BERTH), options).unwrap())
}

/// Gives a daemon that never ran the image `busybox`.
pub fn lend_busybox(daemon: &Daemon) {
    let images = testkit::images(Path::new(BERTH), &cache(), "busybox", |daemon| {
        daemon.berth(&["image", "build", "--recipe", "busybox"])?;
        Ok(())
    });
    daemon.lend_images(&images.unwrap()).unwrap();
}

/// Where images are kept between runs.
pub fn cache() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("e2e-images-1")
}

/// Waits until `look` finds something.
pub fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Waits until something is so.
pub fn until_so(what: &str, mut look: impl FnMut() -> bool) {
    until(what, || look().then_some(()));
}

/// The status of an instance.
pub fn status(daemon: &Daemon, name: &str) -> String {
    let shown = daemon.inspect(name).unwrap();
    shown["status"].as_str().unwrap_or_default().to_owned()
}

/// Takes all images away, once what `--rm` removes is gone.
pub fn clear_images(daemon: &Daemon) {
    let names = daemon.berth(&["image", "list", "-o", "name"]).unwrap();
    for name in names.lines() {
        until_so("--rm removes it and lets go of its image", || {
            daemon.berth(&["image", "rm", name]).is_ok()
        });
    }
    daemon.berth(&["image", "gc"]).unwrap();
}
