//! Project quotas on file systems made for the purpose, mounted where only this test sees them.
#![allow(clippy::print_stderr, clippy::unwrap_used)]

use std::path::Path;
use std::process::Command;

use rustix::thread::UnshareFlags;
use volume::{DirectoryPool, Enforcement, Kind, Pool, VolumeId, VolumeSpec, conformance};

fn sh(script: &str) -> Result<(), String> {
    let output = Command::new("sh")
        .args(["-ec", script])
        .output()
        .expect("run sh");
    let error = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if output.status.success() {
        Ok(())
    } else {
        Err(error)
    }
}

/// Runs `work` with a new file system mounted, in a mount namespace of its own thread: it ends,
/// and gives the loop device back, with the thread, however that ends.
fn mounted(test: &'static str, make: &str, options: &str, work: impl FnOnce(&Path) + Send) {
    let dir = tempfile::tempdir().unwrap();
    let (image, target) = (dir.path().join("image"), dir.path().join("mnt"));
    std::fs::create_dir(&target).unwrap();
    let prepare = format!(
        "truncate -s 400M {0}; {make} {0}; mount --make-rprivate /; mount -o {options} {0} {1}",
        image.display(),
        target.display()
    );
    std::thread::scope(|scope| {
        let body = || {
            #[allow(deprecated)]
            rustix::thread::unshare(UnshareFlags::NEWNS | UnshareFlags::FS).unwrap();
            match sh(&prepare) {
                Ok(()) => work(&target),
                Err(reason) => eprintln!("SKIP {test}: {reason}"),
            }
        };
        scope
            .spawn(body)
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}

fn limits_are_enforced(root: &Path) {
    let (pool, scratch) = (root.join("pool"), root.join("scratch"));
    std::fs::create_dir(&scratch).unwrap();
    conformance::run(|| DirectoryPool::open(&pool).unwrap(), &scratch);
    let pool = DirectoryPool::open(&pool).unwrap();
    assert_eq!(pool.capabilities().quota, Enforcement::Enforced);
    let id = |name| VolumeId::new(Kind::Named, name).unwrap();
    let spec = VolumeSpec {
        size_bytes: Some(4 << 20),
        uid: 0,
        gid: 0,
        mode: 0o755,
    };
    let (a, b) = (
        pool.ensure(&id("a"), &spec).unwrap(),
        pool.ensure(&id("b"), &spec).unwrap(),
    );
    std::fs::create_dir(a.path.join("sub")).unwrap();
    assert!(conformance::write_as_guest(&a.path.join("sub/big"), 5 << 20).is_err());
    conformance::write_as_guest(&b.path.join("big"), 3 << 20).unwrap();
    pool.resize(&id("a"), Some(16 << 20)).unwrap();
    conformance::write_as_guest(&a.path.join("sub/big"), 5 << 20).unwrap();
    assert!(pool.usage(&id("a")).unwrap().bytes >= 5 << 20);
}

#[test]
fn ext4_enforces_limits() {
    let make = "mkfs.ext4 -q -O project,quota -E quotatype=prjquota";
    mounted(
        "ext4_enforces_limits",
        make,
        "loop,prjquota",
        limits_are_enforced,
    );
}

#[test]
fn xfs_enforces_limits() {
    mounted(
        "xfs_enforces_limits",
        "mkfs.xfs -q",
        "loop,prjquota",
        limits_are_enforced,
    );
}

#[test]
fn a_file_system_without_project_quotas_says_so() {
    mounted(
        "a_file_system_without_project_quotas_says_so",
        "mkfs.ext4 -q",
        "loop",
        |root| {
            let pool = DirectoryPool::open(root).unwrap();
            let spec = VolumeSpec {
                size_bytes: Some(4 << 20),
                uid: 0,
                gid: 0,
                mode: 0o755,
            };
            let made = pool
                .ensure(&VolumeId::new(Kind::Root, "x").unwrap(), &spec)
                .unwrap();
            let Enforcement::Unsupported { reason } = made.quota else {
                panic!("{:?}", made.quota)
            };
            assert!(
                reason.contains("prjquota") || reason.contains("kernel"),
                "{reason}"
            );
            assert_eq!(made.size_bytes, spec.size_bytes, "recorded all the same");
        },
    );
}
