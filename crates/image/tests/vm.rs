//! Root disks, checked by the tools of the file system they hold.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    io::Write,
    os::unix::fs::MetadataExt,
    path::Path,
    process::{Command, Stdio},
};

use image::{
    InUse, Job, Recipe, Reference, Store,
    vm::{DiskError, copy_disk},
};

/// What a tool prints, or `None` when it is not installed.
fn tool(program: &str, arguments: &[&str], disk: &Path) -> Option<(bool, String)> {
    let output = Command::new(program)
        .args(arguments)
        .arg(disk)
        .stdin(Stdio::null())
        .output()
        .ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Some((
        output.status.success(),
        text + &String::from_utf8_lossy(&output.stderr),
    ))
}

fn skip(test: &str, reason: &str) {
    let _ = writeln!(std::io::stderr(), "SKIP {test}: {reason}");
}

#[test]
fn a_root_disk_is_clean_holds_the_image_and_goes_with_it() {
    let test = "a_root_disk_is_clean_holds_the_image_and_goes_with_it";
    if tool("e2fsck", &["-V"], Path::new("")).is_none() {
        return skip(test, "e2fsprogs is not installed");
    }
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path().join("store")).unwrap();
    let name: Reference = "localhost/small:1".parse().unwrap();
    let built = match store.build_recipe(&Recipe::Busybox, &name, false, &Job::silent()) {
        Ok(built) => built,
        Err(error) => return skip(test, &error.to_string()),
    };
    let disk = store.root_disk(&built.image, &Job::silent()).unwrap();
    assert_eq!(disk.bytes, fs::metadata(&disk.path).unwrap().len());

    let (clean, said) = tool("e2fsck", &["-fn"], &disk.path).unwrap();
    assert!(clean, "{said}");
    let (_, features) = tool("dumpe2fs", &["-h"], &disk.path).unwrap();
    assert!(
        features.contains("has_journal") && features.contains("resize_inode"),
        "{features}"
    );
    let (_, passwd) = tool("debugfs", &["-R", "cat /etc/passwd"], &disk.path).unwrap();
    assert!(passwd.contains("root:x:0:0"), "{passwd}");
    let (_, link) = tool("debugfs", &["-R", "stat /bin/ls"], &disk.path).unwrap();
    assert!(link.contains("busybox"), "{link}");

    // The same again, and a copy that is larger yet takes no more.
    assert_eq!(store.root_disk(&built.image, &Job::silent()).unwrap(), disk);
    let copy = dir.path().join("copy");
    copy_disk(&disk, &copy, 4 << 30).unwrap();
    let meta = fs::metadata(&copy).unwrap();
    assert_eq!(meta.len(), 4 << 30);
    assert!(
        meta.blocks() * 512 < 64 << 20,
        "holes were filled: {}",
        meta.blocks()
    );
    let (clean, said) = tool("e2fsck", &["-fn"], &copy).unwrap();
    assert!(clean, "{said}");
    let refused = copy_disk(&disk, &dir.path().join("small"), 1 << 20);
    assert!(matches!(refused, Err(DiskError::TooSmall { .. })));

    store.untag("localhost/small:1").unwrap();
    store.gc(&InUse::default()).unwrap();
    assert!(!disk.path.exists(), "the disk outlived its image");
}
