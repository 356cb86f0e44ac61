//! Trees and archives, good and hostile, on the real file system.

use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
};

use image::tar::{Entry, Kind, Reader, Writer};
use model::record::IdMap;
use proptest::prelude::*;
use rustix::fs::{CWD, FileType, Mode};

use super::{FilesError, Source, fuzzing::view, unpack};

const BASE: u32 = 2_000_000;

fn packed(root: &Path, path: &str, map: Option<IdMap>) -> Result<Vec<u8>, FilesError> {
    let mut view = view(root);
    view.idmap = map;
    let mut bytes = Vec::new();
    Source::open(&view, path)?.write_to(&mut bytes)?;
    Ok(bytes)
}

fn entries(tar: &[u8]) -> Vec<Entry> {
    let mut reader = Reader::new(tar, &image::Limits::default());
    std::iter::from_fn(|| reader.next_entry().unwrap()).collect()
}

/// An entry and its data.
type Member<'a> = (Entry, &'a [u8]);

fn archive(list: &[Member<'_>]) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new());
    for (entry, data) in list {
        writer.entry(entry).unwrap();
        if !data.is_empty() {
            writer.data(data).unwrap();
        }
    }
    writer.finish().unwrap()
}

fn entry(kind: Kind, path: &str, link: &str) -> Entry {
    Entry {
        path: path.into(),
        link: link.into(),
        kind,
        mode: 0o750,
        mtime: (1_600_000_000, 123_000_000),
        ..Entry::default()
    }
}

fn file(path: &str) -> Entry {
    Entry {
        size: 4,
        ..entry(Kind::File, path, "")
    }
}

fn is_root(test: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        let _ = writeln!(
            std::io::stderr(),
            "SKIP {test}: owners can be given by root only"
        );
    }
    root
}

#[test]
fn a_tree_comes_back_as_it_was() {
    if !is_root("a_tree_comes_back_as_it_was") {
        return;
    }
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let tree = dir.path().join("tree");
    fs::create_dir_all(tree.join("deep/er")).unwrap();
    fs::write(tree.join("deep/er/plain"), "ahoy").unwrap();
    fs::write(tree.join("tool"), vec![7; 600_000]).unwrap();
    fs::set_permissions(tree.join("tool"), fs::Permissions::from_mode(0o4751)).unwrap();
    fs::hard_link(tree.join("tool"), tree.join("deep/same")).unwrap();
    symlink("/nowhere/at all", tree.join("link")).unwrap();
    let long = "n".repeat(200);
    fs::write(tree.join(&long), "").unwrap();
    let sparse = fs::File::create(tree.join("sparse")).unwrap();
    sparse.set_len(8 << 20).unwrap();
    let at = tree.join("deep/er/plain");
    let set = rustix::fs::setxattr(&at, "user.note", b"kept", rustix::fs::XattrFlags::empty());
    let noted = set.is_ok();
    let map = IdMap {
        base: BASE,
        count: 65536,
    };
    for (path, id) in [("deep", BASE + 33), ("tool", BASE), ("link", BASE + 5)] {
        std::os::unix::fs::lchown(tree.join(path), Some(id), Some(id + 1)).unwrap();
    }
    fs::set_permissions(tree.join("tool"), fs::Permissions::from_mode(0o4751)).unwrap();
    rustix::fs::mknodat(CWD, tree.join("pipe"), FileType::Fifo, Mode::RWXU, 0).unwrap();

    let tar = packed(dir.path(), "/tree", Some(map)).unwrap();
    let list = entries(&tar);
    let found = |name: &str| list.iter().find(|it| it.path == name.as_bytes()).unwrap();
    assert_eq!(list[0].path, b"tree/");
    assert_eq!((found("tree/deep/").uid, found("tree/deep/").gid), (33, 34));
    assert_eq!(
        found("tree/sparse").uid,
        65534,
        "of the host, so of nobody inside"
    );
    assert!(!list.iter().any(|it| it.path == b"tree/pipe"));

    fs::create_dir(dir.path().join("copy")).unwrap();
    let mut into = view(dir.path());
    into.idmap = Some(map);
    unpack(&into, "/copy", &tar[..]).unwrap();
    let copy = dir.path().join("copy/tree");
    assert_eq!(fs::read(copy.join("deep/er/plain")).unwrap(), b"ahoy");
    let tool = fs::metadata(copy.join("tool")).unwrap();
    assert_eq!(fs::read(copy.join("tool")).unwrap(), vec![7; 600_000]);
    assert_eq!((tool.uid(), tool.mode() & 0o7777), (BASE, 0o4751));
    assert_eq!(
        tool.ino(),
        fs::metadata(copy.join("deep/same")).unwrap().ino()
    );
    assert_eq!(fs::metadata(copy.join("deep")).unwrap().gid(), BASE + 34);
    let times = |path: &Path| fs::symlink_metadata(path).unwrap().modified().unwrap();
    for path in ["tool", "deep", "deep/er", "link"] {
        assert_eq!(times(&copy.join(path)), times(&tree.join(path)), "{path}");
    }
    assert_eq!(
        fs::read_link(copy.join("link")).unwrap(),
        Path::new("/nowhere/at all")
    );
    assert!(copy.join(&long).exists());
    let sparse = fs::metadata(copy.join("sparse")).unwrap();
    assert_eq!(sparse.len(), 8 << 20);
    assert!(
        sparse.blocks() < 1024,
        "holes stay holes: {}",
        sparse.blocks()
    );
    if noted {
        let mut value = [0; 16];
        let length =
            rustix::fs::getxattr(copy.join("deep/er/plain"), "user.note", &mut value).unwrap();
        assert_eq!(&value[..length], b"kept");
    }
    let made_up = fs::read_dir(copy).unwrap().flatten();
    assert!(
        made_up
            .into_iter()
            .all(|it| !it.file_name().to_string_lossy().contains("berth"))
    );
}

#[test]
fn paths_are_found_inside_and_nowhere_else() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    fs::create_dir_all(root.join("etc")).unwrap();
    fs::write(root.join("etc/hosts"), "inside").unwrap();
    fs::create_dir(dir.path().join("secret")).unwrap();
    fs::write(dir.path().join("secret/key"), "outside").unwrap();
    symlink("/etc", root.join("absolute")).unwrap();
    symlink("../../secret", root.join("out")).unwrap();
    symlink(dir.path().join("secret"), root.join("etc/out")).unwrap();

    let tar = packed(&root, "/absolute/hosts", None).unwrap();
    assert_eq!(entries(&tar)[0].path, b"hosts");
    let link = packed(&root, "/absolute", None).unwrap();
    assert_eq!(
        entries(&link)[0].kind,
        Kind::Symlink,
        "a link is meant itself"
    );
    let followed = packed(&root, "/absolute/", None).unwrap();
    assert_eq!(entries(&followed)[0].path, b"absolute/");
    let all = entries(&packed(&root, "/", None).unwrap());
    assert_eq!(all[0].path, b"./");
    assert!(!all.iter().any(|it| it.path.ends_with(b"key")));
    for missing in ["/out/key", "/etc/out/key", "/../secret/key", "/etc/none"] {
        let found = packed(&root, missing, None);
        assert!(
            matches!(found, Err(FilesError::Missing { .. })),
            "{missing}: {found:?}"
        );
    }
    let found = packed(&root, "/etc/hosts/", None);
    assert!(
        matches!(found, Err(FilesError::NotADirectory { .. })),
        "{found:?}"
    );
    for wrong in ["etc", "", "/a\0b", &format!("/{}", "x".repeat(5000))] {
        let found = packed(&root, wrong, None);
        assert!(matches!(found, Err(FilesError::Path { .. })), "{found:?}");
    }
    let device = view(Path::new("/dev"));
    let found = Source::open(&device, "/null");
    assert!(matches!(found, Err(FilesError::Kind { .. })), "{found:?}");
    let kernel = view(Path::new("/proc"));
    let found = Source::open(&kernel, "/version");
    assert!(matches!(found, Err(FilesError::Kind { .. })), "{found:?}");

    let good = archive(&[(file("f"), b"evil")]);
    for (path, lands) in [("/absolute", "etc/f"), ("/etc/", "etc/f")] {
        unpack(&view(&root), path, &good[..]).unwrap();
        fs::remove_file(root.join(lands)).unwrap();
    }
    for path in ["/out", "/etc/out", "/none"] {
        let done = unpack(&view(&root), path, &good[..]);
        assert!(matches!(done, Err(FilesError::Missing { .. })), "{done:?}");
    }
    assert_eq!(fs::read_dir(dir.path().join("secret")).unwrap().count(), 1);
}

#[test]
fn hostile_entries_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let outside = dir.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("mine"), "mine").unwrap();
    let to = outside.to_str().unwrap();
    let mine = format!("{to}/mine");
    let deep = vec!["d"; 300].join("/");
    let wide = "w".repeat(256);
    let link = |path, to| (entry(Kind::Symlink, path, to), &b""[..]);
    let hard = |path, to| (entry(Kind::HardLink, path, to), &b""[..]);
    let bare = |kind, path| (entry(kind, path, ""), &b""[..]);
    let plain = |path| (file(path), &b"evil"[..]);
    let hostile: Vec<(&str, Vec<Member<'_>>)> = vec![
        ("../mine", vec![plain("../mine")]),
        ("a/../../x", vec![plain("a/../../x")]),
        ("/outside/x", vec![plain("/outside/x")]),
        ("l/x", vec![link("l", to), plain("l/x")]),
        ("l/sub", vec![link("l", to), bare(Kind::Directory, "l/sub")]),
        ("l", vec![link("l", to), bare(Kind::Directory, "l")]),
        ("stolen", vec![hard("stolen", "../outside/mine")]),
        ("stolen", vec![hard("stolen", &mine)]),
        ("stolen", vec![link("l", to), hard("stolen", "l/mine")]),
        ("stolen", vec![link("l", &mine), hard("stolen", "l")]),
        (
            "stolen",
            vec![bare(Kind::Directory, "d"), hard("stolen", "d")],
        ),
        ("stolen", vec![hard("stolen", "nothing")]),
        ("null", vec![bare(Kind::Char, "null")]),
        ("disk", vec![bare(Kind::Block, "disk")]),
        ("pipe", vec![bare(Kind::Fifo, "pipe")]),
        ("to", vec![link("to", "")]),
        ("d/d/d", vec![plain(&deep)]),
        ("www", vec![plain(&wide)]),
        ("d", vec![bare(Kind::Directory, "d"), plain("d")]),
        ("f/g", vec![plain("f"), plain("f/g")]),
    ];
    for (number, (named, list)) in hostile.into_iter().enumerate() {
        let root = dir.path().join(format!("r{number}"));
        fs::create_dir(&root).unwrap();
        let done = unpack(&view(&root), "/", &archive(&list)[..]);
        let error = done.expect_err(named);
        assert!(
            matches!(error, FilesError::Entry { .. }),
            "{number} {named}: {error}"
        );
        assert!(error.to_string().contains(named), "{named}: {error}");
        assert_eq!(fs::read(outside.join("mine")).unwrap(), b"mine", "{number}");
        assert_eq!(
            fs::metadata(outside.join("mine")).unwrap().nlink(),
            1,
            "{number}"
        );
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 1, "{number}");
        assert!(!leftovers(&root), "{number}");
    }
    // What a link leads to stays when a file takes the link's place.
    let root = dir.path().join("over");
    fs::create_dir(&root).unwrap();
    let over = archive(&[
        link("l", &mine),
        plain("l"),
        link("l", &mine),
        plain("f"),
        hard("l", "f"),
    ]);
    unpack(&view(&root), "/", &over[..]).unwrap();
    assert_eq!(fs::read(root.join("l")).unwrap(), b"evil");
    assert_eq!(fs::read(outside.join("mine")).unwrap(), b"mine");
    // The same file under its own name again.
    let again = archive(&[plain("f"), hard("g", "f"), hard("g", "f"), hard("f", "g")]);
    unpack(&view(&root), "/", &again[..]).unwrap();
    assert_eq!(fs::metadata(root.join("f")).unwrap().nlink(), 2);
    assert!(!leftovers(&root));
}

fn leftovers(root: &Path) -> bool {
    let names = fs::read_dir(root).unwrap().flatten();
    names
        .into_iter()
        .any(|it| it.file_name().to_string_lossy().starts_with(".berth-cp"))
}

#[test]
fn what_fails_halfway_leaves_no_half_file() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("f"), "old and longer").unwrap();
    let whole = archive(&[(file("f"), b"newx")]);
    assert!(unpack(&view(dir.path()), "/", &whole[..514]).is_err());
    assert_eq!(fs::read(dir.path().join("f")).unwrap(), b"old and longer");
    assert!(!leftovers(dir.path()));
    unpack(&view(dir.path()), "/", &whole[..]).unwrap();
    assert_eq!(fs::read(dir.path().join("f")).unwrap(), b"newx");

    let owner = Entry {
        uid: 65536,
        ..file("g")
    };
    let mut mapped = view(dir.path());
    mapped.idmap = Some(IdMap {
        base: BASE,
        count: 65536,
    });
    if is_root("what_fails_halfway_leaves_no_half_file") {
        let done = unpack(&mapped, "/", &archive(&[(owner, b"evil")])[..]);
        assert!(matches!(done, Err(FilesError::Entry { .. })), "{done:?}");
        assert!(!dir.path().join("g").exists());
    }
}

#[test]
fn what_is_mounted_while_it_runs_is_left_alone_at_rest() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("data/sub")).unwrap();
    fs::create_dir(dir.path().join("etc")).unwrap();
    fs::write(dir.path().join("etc/hosts"), "").unwrap();
    symlink("data", dir.path().join("alias")).unwrap();
    let mut at_rest = view(dir.path());
    at_rest.hidden = vec!["/data".to_owned(), "/etc/hosts".to_owned()];
    for path in [
        "/data",
        "/data/sub",
        "/etc/../data/x",
        "/alias/",
        "/etc/hosts",
    ] {
        let found = Source::open(&at_rest, path);
        assert!(
            matches!(found, Err(FilesError::Hidden { .. })),
            "{path}: {found:?}"
        );
    }
    let mut tar = Vec::new();
    let all = Source::open(&at_rest, "/").unwrap();
    all.write_to(&mut tar).unwrap();
    let names: Vec<_> = entries(&tar).into_iter().map(|it| it.path).collect();
    assert!(names.contains(&b"./data/".to_vec()));
    assert!(!names.contains(&b"./data/sub/".to_vec()));
    assert!(!names.contains(&b"./etc/hosts".to_vec()));
    for (path, name) in [
        ("/", "data/f"),
        ("/data", "f"),
        ("/alias", "f"),
        ("/etc", "hosts"),
    ] {
        let done = unpack(&at_rest, path, &archive(&[(file(name), b"evil")])[..]);
        assert!(
            matches!(done, Err(FilesError::Hidden { .. })),
            "{path} {name}: {done:?}"
        );
    }
    assert!(dir.path().join("data/sub").exists());
}

/// A tree as proptest makes it up: what is at each path.
#[derive(Debug, Clone)]
enum Node {
    File(Vec<u8>, u32),
    Link(String),
    Directory(BTreeMap<String, Node>),
}

fn node() -> impl Strategy<Value = Node> {
    let leaf = prop_oneof![
        (prop::collection::vec(any::<u8>(), 0..5000), 0_u32..0o1000)
            .prop_map(|(data, mode)| Node::File(data, mode | 0o400)),
        "[a-z./]{1,200}".prop_map(Node::Link),
    ];
    leaf.prop_recursive(4, 30, 6, |inner| {
        prop::collection::btree_map("[a-zé ]{1,120}", inner, 0..6).prop_map(Node::Directory)
    })
}

fn make(at: &Path, node: &Node) {
    match node {
        Node::File(data, mode) => {
            fs::write(at, data).unwrap();
            fs::set_permissions(at, fs::Permissions::from_mode(*mode)).unwrap();
        }
        Node::Link(to) => symlink(to, at).unwrap(),
        Node::Directory(children) => {
            fs::create_dir(at).unwrap();
            for (name, child) in children {
                make(&at.join(name), child);
            }
        }
    }
}

/// All that is below a directory: paths, kinds, contents, permissions, times.
fn seen(at: &Path) -> Vec<(PathBuf, String)> {
    let mut all = Vec::new();
    let mut left = vec![at.to_owned()];
    while let Some(path) = left.pop() {
        let meta = fs::symlink_metadata(&path).unwrap();
        let kind = meta.file_type();
        assert!(!kind.is_fifo());
        let what = if kind.is_dir() {
            left.extend(fs::read_dir(&path).unwrap().map(|it| it.unwrap().path()));
            String::new()
        } else if kind.is_symlink() {
            format!("{:?}", fs::read_link(&path).unwrap())
        } else {
            format!("{:?}", fs::read(&path).unwrap())
        };
        let (mode, time) = (meta.mode(), meta.modified().unwrap());
        let relative = path.strip_prefix(at).unwrap().to_owned();
        all.push((relative, format!("{mode:o} {time:?} {what}")));
    }
    all.sort();
    all
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..Default::default() })]

    #[test]
    fn any_tree_is_the_same_on_the_other_side(node in node()) {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        fs::create_dir(&from).unwrap();
        fs::create_dir(&to).unwrap();
        make(&from.join("top"), &node);
        let tar = packed(&from, "/top", None).unwrap();
        unpack(&view(&to), "/", &tar[..]).unwrap();
        prop_assert_eq!(seen(&from.join("top")), seen(&to.join("top")));
        // And over itself: nothing is in its own way.
        unpack(&view(&to), "/", &tar[..]).unwrap();
        prop_assert_eq!(seen(&from.join("top")), seen(&to.join("top")));
    }

    #[test]
    fn no_archive_gets_out(
        list in prop::collection::vec((0_u8..6, "[a/.]{1,8}", "[a/.]{0,8}"), 1..20),
        noise in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3),
    ) {
        let kinds = [Kind::File, Kind::Directory, Kind::Symlink, Kind::HardLink, Kind::Fifo, Kind::File];
        let list: Vec<Member<'_>> = list
            .iter()
            .map(|(kind, path, link)| match kinds[usize::from(*kind)] {
                Kind::File => (file(path), &b"evil"[..]),
                kind => (entry(kind, path, link), &b""[..]),
            })
            .collect();
        let mut bytes = archive(&list);
        for (at, value) in noise {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        super::fuzzing::fuzz(&bytes);
    }
}
