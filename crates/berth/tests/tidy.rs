//! The rules of style that a program can check: every module says what it is, files stay small,
//! promises about unsafe code are kept, and nothing of a build machine or left undone is in the
//! tree.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Most lines of a file, tests aside.
const MAX_LINES: usize = 800;
/// Crates that talk to the kernel in ways that need unsafe code; all others forbid it.
const UNSAFE: &[&str] = &[
    "agent",
    "cgroup",
    "container",
    "cpu",
    "devices",
    "image",
    "memory",
    "network",
    "oci",
    "seccomp",
    "vmm",
    "volume",
];

fn house() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .canonicalize()
        .unwrap()
}

/// Every file below a directory with one of the extensions.
fn files(below: &Path, extensions: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![below.to_owned()];
    while let Some(directory) = open.pop() {
        let Ok(entries) = fs::read_dir(&directory) else {
            continue;
        };
        for entry in entries.map(|entry| entry.unwrap().path()) {
            let name = entry.file_name().unwrap().to_string_lossy().into_owned();
            if entry.is_dir() && !entry.is_symlink() {
                if !name.starts_with("target") && name != ".git" {
                    open.push(entry);
                }
            } else if extensions.iter().any(|extension| name.ends_with(extension)) {
                found.push(entry);
            }
        }
    }
    found.sort();
    found
}

fn sources() -> Vec<(PathBuf, String)> {
    let all = files(&house().join("crates"), &[".rs"]);
    assert!(all.len() > 50, "only {} sources found", all.len());
    all.into_iter()
        .map(|path| {
            let text = fs::read_to_string(&path).unwrap();
            (path.strip_prefix(house()).unwrap().to_owned(), text)
        })
        .collect()
}

/// Fails with all that is wrong, not only the first.
fn report(wrong: Vec<String>) {
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// The lines of a file before its test module.
fn without_tests(text: &str) -> usize {
    let lines: Vec<&str> = text.lines().collect();
    let tests = lines.windows(2).position(|pair| {
        pair[0].trim_end() == "#[cfg(test)]"
            && pair[1].starts_with("mod ")
            && pair[1].ends_with('{')
    });
    tests.unwrap_or(lines.len())
}

#[test]
fn every_module_says_what_it_is() {
    // The tests of a module are described by their names.
    let wrong = sources()
        .into_iter()
        .filter(|(path, text)| !path.ends_with("tests.rs") && !text.starts_with("//!"));
    report(
        wrong
            .map(|(path, _)| format!("{} does not open with //!", path.display()))
            .collect(),
    );
}

#[test]
fn files_stay_small() {
    let is_test = |path: &Path| path.components().any(|it| it.as_os_str() == "tests");
    let wrong = sources().into_iter().filter_map(|(path, text)| {
        if is_test(&path) || path.ends_with("tests.rs") {
            return None;
        }
        let lines = without_tests(&text);
        (lines > MAX_LINES)
            .then(|| format!("{} has {lines} lines: look for the seam", path.display()))
    });
    report(wrong.collect());
}

#[test]
fn crates_that_need_no_unsafe_code_forbid_it() {
    let mut wrong = Vec::new();
    let all = sources();
    let crate_of = |path: &Path| path.iter().nth(1).unwrap().to_string_lossy().into_owned();
    let has_unsafe = |name: &str| {
        let needles = ["unsafe ", "unsafe("]
            .map(|it| format!("{it}{}", if it.ends_with(' ') { "{" } else { "" }));
        all.iter().any(|(path, text)| {
            crate_of(path) == name && needles.iter().any(|needle| text.contains(needle.as_str()))
        })
    };
    for (path, text) in &all {
        let root = path.ends_with("src/lib.rs") || path.ends_with("src/main.rs");
        let name = crate_of(path);
        let may = UNSAFE.contains(&name.as_str()) && has_unsafe(&name);
        if root && !may && !text.contains("#![forbid(unsafe_code)]") {
            wrong.push(format!("{} lacks #![forbid(unsafe_code)]", path.display()));
        }
    }
    report(wrong);
}

#[test]
fn nothing_is_left_undone_or_of_one_machine() {
    // Put together here so that this file does not find itself.
    let undone = [("TO", "DO"), ("FIX", "ME"), ("XX", "X")];
    let machine = [("/work", "/main"), ("/var", "/tmp/t/"), ("/tmp", "/brief")];
    let banned: Vec<String> = undone
        .iter()
        .chain(&machine)
        .map(|(a, b)| format!("{a}{b}"))
        .collect();
    let extensions = [
        ".rs", ".toml", ".md", ".sh", ".service", ".socket", ".yml", ".json",
    ];
    let mut wrong = Vec::new();
    let mut all = files(&house(), &extensions);
    all.extend(files(&house().join("scripts"), &[""]));
    for path in all {
        let Ok(text) = fs::read_to_string(&path) else {
            continue;
        };
        for (number, line) in text.lines().enumerate() {
            let found = banned.iter().find(|it| line.contains(it.as_str()));
            if let Some(found) = found {
                let path = path.strip_prefix(house()).unwrap().display();
                wrong.push(format!("{path}:{} has {found}", number + 1));
            }
        }
    }
    report(wrong);
}

#[test]
fn the_layout_is_complete() {
    for path in [
        "README.md",
        "ARCHITECTURE.md",
        "CONTRIBUTING.md",
        "LICENSE-MIT",
        "LICENSE-APACHE",
        "deny.toml",
        ".ci/run",
        "scripts/quickstart",
        "scripts/test",
        "scripts/bench",
        "docs/openapi.json",
        "packaging/systemd/berth.service",
        "packaging/systemd/berth.socket",
    ] {
        assert!(house().join(path).exists(), "{path} is missing");
    }
}
