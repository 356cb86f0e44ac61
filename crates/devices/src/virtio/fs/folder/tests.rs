//! Tests of `folder`: what a guest can do with it, and what not.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    ffi::{CStr, CString},
    fs::{self, File},
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    path::PathBuf,
};

use proptest::prelude::*;

use super::*;
use crate::virtio::fs::fuse::{Header, Name, ROOT, SetAttributes, SetTime};

/// A folder with something beside it that is none of the guest's business.
struct Share {
    place: tempfile::TempDir,
    folder: Folder,
}

const SMALL: FolderLimits = FolderLimits {
    nodes: 64,
    cached_files: 4,
    open_files: 6,
};

impl Share {
    fn new(read_only: bool, limits: &FolderLimits) -> Self {
        let place = tempfile::tempdir().unwrap();
        for directory in ["in", "out"] {
            fs::create_dir(place.path().join(directory)).unwrap();
        }
        fs::write(place.path().join("out/secret"), "secret").unwrap();
        fs::set_permissions(place.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let root = File::open(place.path().join("in")).unwrap().into();
        let own = Descriptors::open().unwrap();
        let mut folder = Folder::new(root, own, read_only, limits).unwrap();
        let hello = Operation::Init {
            major: 7,
            minor: 38,
            max_readahead: 0,
            flags: u32::MAX,
        };
        assert!(ask(&mut folder, (0, 0), ROOT, hello).is_ok());
        Self { place, folder }
    }

    fn inside(&self, name: &str) -> PathBuf {
        self.place.path().join("in").join(name)
    }

    fn ask(&mut self, node: u64, operation: Operation<'_>) -> Result<Vec<u8>, Errno> {
        ask(&mut self.folder, (0, 0), node, operation)
    }

    fn look_up(&mut self, node: u64, text: &CStr) -> Result<u64, Errno> {
        Ok(long(
            &self.ask(node, Operation::Lookup { name: name(text) })?,
            0,
        ))
    }

    fn open(&mut self, node: u64, flags: i32) -> Result<u64, Errno> {
        let open = Operation::Open {
            flags: flags as u32,
            kill_privileges: false,
        };
        Ok(long(&self.ask(node, open)?, 0))
    }

    fn make_directory(&mut self, node: u64, text: &CStr) -> u64 {
        let made = self.ask(
            node,
            Operation::MakeDirectory {
                name: name(text),
                mode: 0o755,
            },
        );
        long(&made.unwrap(), 0)
    }
}

fn ask(
    folder: &mut Folder,
    (uid, gid): (u32, u32),
    node: u64,
    operation: Operation<'_>,
) -> Result<Vec<u8>, Errno> {
    let header = Header {
        length: 0,
        opcode: 0,
        unique: 0,
        node,
        uid,
        gid,
    };
    let mut reply = Reply::default();
    let request = Request { header, operation };
    folder
        .call(&request, 4096, &mut reply)
        .map(|()| reply.bytes().to_vec())
}

fn name(text: &CStr) -> Name<'_> {
    Name::new(text).unwrap()
}

fn long(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn create(text: &CStr) -> Operation<'_> {
    let flags = libc::O_RDWR as u32;
    Operation::Create {
        name: name(text),
        flags,
        mode: 0o644,
        kill_privileges: false,
    }
}

fn nothing() -> SetAttributes {
    SetAttributes {
        handle: None,
        mode: None,
        uid: None,
        gid: None,
        size: None,
        atime: SetTime::Keep,
        mtime: SetTime::Keep,
        kill_privileges: false,
    }
}

#[test]
fn new_files_belong_to_who_asks_for_them() {
    if !rustix::process::geteuid().is_root() || keep_capabilities().is_err() {
        use std::io::Write;
        let _ = writeln!(
            std::io::stderr(),
            "SKIP new_files_belong_to_who_asks: not root"
        );
        return;
    }
    let mut share = Share::new(false, &SMALL);
    let guest = (1000, 2000);
    let directory = Operation::MakeDirectory {
        name: name(c"d"),
        mode: 0o755,
    };
    let made = ask(&mut share.folder, guest, ROOT, directory).unwrap();
    let mark = SetAttributes {
        mode: Some(0o2755),
        ..nothing()
    };
    share.ask(long(&made, 0), Operation::SetAttr(mark)).unwrap();
    // In a directory of root's, to which nobody else may write.
    ask(&mut share.folder, guest, ROOT, create(c"f")).unwrap();
    ask(
        &mut share.folder,
        (3000, 3000),
        long(&made, 0),
        create(c"in it"),
    )
    .unwrap();
    let link = Operation::Symlink {
        name: name(c"l"),
        target: c"f",
    };
    ask(&mut share.folder, guest, ROOT, link).unwrap();
    let place = share.inside("");
    let owner = |name: &str| {
        let metadata = fs::symlink_metadata(place.join(name)).unwrap();
        (metadata.uid(), metadata.gid())
    };
    for name in ["d", "f", "l"] {
        assert_eq!(owner(name), guest, "{name}");
    }
    assert_eq!(
        owner("d/in it"),
        (3000, 2000),
        "a group goes on with its mark"
    );
    share.ask(ROOT, create(c"own")).unwrap();
    assert_eq!(
        fs::metadata(share.inside("own")).unwrap().uid(),
        0,
        "the thread is itself again"
    );
    let nobody = ask(&mut share.folder, (u32::MAX, 0), ROOT, create(c"nobody's"));
    assert_eq!(nobody, Err(Errno::INVAL));
    assert!(!share.inside("nobody's").exists());
}

#[test]
fn attributes_are_changed_one_by_one() {
    let mut share = Share::new(false, &SMALL);
    fs::write(share.inside("f"), "0123456789").unwrap();
    let node = share.look_up(ROOT, c"f").unwrap();
    let change = SetAttributes {
        mode: Some(0o6751),
        size: Some(4),
        ..nothing()
    };
    let changed = share.ask(node, Operation::SetAttr(change)).unwrap();
    assert_eq!(long(&changed, 24), 4);
    let metadata = || fs::metadata(share.place.path().join("in/f")).unwrap();
    assert_eq!((metadata().mode() & 0o7777, metadata().len()), (0o6751, 4));
    let times = SetAttributes {
        mtime: SetTime::To(1_000_000_007, 5),
        ..nothing()
    };
    ask(&mut share.folder, (0, 0), node, Operation::SetAttr(times)).unwrap();
    assert_eq!(
        (metadata().mtime(), metadata().mtime_nsec()),
        (1_000_000_007, 5)
    );
    // Who may not keep them loses these bits with the first change.
    let cut = SetAttributes {
        size: Some(0),
        kill_privileges: true,
        ..nothing()
    };
    ask(&mut share.folder, (0, 0), node, Operation::SetAttr(cut)).unwrap();
    assert_eq!(metadata().mode() & 0o7777, 0o751);
    let nobody = SetAttributes {
        uid: Some(u32::MAX),
        ..nothing()
    };
    let refused = ask(&mut share.folder, (0, 0), node, Operation::SetAttr(nobody));
    assert_eq!(refused, Err(Errno::INVAL));
}

#[test]
fn users_own_extended_attributes_are_passed_on_and_no_others() {
    let mut share = Share::new(false, &SMALL);
    fs::write(share.inside("f"), "").unwrap();
    let node = share.look_up(ROOT, c"f").unwrap();
    let set = |name| Operation::SetXattr {
        name,
        value: b"blue",
        flags: 0,
    };
    if share.ask(node, set(c"user.colour")) == Err(Errno::OPNOTSUPP) {
        use std::io::Write;
        let _ = writeln!(
            std::io::stderr(),
            "SKIP users_own_extended_attributes: no such here"
        );
        return;
    }
    let get = |name, size| Operation::GetXattr { name, size };
    assert_eq!(share.ask(node, get(c"user.colour", 64)).unwrap(), b"blue");
    assert_eq!(
        share.ask(node, get(c"user.colour", 0)).unwrap()[..4],
        [4, 0, 0, 0]
    );
    assert_eq!(share.ask(node, get(c"user.colour", 1)), Err(Errno::RANGE));
    assert_eq!(
        share.ask(node, Operation::ListXattr { size: 64 }).unwrap(),
        b"user.colour\0"
    );
    for other in [
        c"security.capability",
        c"trusted.overlay.opaque",
        c"system.posix_acl_access",
    ] {
        assert_eq!(
            share.ask(node, set(other)),
            Err(Errno::OPNOTSUPP),
            "{other:?}"
        );
        assert_eq!(
            share.ask(node, get(other, 64)),
            Err(Errno::OPNOTSUPP),
            "{other:?}"
        );
    }
    share
        .ask(
            node,
            Operation::RemoveXattr {
                name: c"user.colour",
            },
        )
        .unwrap();
    assert_eq!(share.ask(node, get(c"user.colour", 64)), Err(Errno::NODATA));
}

#[test]
fn no_link_is_followed_and_nothing_odd_is_opened() {
    let mut share = Share::new(false, &SMALL);
    symlink("../out", share.inside("directory")).unwrap();
    symlink("../out/secret", share.inside("file")).unwrap();
    let directory = share.look_up(ROOT, c"directory").unwrap();
    let file = share.look_up(ROOT, c"file").unwrap();
    let target = share.ask(file, Operation::ReadLink).unwrap();
    assert_eq!(target, b"../out/secret");
    assert!(share.look_up(directory, c"secret").is_err());
    assert!(share.ask(directory, Operation::OpenDirectory).is_err());
    assert_eq!(share.open(file, libc::O_RDONLY), Err(Errno::LOOP));
    assert!(share.ask(ROOT, create(c"file")).is_err());
    // The link itself gets another name, not what it names.
    let link = Operation::Link {
        source: file,
        name: name(c"again"),
    };
    share.ask(ROOT, link).unwrap();
    assert!(
        fs::symlink_metadata(share.inside("again"))
            .unwrap()
            .is_symlink()
    );
    // A pipe can be made, and is opened by the guest's kernel only.
    let mode = libc::S_IFIFO | 0o600;
    share
        .ask(
            ROOT,
            Operation::MakeNode {
                name: name(c"pipe"),
                mode,
            },
        )
        .unwrap();
    let pipe = share.look_up(ROOT, c"pipe").unwrap();
    assert_eq!(share.open(pipe, libc::O_RDONLY), Err(Errno::OPNOTSUPP));
    assert_eq!(share.ask(ROOT, create(c"pipe")), Err(Errno::OPNOTSUPP));
    let mode = libc::S_IFCHR | 0o600;
    let device = Operation::MakeNode {
        name: name(c"null"),
        mode,
    };
    assert_eq!(share.ask(ROOT, device), Err(Errno::PERM));
    for bad in [c"", c".", c"..", c"a/b", c"/"] {
        assert_eq!(Name::new(bad), Err(Errno::INVAL), "{bad:?}");
    }
}

#[test]
fn more_files_can_be_known_than_are_kept_open() {
    let mut share = Share::new(
        false,
        &FolderLimits {
            nodes: 200,
            ..SMALL
        },
    );
    let deep = share.make_directory(ROOT, c"deep");
    let deeper = share.make_directory(deep, c"deeper");
    let mut nodes = Vec::new();
    for number in 0..100 {
        let text = CString::new(format!("f{number}")).unwrap();
        fs::write(
            share.inside("deep/deeper").join(format!("f{number}")),
            "x".repeat(number),
        )
        .unwrap();
        nodes.push(share.look_up(deeper, &text).unwrap());
    }
    for round in 0..2 {
        for (number, &node) in nodes.iter().enumerate() {
            let told = share
                .ask(node, Operation::GetAttr { handle: None })
                .unwrap();
            assert_eq!(long(&told, 24), number as u64, "round {round}");
        }
        let (_, open) = share.folder.nodes.count();
        assert!(open <= SMALL.cached_files, "{open}");
        // What the guest moves is found again, with all below it.
        let (from, to) = if round == 0 {
            (c"deep", c"moved")
        } else {
            (c"moved", c"deep")
        };
        let rename = Operation::Rename {
            name: name(from),
            to: ROOT,
            new_name: name(to),
            flags: 0,
        };
        share.ask(ROOT, rename).unwrap();
    }
    // What the host put in the place of another is another file.
    fs::remove_file(share.inside("deep/deeper/f7")).unwrap();
    fs::create_dir(share.inside("deep/deeper/f7")).unwrap();
    let told = share.ask(nodes[7], Operation::GetAttr { handle: None });
    assert_eq!(told, Err(Errno::STALE));
    // The guest forgets, and its numbers mean nothing any more.
    for node in &nodes {
        share.ask(*node, Operation::Forget { lookups: 1 }).unwrap();
    }
    assert_eq!(share.folder.nodes.count().0, 3);
    let told = share.ask(nodes[1], Operation::GetAttr { handle: None });
    assert_eq!(told, Err(Errno::STALE));
}

#[test]
fn a_file_without_a_name_can_still_be_used() {
    let mut share = Share::new(false, &SMALL);
    let made = share.ask(ROOT, create(c"f")).unwrap();
    let (node, handle) = (long(&made, 0), long(&made, 128));
    share
        .ask(ROOT, Operation::Unlink { name: name(c"f") })
        .unwrap();
    for number in 0..10 {
        let text = CString::new(format!("d{number}")).unwrap();
        let other = share.make_directory(ROOT, &text);
        share
            .ask(other, Operation::GetAttr { handle: None })
            .unwrap();
    }
    let told = share
        .ask(node, Operation::GetAttr { handle: None })
        .unwrap();
    assert_eq!(long(&told, 16 + 64) as u32, 0, "it has no names");
    let cut = SetAttributes {
        size: Some(9),
        handle: Some(handle),
        ..nothing()
    };
    assert_eq!(
        long(&share.ask(node, Operation::SetAttr(cut)).unwrap(), 24),
        9
    );
    share.ask(node, Operation::Release { handle }).unwrap();
    assert_eq!(share.folder.handles.count(), 0);
}

#[test]
fn a_guest_holds_no_more_of_the_host_than_it_may() {
    let mut share = Share::new(false, &SMALL);
    let mut handles = Vec::new();
    let made = share.ask(ROOT, create(c"f")).unwrap();
    handles.push(long(&made, 128));
    loop {
        match share.open(long(&made, 0), libc::O_RDONLY) {
            Ok(handle) => handles.push(handle),
            Err(error) => break assert_eq!(error, Errno::NFILE),
        }
    }
    assert_eq!(handles.len(), SMALL.open_files);
    assert_eq!(share.ask(ROOT, Operation::OpenDirectory), Err(Errno::NFILE));
    assert_eq!(share.ask(ROOT, create(c"g")), Err(Errno::NFILE));
    assert!(!share.inside("g").exists());
    share
        .ask(ROOT, Operation::Release { handle: handles[0] })
        .unwrap();
    assert!(share.open(long(&made, 0), libc::O_RDONLY).is_ok());

    let known = (0..1000).find(|number| {
        fs::write(share.inside(&format!("n{number}")), "").unwrap();
        let text = CString::new(format!("n{number}")).unwrap();
        share.look_up(ROOT, &text) == Err(Errno::NFILE)
    });
    assert_eq!(
        known,
        Some(SMALL.nodes - 2),
        "the root and one more were known before"
    );
    // A listing goes on, with less told.
    let handle = handles[1];
    share.ask(ROOT, Operation::Release { handle }).unwrap();
    let handle = long(&share.ask(ROOT, Operation::OpenDirectory).unwrap(), 0);
    let list = Operation::ReadDirectory {
        handle,
        offset: 0,
        size: 4096,
        plus: true,
    };
    assert!(!share.ask(ROOT, list).unwrap().is_empty());
    assert_eq!(share.folder.nodes.count().0, SMALL.nodes);
    // A new greeting starts anew.
    let hello = Operation::Init {
        major: 7,
        minor: 31,
        max_readahead: 0,
        flags: 0,
    };
    share.ask(ROOT, hello).unwrap();
    assert_eq!(
        (share.folder.nodes.count(), share.folder.handles.count()),
        ((1, 0), 0)
    );
}

#[test]
fn listings_are_whole_whatever_fits_into_an_answer() {
    let mut share = Share::new(
        false,
        &FolderLimits {
            nodes: 1000,
            ..SMALL
        },
    );
    for number in 0..300 {
        fs::write(share.inside(&format!("file number {number}")), "").unwrap();
    }
    for plus in [false, true] {
        let handle = long(&share.ask(ROOT, Operation::OpenDirectory).unwrap(), 0);
        let (mut offset, mut names) = (0, Vec::new());
        loop {
            let list = Operation::ReadDirectory {
                handle,
                offset,
                size: 700,
                plus,
            };
            let bytes = share.ask(ROOT, list).unwrap();
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                let entry = if plus { 128 } else { 0 };
                let length = long(rest, entry + 16) as u32 as usize;
                offset = long(rest, entry + 8);
                let name = &rest[entry + 24..entry + 24 + length];
                names.push(String::from_utf8(name.to_vec()).unwrap());
                assert_eq!(plus && !name.starts_with(b"."), plus && long(rest, 0) != 0);
                rest = &rest[(entry + 24 + length).next_multiple_of(8)..];
            }
            if bytes.is_empty() {
                break;
            }
        }
        names.sort();
        names.dedup();
        assert_eq!(names.len(), 302, "with . and ..");
        let tiny = Operation::ReadDirectory {
            handle,
            offset: 0,
            size: 20,
            plus,
        };
        assert_eq!(share.ask(ROOT, tiny), Err(Errno::INVAL));
    }
}

#[test]
fn what_is_read_only_stays_as_it_is() {
    let mut share = Share::new(true, &SMALL);
    fs::write(share.inside("f"), "kept").unwrap();
    let node = share.look_up(ROOT, c"f").unwrap();
    let operations = [
        create(c"new"),
        create(c"f"),
        Operation::MakeDirectory {
            name: name(c"new"),
            mode: 0o755,
        },
        Operation::Symlink {
            name: name(c"new"),
            target: c"f",
        },
        Operation::MakeNode {
            name: name(c"new"),
            mode: libc::S_IFREG,
        },
        Operation::Link {
            source: node,
            name: name(c"new"),
        },
        Operation::Unlink { name: name(c"f") },
        Operation::Rename {
            name: name(c"f"),
            to: ROOT,
            new_name: name(c"new"),
            flags: 0,
        },
        Operation::SetAttr(SetAttributes {
            mode: Some(0),
            ..nothing()
        }),
        Operation::SetXattr {
            name: c"user.a",
            value: b"",
            flags: 0,
        },
    ];
    for operation in operations {
        assert_eq!(
            share.ask(ROOT, operation),
            Err(Errno::ROFS),
            "{operation:?}"
        );
    }
    for flags in [libc::O_WRONLY, libc::O_RDWR, libc::O_RDONLY | libc::O_TRUNC] {
        assert_eq!(share.open(node, flags), Err(Errno::ROFS), "{flags:#o}");
    }
    assert!(share.open(node, libc::O_RDONLY).is_ok());
    assert_eq!(fs::read(share.inside("f")).unwrap(), b"kept");
    assert_eq!(fs::read_dir(share.inside("")).unwrap().count(), 1);
}

/// Names a guest could think of: few, so that steps meet.
const NAMES: [&CStr; 4] = [c"a", c"b", c"secret", c"out"];
const TARGETS: [&CStr; 3] = [c"../out/secret", c"../out", c"a"];

/// Something a guest asks for, or its host does meanwhile.
fn step(share: &mut Share, nodes: &[u64], choices: [u8; 6]) -> Option<u64> {
    let [what, first, second, third, fourth, flags] = choices;
    let node = |choice: u8| match choice {
        ..128 => ROOT,
        _ => nodes[usize::from(choice) % nodes.len()],
    };
    let text = |choice: u8| name(NAMES[usize::from(choice) % NAMES.len()]);
    let (directory, name) = (node(first), text(second));
    let handle = u64::from(third) % 12;
    let operation = match what % 24 {
        0 | 1 => Operation::Lookup { name },
        2 | 20 | 21 => Operation::Create {
            name,
            flags: flags.into(),
            mode: 0o777,
            kill_privileges: true,
        },
        3 => Operation::MakeDirectory { name, mode: 0o755 },
        4 | 22 => Operation::Symlink {
            name,
            target: TARGETS[usize::from(third) % TARGETS.len()],
        },
        5 => Operation::Unlink { name },
        6 => Operation::RemoveDirectory { name },
        7 => Operation::Rename {
            name,
            to: node(third),
            new_name: text(fourth),
            flags: u32::from(flags % 4),
        },
        8 => Operation::Link {
            source: node(third),
            name,
        },
        9 | 23 => Operation::Open {
            flags: u32::from(flags) << 4 | u32::from(third % 4),
            kill_privileges: true,
        },
        10 => Operation::OpenDirectory,
        11 => Operation::ReadDirectory {
            handle,
            offset: 0,
            size: 4096,
            plus: flags & 1 != 0,
        },
        12 => Operation::SetAttr(SetAttributes {
            mode: (flags & 1 != 0).then_some(0o700),
            size: (flags & 2 != 0).then_some(third.into()),
            uid: (flags & 4 != 0).then_some(7),
            atime: SetTime::Now,
            ..nothing()
        }),
        13 => Operation::Release { handle },
        14 => Operation::Forget {
            lookups: u64::from(third) + 1,
        },
        15 => Operation::GetAttr {
            handle: (flags & 1 != 0).then_some(handle),
        },
        16 => Operation::CopyRange {
            from: handle,
            from_offset: 0,
            to: u64::from(fourth) % 12,
            to_offset: 0,
            length: 100,
        },
        17 => Operation::SetXattr {
            name: c"user.x",
            value: b"y",
            flags: 0,
        },
        // A directory becomes a link that leads out, and the other way round.
        18 => {
            let path = share.inside(name.as_c_str().to_str().unwrap());
            let aside = share.inside("aside");
            let _ = fs::rename(&path, &aside);
            let _ = symlink("../out", &path);
            return None;
        }
        _ => {
            let path = share.inside(name.as_c_str().to_str().unwrap());
            let _ = fs::remove_file(&path);
            let _ = fs::rename(share.inside("aside"), path);
            return None;
        }
    };
    let told = share.ask(directory, operation).ok()?;
    // Entries tell of nodes.
    (told.len() >= 128 && !matches!(operation, Operation::ReadDirectory { .. }))
        .then(|| long(&told, 0))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn no_guest_reaches_beyond_its_folder(steps in prop::collection::vec(any::<[u8; 6]>(), 1..120)) {
        let mut share = Share::new(false, &FolderLimits { nodes: 12, ..SMALL });
        let out = share.place.path().join("out");
        let look = || {
            let of = |path: PathBuf| {
                let it = fs::symlink_metadata(path).unwrap();
                (it.ino(), it.mode(), it.uid(), it.len(), it.nlink(), it.ctime(), it.ctime_nsec())
            };
            let names = fs::read_dir(&out).unwrap().count();
            (of(out.clone()), of(out.join("secret")), names)
        };
        let before = look();
        let mut nodes = vec![ROOT, 0, 99];
        for choices in steps {
            nodes.extend(step(&mut share, &nodes, choices));
            let (known, open) = share.folder.nodes.count();
            prop_assert!(known <= 12 && open <= SMALL.cached_files);
            prop_assert!(share.folder.handles.count() <= SMALL.open_files);
        }
        prop_assert_eq!(look(), before);
        // Nor does it hold anything open that lies there, or above.
        let forbidden = [before.0.0, before.1.0, fs::metadata(share.place.path()).unwrap().ino()];
        for node in nodes {
            if let Ok(file) = share.folder.nodes.file(node) {
                prop_assert!(!forbidden.contains(&system::stat(&file).unwrap().stx_ino));
            }
        }
        for handle in 0..100 {
            if let Ok(file) = share.folder.handles.any(handle) {
                prop_assert!(!forbidden.contains(&system::stat(&file).unwrap().stx_ino));
            }
        }
    }
}
