//! What is fuzzed: an archive from outside, unpacked below a directory and packed again.

use std::{
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

use engine::RootView;

use super::{Source, unpack};

/// Unpacks `data` as an archive; whatever it says, nothing beside its directory changes, and what
/// came of it can be packed.
///
/// # Panics
/// When it got out.
pub fn fuzz(data: &[u8]) {
    let scratch = Scratch::new();
    let inside = scratch.0.join("root/inside");
    std::fs::create_dir_all(&inside).expect("a directory");
    let guarded = scratch.0.join("guarded");
    std::fs::write(&guarded, "ahoy").expect("a file");
    let before = listing(&scratch.0);
    let view = view(&scratch.0.join("root"));
    // A refusal is as good as anything.
    let _ = unpack(&view, "/inside", data);
    assert_eq!(listing(&scratch.0), before, "something got out");
    assert_eq!(listing(&scratch.0.join("root")), ["inside"]);
    assert_eq!(std::fs::read(&guarded).expect("the file"), b"ahoy");
    let source = Source::open(&view, "/inside").expect("the directory is still there");
    source
        .write_to(std::io::sink())
        .expect("what came of it can be packed");
}

/// A view of a plain directory.
pub(super) fn view(directory: &Path) -> RootView {
    RootView {
        directory: std::fs::File::open(directory).expect("a directory").into(),
        idmap: None,
        hidden: Vec::new(),
    }
}

fn listing(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).expect("a directory");
    let name = |entry: std::fs::DirEntry| entry.file_name().to_string_lossy().into_owned();
    let mut names: Vec<String> = entries.flatten().map(name).collect();
    names.sort_unstable();
    names
}

/// A directory that goes with its value.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("berth-fuzz-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).expect("a directory");
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What cannot be removed is in the directory for temporary files.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
