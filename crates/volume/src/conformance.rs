//! What every pool must do, as checks that panic with what is wrong.
//!
//! Called by each implementation's tests with a way to open the same pool again: opening twice in
//! a row stands for a restart of the daemon. Never called outside of tests.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

use crate::{Enforcement, Kind, Pool, Populated, VolumeError, VolumeId, VolumeInfo, VolumeSpec};

const SPEC: VolumeSpec = VolumeSpec {
    size_bytes: Some(8 << 20),
    uid: 1234,
    gid: 5678,
    mode: 0o750,
};

fn id(name: &str) -> VolumeId {
    VolumeId::new(Kind::Named, name).expect("the suite's names are valid")
}

/// Runs the whole suite. `open` opens the same pool each time, empty at first; `scratch` is an
/// empty directory for the suite's own files.
///
/// # Panics
/// If the pool breaks a promise.
pub fn run<P: Pool>(open: impl Fn() -> P, scratch: &Path) {
    life_of_a_volume(&open);
    limits_hold_or_say_that_they_do_not(&open());
    populating(&open(), scratch);
    concurrent_changes(&open());
    let pool = open();
    for volume in pool.list().expect("list") {
        assert!(
            pool.remove(&volume.id).expect("remove"),
            "{} was listed",
            volume.id
        );
    }
    assert!(
        pool.list().expect("list").is_empty(),
        "an emptied pool is empty"
    );
}

fn life_of_a_volume<P: Pool>(open: &impl Fn() -> P) {
    let pool = open();
    let (data, root) = (
        id("data"),
        VolumeId::new(Kind::Root, "data").expect("valid"),
    );
    assert_eq!(pool.info(&data).expect("info"), None);
    let made = pool.ensure(&data, &SPEC).expect("ensure");
    let meta = fs::metadata(&made.path).expect("the volume's directory exists");
    assert_eq!(
        (meta.uid(), meta.gid()),
        (SPEC.uid, SPEC.gid),
        "owner at birth"
    );
    assert_eq!(
        meta.permissions().mode() & 0o7777,
        SPEC.mode,
        "mode at birth"
    );
    assert_eq!(made.size_bytes, SPEC.size_bytes);
    let other = pool
        .ensure(&root, &SPEC)
        .expect("kinds have names of their own");
    assert_ne!(made.path, other.path);
    fs::write(made.path.join("file"), vec![7; 100_000]).expect("write into the volume");
    let again = pool.ensure(&data, &SPEC).expect("ensure again");
    assert_eq!(again, made, "ensuring again changes nothing");
    let used = pool.usage(&data).expect("usage").bytes;
    assert!(
        (100_000..1_000_000).contains(&used),
        "usage of one 100,000 byte file: {used}"
    );
    drop(pool);
    let pool = open();
    assert_eq!(
        pool.info(&data).expect("info"),
        Some(made.clone()),
        "after a restart"
    );
    assert_eq!(
        fs::read(made.path.join("file")).expect("read back").len(),
        100_000
    );
    let listed: Vec<_> = pool
        .list()
        .expect("list")
        .into_iter()
        .map(|v| v.id)
        .collect();
    assert_eq!(listed, [data.clone(), root.clone()]);
    sizes_of_a_volume(&pool, &made);
    assert!(pool.remove(&data).expect("remove"));
    assert!(!pool.remove(&data).expect("removing again is no error"));
    for missing in [pool.usage(&data).err(), pool.resize(&data, None).err()] {
        assert!(
            matches!(missing, Some(VolumeError::Missing { .. })),
            "{missing:?}"
        );
    }
    drop(pool);
    assert_eq!(open().list().expect("list").len(), 1, "removal is durable");
}

/// Changes the limit of a volume that holds 100,000 bytes.
fn sizes_of_a_volume(pool: &impl Pool, made: &VolumeInfo) {
    let refused = pool.resize(&made.id, Some(50_000));
    assert!(
        matches!(refused, Err(VolumeError::TooSmall { .. })),
        "{refused:?}"
    );
    assert_eq!(
        pool.info(&made.id).expect("info"),
        Some(made.clone()),
        "a refused resize changes nothing"
    );
    let larger = pool.ensure(
        &made.id,
        &VolumeSpec {
            size_bytes: Some(16 << 20),
            ..SPEC
        },
    );
    assert_eq!(
        larger.expect("ensure with another size").size_bytes,
        Some(16 << 20)
    );
    assert_eq!(
        pool.resize(&made.id, None).expect("no limit").quota,
        Enforcement::Unlimited
    );
}

fn limits_hold_or_say_that_they_do_not(pool: &impl Pool) {
    let limited = pool.ensure(&id("limited"), &SPEC).expect("ensure");
    let written = write_as_guest(&limited.path.join("big"), 12 << 20);
    match (&limited.quota, pool.capabilities().quota) {
        (Enforcement::Enforced, Enforcement::Enforced) => {
            assert!(written.is_err(), "12 MiB went into a volume of 8 MiB");
        }
        (Enforcement::Unsupported { reason }, Enforcement::Unsupported { .. }) => {
            assert!(!reason.is_empty(), "the reason is for users");
        }
        other => panic!("the volume and its pool disagree on limits: {other:?}"),
    }
    let space = pool.space().expect("space");
    assert!(space.free_bytes <= space.total_bytes && space.total_bytes > 0);
}

/// Writes a file as a guest would: without the host's `CAP_SYS_RESOURCE`, whose holders some file
/// systems exempt from quotas.
///
/// # Panics
/// If the capability cannot be given up.
pub fn write_as_guest(path: &Path, bytes: usize) -> Result<(), std::io::Error> {
    let body = || {
        let mut sets = capabilities(None).expect("read the thread's capabilities");
        sets.effective.remove(CapabilitySet::SYS_RESOURCE);
        set_capabilities(None, sets).expect("give up a capability");
        fs::write(path, vec![1; bytes])
    };
    std::thread::scope(|scope| scope.spawn(body).join().expect("writing does not panic"))
}

fn populating(pool: &impl Pool, scratch: &Path) {
    let image = scratch.join("image");
    let outside = scratch.join("outside");
    fs::create_dir_all(image.join("srv/data/sub")).expect("make an image");
    fs::create_dir_all(&outside).expect("make a directory outside of it");
    fs::write(outside.join("secret"), "secret").expect("write");
    fs::write(image.join("srv/data/sub/file"), "content").expect("write");
    fs::hard_link(image.join("srv/data/sub/file"), image.join("srv/data/link")).expect("link");
    symlink(outside.join("secret"), image.join("srv/data/escape")).expect("symlink");
    symlink(&outside, image.join("absolute")).expect("symlink");
    symlink("../../../../../../../..", image.join("up")).expect("symlink");
    symlink("/srv/data", image.join("inside")).expect("symlink");
    fs::set_permissions(image.join("srv/data"), fs::Permissions::from_mode(0o1711)).expect("mode");
    let root = fs::File::open(&image).expect("open the image");
    let fill = |name: &str, path: &str| {
        let info = pool.ensure(&id(name), &SPEC).expect("ensure");
        (
            pool.populate(&id(name), root.as_fd(), Path::new(path)),
            info.path,
        )
    };

    let (done, path) = fill("filled", "/inside");
    assert_eq!(done.expect("populate"), Populated::Copied(4));
    assert_eq!(
        fs::read_to_string(path.join("sub/file")).expect("read"),
        "content"
    );
    let links = fs::metadata(path.join("link")).expect("stat").nlink();
    assert_eq!(links, 2, "hard links stay hard links");
    let escape = fs::symlink_metadata(path.join("escape")).expect("stat");
    assert!(escape.is_symlink(), "links are copied as links");
    let mode = fs::metadata(&path).expect("stat").permissions().mode() & 0o7777;
    assert_eq!(mode, 0o1711, "the image's mode");
    assert_eq!(
        fill("filled", "/inside").0.expect("again"),
        Populated::NotEmpty
    );

    for escape in [
        "absolute",
        "/nonexistent",
        "srv/data/sub/file",
        "../../outside",
    ] {
        let (done, path) = fill("untouched", escape);
        assert_eq!(done.expect("populate"), Populated::NoSource, "{escape}");
        assert_eq!(fs::read_dir(path).expect("read").count(), 0, "{escape}");
    }
    let (done, path) = fill("from-above", "up/srv/data");
    assert_eq!(
        done.expect("`..` ends at the image's root"),
        Populated::Copied(4)
    );
    assert!(path.join("sub/file").exists());
    let missing = pool.populate(&id("never-made"), root.as_fd(), Path::new("/srv"));
    assert!(
        matches!(missing, Err(VolumeError::Missing { .. })),
        "{missing:?}"
    );
}

fn concurrent_changes(pool: &impl Pool) {
    std::thread::scope(|scope| {
        for thread in 0..4 {
            scope.spawn(move || {
                for round in 0..8 {
                    let (own, shared) = (id(&format!("t{thread}-{round}")), id("shared"));
                    pool.ensure(&own, &SPEC).expect("ensure");
                    pool.ensure(&shared, &SPEC)
                        .expect("two may ensure the same");
                    assert!(pool.remove(&own).expect("remove"));
                }
            });
        }
    });
    let names: Vec<_> = pool
        .list()
        .expect("list")
        .into_iter()
        .map(|v| v.id)
        .collect();
    assert!(names.contains(&id("shared")), "{names:?}");
    assert!(
        !names.iter().any(|id| id.name().starts_with('t')),
        "{names:?}"
    );
}
