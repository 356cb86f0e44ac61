//! Hostile and unusual tars, one at a time, and trees that go round.

use std::{
    fs,
    io::Write,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
};

use proptest::prelude::*;

use super::{tree::OPAQUE, unpack, write_diff};
use crate::{
    job::Job,
    limits::Limits,
    tar::{Entry, Kind, TarError, Writer},
};

fn entry(path: &str, kind: Kind) -> Entry {
    Entry {
        path: path.into(),
        kind,
        mode: 0o755,
        ..Entry::default()
    }
}

fn dir(path: &str) -> Entry {
    entry(path, Kind::Directory)
}

fn file(path: &str) -> Entry {
    Entry {
        size: 4,
        ..entry(path, Kind::File)
    }
}

fn link(path: &str, target: &str, kind: Kind) -> Entry {
    Entry {
        link: target.into(),
        ..entry(path, kind)
    }
}

fn symlink(path: &str, target: &str) -> Entry {
    link(path, target, Kind::Symlink)
}

fn pack(entries: &[Entry]) -> Vec<u8> {
    let mut tar = Writer::new(Vec::new());
    for entry in entries {
        tar.entry(entry).unwrap();
        if entry.kind == Kind::File && entry.size > 0 {
            tar.data(&b"data".repeat(usize::try_from(entry.size / 4).unwrap()))
                .unwrap();
        }
    }
    tar.finish().unwrap()
}

/// A place for one layer, with a neighbour that nothing may touch.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("fs")).unwrap();
        fs::write(dir.path().join("victim"), "untouched").unwrap();
        Self { dir }
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("fs")
    }

    fn unpack_with(&self, tar: &[u8], limits: &Limits) -> Result<unpack::Unpacked, TarError> {
        unpack(tar, &self.root(), limits, &Job::silent())
    }

    fn unpack(&self, entries: &[Entry]) -> Result<unpack::Unpacked, TarError> {
        self.unpack_with(&pack(entries), &Limits::default())
    }

    fn assert_contained(&self) {
        let names: Vec<_> = fs::read_dir(self.dir.path())
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        assert_eq!(names.len(), 2, "{names:?}");
        assert_eq!(
            fs::read_to_string(self.dir.path().join("victim")).unwrap(),
            "untouched"
        );
    }
}

#[test]
fn hostile_entries_are_refused_by_name() {
    let victim = "/tmp/berth-no-such-victim/x";
    let up = "../".repeat(40);
    let escape = format!("{up}tmp/berth-escape");
    let table: Vec<(Vec<Entry>, &str)> = vec![
        (vec![file("../victim")], "../victim"),
        (vec![file("a/../../victim")], "a/../../victim"),
        (vec![dir("a"), link("b", "../victim", Kind::HardLink)], "b"),
        (vec![link("b", "/etc/passwd", Kind::HardLink)], "b"),
        (vec![symlink("l", victim), file("l/f")], "l/f"),
        (vec![symlink("l", &escape), file("l/f")], "l/f"),
        (vec![file("f"), file("f/under")], "f/under"),
        (vec![dir("d"), link("h", "d", Kind::HardLink)], "h"),
        (vec![link("h", "/", Kind::HardLink)], "h"),
        (vec![file("./")], "./"),
        (vec![symlink("s", "")], "s"),
        (vec![file(".wh.")], ".wh."),
        (vec![file(".wh...")], ".wh..."),
        (vec![file(".wh.a/b")], ".wh.a/b"),
        (vec![file(&"x".repeat(300))], "xx"),
    ];
    for (entries, name) in table {
        let place = Place::new();
        let error = place.unpack(&entries).expect_err(name).to_string();
        assert!(error.contains(name), "{name}: {error}");
        place.assert_contained();
    }
    assert!(
        !Path::new("/tmp/berth-escape").exists()
            && !Path::new("/tmp/berth-no-such-victim").exists()
    );
}

#[test]
fn links_that_would_leave_stay_inside_as_in_a_chroot() {
    let place = Place::new();
    let up = format!("{}inside", "../".repeat(40));
    let entries = [
        dir("inside"),
        symlink("abs", "/inside"),
        symlink("rel", &up),
        file("abs/one"),
        file("rel/two"),
        file("/absolute/path"),
        // A link replaced by a directory, a directory by a link, a link by a file: never written through.
        symlink("victim-link", "/victim"),
        file("victim-link"),
        dir("abs"),
        file("abs/own"),
        symlink("inside-too", "inside"),
        link("three", "inside-too/one", Kind::HardLink),
    ];
    place.unpack(&entries).unwrap();
    place.assert_contained();
    let root = place.root();
    for path in [
        "inside/one",
        "inside/two",
        "absolute/path",
        "victim-link",
        "abs/own",
        "three",
    ] {
        assert_eq!(fs::read(root.join(path)).unwrap(), b"data", "{path}");
    }
    assert!(fs::symlink_metadata(root.join("abs")).unwrap().is_dir());
    assert_eq!(fs::metadata(root.join("three")).unwrap().nlink(), 2);
}

#[test]
fn every_limit_stops_its_excess_and_names_it() {
    let many: Vec<Entry> = (0..20).map(|n| file(&format!("f{n}"))).collect();
    let deep = [file(&"d/".repeat(30))];
    let xattrs = [Entry {
        xattrs: vec![(b"user.x".to_vec(), vec![b'x'; 5000])],
        ..file("f")
    }];
    let base = Limits::default;
    let table: Vec<(Vec<u8>, Limits, &str)> = vec![
        (
            pack(&many),
            Limits {
                entries: 10,
                ..base()
            },
            "entries in one layer",
        ),
        (
            pack(&deep),
            Limits {
                depth: 20,
                ..base()
            },
            "path components",
        ),
        (
            pack(&[file(&"long/".repeat(60))]),
            Limits {
                path_bytes: 200,
                ..base()
            },
            "path length",
        ),
        (
            pack(&xattrs),
            Limits {
                xattr_bytes: 4096,
                ..base()
            },
            "extended attribute bytes",
        ),
        (
            pack(&xattrs),
            Limits {
                header_bytes: 4096,
                ..base()
            },
            "extended header bytes",
        ),
        (
            pack(&many),
            Limits {
                layer_bytes: 4096,
                ..base()
            },
            "uncompressed bytes",
        ),
        (
            pack(&[Entry {
                size: 4096,
                ..file("f")
            }]),
            Limits {
                file_bytes: 1000,
                ..base()
            },
            "file length",
        ),
    ];
    for (tar, limits, what) in table {
        let place = Place::new();
        let error = place.unpack_with(&tar, &limits).expect_err(what);
        assert!(
            matches!(error, TarError::Limit { .. }) && error.to_string().contains(what),
            "{what}: {error}"
        );
    }
}

#[test]
fn damaged_streams_are_refused_where_they_are_damaged() {
    let tar = pack(&[
        dir("d"),
        Entry {
            size: 8192,
            ..file("d/f")
        },
    ]);
    let limits = Limits::default();
    for cut in [100, 512 + 100, 1024 + 10, 1024 + 5000] {
        let error = Place::new().unpack_with(&tar[..cut], &limits).unwrap_err();
        assert!(
            matches!(error, TarError::Truncated { .. }),
            "{cut}: {error}"
        );
    }
    let mut flipped = tar.clone();
    flipped[512 + 3] ^= 1;
    let error = Place::new().unpack_with(&flipped, &limits).unwrap_err();
    assert!(
        matches!(
            error,
            TarError::Header {
                reason: "checksum",
                ..
            }
        ),
        "{error}"
    );
    assert!(
        Place::new()
            .unpack_with(b"this is no tar at all", &limits)
            .is_err()
    );
    // An end without zero blocks is an end, as some writers leave it.
    Place::new()
        .unpack_with(&tar[..tar.len() - 1024], &limits)
        .unwrap();
}

#[test]
fn whiteouts_take_overlay_form_and_never_hide_what_the_layer_brings() {
    let place = Place::new();
    let entries = [
        file("a/.wh.gone"),
        dir("b"),
        file("b/.wh..wh..opq"),
        file("b/kept"),
        file("own"),
        file(".wh.own"),
        file(".wh.later"),
        file("later/inside"),
        dir("dir"),
        file(".wh.dir"),
        file(".wh..wh.plnk/12.34"),
        Entry {
            device: (0, 0),
            ..entry("packed", Kind::Char)
        },
        Entry {
            device: (1, 3),
            ..entry("null", Kind::Char)
        },
    ];
    place.unpack(&entries).unwrap();
    let root = place.root();
    let whiteout = |path: &str| {
        let meta = fs::symlink_metadata(root.join(path)).unwrap();
        meta.file_type().is_char_device() && meta.rdev() == 0
    };
    let opaque = |path: &str| {
        let mut value = [0; 8];
        rustix::fs::lgetxattr(root.join(path), OPAQUE, &mut value)
            .is_ok_and(|n| &value[..n] == b"y")
    };
    assert!(whiteout("a/gone") && whiteout("packed") && !whiteout("null"));
    assert!(opaque("b") && opaque("later") && opaque("dir") && !opaque("a"));
    assert_eq!(fs::read(root.join("own")).unwrap(), b"data");
    assert!(!root.join(".wh..wh.plnk").exists() && !root.join(".wh.own").exists());
}

#[test]
fn attributes_that_would_steer_the_overlay_are_dropped() {
    let place = Place::new();
    let names = [
        "trusted.overlay.redirect",
        "user.overlay.opaque",
        "trusted.overlay.opaque",
        "security.selinux",
        "user.fine",
    ];
    let xattrs = names
        .map(|name| (name.as_bytes().to_vec(), b"/y".to_vec()))
        .to_vec();
    place.unpack(&[Entry { xattrs, ..dir("d") }]).unwrap();
    let mut list = [0; 512];
    let count = rustix::fs::llistxattr(place.root().join("d"), &mut list).unwrap();
    let kept = String::from_utf8_lossy(&list[..count]).into_owned();
    assert!(
        !kept.contains("overlay") && !kept.contains("selinux"),
        "{kept}"
    );
    assert!(kept.contains("user.fine"), "{kept}");
}

#[test]
fn a_compression_bomb_stops_at_the_limit() {
    let scratch = tempfile::tempdir().unwrap();
    let limits = Limits {
        layer_bytes: 1 << 20,
        ..Limits::default()
    };
    let store = crate::Store::open_with(scratch.path(), limits).unwrap();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let mut tar = Writer::new(&mut gzip);
    tar.entry(&Entry {
        size: 8 << 20,
        ..file("zeros")
    })
    .unwrap();
    for _ in 0..8 {
        tar.data(&vec![0; 1 << 20]).unwrap();
    }
    tar.finish().unwrap().flush().unwrap();
    let bomb = gzip.finish().unwrap();
    let error = store
        .import_rootfs(
            bomb.as_slice(),
            &crate::ImportOptions::default(),
            &Job::silent(),
        )
        .unwrap_err();
    assert!(
        error.to_string().contains("zeros") && error.to_string().contains("uncompressed bytes"),
        "{error}"
    );
    assert_eq!(
        fs::read_dir(scratch.path().join("ingest")).unwrap().count(),
        0
    );
    assert_eq!(
        fs::read_dir(scratch.path().join("layers/sha256"))
            .unwrap()
            .count(),
        0
    );
}

/// Trees as a tar may bring them: directories first, then what is in them.
fn trees() -> impl Strategy<Value = Vec<Entry>> {
    let name = "[a-zé ]{1,8}|[a-z]{90,110}";
    let attributes = (
        0u32..0o10000,
        0u32..70_000,
        0u32..70_000,
        -2_147_483_647i64..5_000_000_000,
        0u32..1_000_000_000,
    );
    let leaf = prop_oneof![
        (0u64..3000).prop_map(|size| Entry {
            size: size * 4,
            ..Entry::default()
        }),
        "[a-z/.]{1,120}".prop_map(|target| link("", &target, Kind::Symlink)),
        Just(entry("", Kind::Fifo)),
        (1u32..200, 0u32..200).prop_map(|device| Entry {
            device,
            ..entry("", Kind::Char)
        }),
    ];
    let member = (name, attributes, leaf, any::<bool>());
    prop::collection::vec((name, prop::collection::vec(member, 0..6)), 0..5).prop_map(|dirs| {
        let mut entries = Vec::new();
        for (n, (name, members)) in dirs.into_iter().enumerate() {
            entries.push(dir(&format!("{n}{name}/")));
            for (m, (leaf_name, (mode, uid, gid, seconds, nanos), leaf, xattr)) in
                members.into_iter().enumerate()
            {
                let mode = if leaf.kind == Kind::Symlink {
                    0o777
                } else {
                    mode
                };
                let xattrs = if xattr && leaf.kind == Kind::File {
                    vec![(b"user.k".to_vec(), vec![7, 0, 10])]
                } else {
                    vec![]
                };
                let path = format!("{n}{name}/{m}{leaf_name}").into_bytes();
                entries.push(Entry {
                    path,
                    mode,
                    uid,
                    gid,
                    mtime: (seconds, nanos),
                    xattrs,
                    ..leaf
                });
            }
        }
        entries
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn a_tree_unpacked_and_read_back_twice_is_the_same_tar(entries in trees()) {
        let (first, second) = (Place::new(), Place::new());
        first.unpack(&entries).unwrap();
        let once = write_diff(&first.root(), Vec::new(), 64, &Job::silent()).unwrap();
        second.unpack_with(&once, &Limits::default()).unwrap();
        let twice = write_diff(&second.root(), Vec::new(), 64, &Job::silent()).unwrap();
        prop_assert!(once == twice);
        // And nothing was lost on the first way: every entry is there as it was described.
        let mut reader = crate::tar::Reader::new(once.as_slice(), &Limits::default());
        let mut found = Vec::new();
        while let Some(entry) = reader.next_entry().unwrap() { found.push(entry); }
        prop_assert_eq!(found.len(), entries.len());
        for entry in entries.iter().filter(|entry| entry.kind != Kind::Directory) {
            prop_assert!(found.contains(entry), "{:?}", entry);
        }
    }

    #[test]
    fn damaged_tars_never_leave_their_directory(
        entries in trees(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        fix in any::<bool>(),
    ) {
        let mut tar = pack(&entries);
        for (at, byte) in damage {
            let at = at.index(tar.len());
            tar[at] = byte;
        }
        if fix { fix_checksums(&mut tar); }
        let place = Place::new();
        crate::fuzzing::tar_unpack(&tar, &place.root());
        place.assert_contained();
    }
}

/// Makes every block's checksum right, so that damage gets past it.
fn fix_checksums(tar: &mut [u8]) {
    for block in tar
        .chunks_exact_mut(512)
        .filter(|block| &block[257..262] == b"ustar")
    {
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|&b| u32::from(b)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
}
