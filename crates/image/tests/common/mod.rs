//! What the integration tests share: a store in a temporary directory, tars written by GNU tar, tools.
#![allow(dead_code, reason = "each test file uses a part")]

pub mod server;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use image::{Digest, ImportOptions, Job, Recipe, Reference, Store};

/// A store that goes away with the test.
pub struct Scratch {
    pub dir: tempfile::TempDir,
    pub store: Store,
}

impl Scratch {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path().join("store")).unwrap();
        Self { dir, store }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The busybox image, or `None` after saying why the test is skipped.
    pub fn busybox(&self) -> Option<Digest> {
        if !needs("busybox", &["true"]) {
            return None;
        }
        let name = Recipe::Busybox.default_name().unwrap();
        Some(
            self.store
                .build_recipe(&Recipe::Busybox, &name, false, &Job::silent())
                .unwrap()
                .image,
        )
    }

    /// Imports a directory as a root file system.
    pub fn image_of(&self, root: &Path, name: &str) -> Digest {
        let options = ImportOptions {
            name: Some(local(name)),
            ..ImportOptions::default()
        };
        let tar = tar_of(root);
        self.store
            .import_rootfs(tar.as_slice(), &options, &Job::silent())
            .unwrap()
    }

    /// What lies in `ingest`: empty unless an operation is under way.
    pub fn leftovers(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.store.root().join("ingest")).unwrap();
        entries.map(|entry| entry.unwrap().path()).collect()
    }
}

pub fn local(name: &str) -> Reference {
    Reference::local(name, "latest").unwrap()
}

/// Packs a directory with GNU tar, attributes included.
pub fn tar_of(root: &Path) -> Vec<u8> {
    let tar = run(
        "tar",
        &[
            "--xattrs",
            "--xattrs-include=*",
            "--sparse",
            "-C",
            root.to_str().unwrap(),
            "-c",
            ".",
        ],
    );
    assert!(
        tar.status.success(),
        "{}",
        String::from_utf8_lossy(&tar.stderr)
    );
    tar.stdout
}

pub fn run(program: &str, args: &[&str]) -> std::process::Output {
    Command::new(program)
        .args(args)
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}"))
}

/// Whether a tool is here; says loudly when not.
pub fn needs(program: &str, args: &[&str]) -> bool {
    let found = Command::new(program).args(args).output().is_ok();
    if !found {
        let test = std::thread::current().name().unwrap_or("test").to_owned();
        eprintln!("SKIP {test}: {program} is not installed");
    }
    found
}

/// A listing of a tree in which everything that a layer carries shows.
pub fn listing(root: &Path) -> Vec<String> {
    use std::os::unix::fs::MetadataExt;
    let mut lines = Vec::new();
    let mut stack = vec![root.to_owned()];
    while let Some(dir) = stack.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            let meta = fs::symlink_metadata(&path).unwrap();
            let name = path.strip_prefix(root).unwrap().display().to_string();
            let content = if meta.is_file() {
                Digest::of(&fs::read(&path).unwrap()).short()
            } else if meta.is_symlink() {
                fs::read_link(&path).unwrap().display().to_string()
            } else {
                String::new()
            };
            let links = if meta.is_dir() { 0 } else { meta.nlink() };
            lines.push(format!(
                "{name} {:o} {}:{} {}.{:09} {:x} x{links} {content} {}",
                meta.mode(),
                meta.uid(),
                meta.gid(),
                meta.mtime(),
                meta.mtime_nsec(),
                meta.rdev(),
                xattrs(&path),
            ));
            if meta.is_dir() {
                stack.push(path);
            }
        }
    }
    lines.sort();
    lines
}

fn xattrs(path: &Path) -> String {
    let mut list = vec![0u8; 4096];
    let count = rustix::fs::llistxattr(path, &mut list).unwrap_or(0);
    let mut found: Vec<String> = (list[..count].split(|&b| b == 0))
        .filter(|name| !name.is_empty())
        .map(|name| {
            let mut value = vec![0u8; 4096];
            let length = rustix::fs::lgetxattr(path, name, &mut value).unwrap();
            let hex: String = value[..length]
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect();
            format!("{}={hex}", String::from_utf8_lossy(name))
        })
        .collect();
    found.sort();
    found.join(",")
}
