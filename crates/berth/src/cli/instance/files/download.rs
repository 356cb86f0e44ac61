//! Out of an instance: an archive unpacked here.
//!
//! It is hostile: it is read with limits and unpacked below the target only, without devices and, unless
//! asked for, owners and set-user-id bits, and never through a symbolic link that it brought itself.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io::{self, BufRead},
    os::{
        fd::AsFd,
        unix::{
            ffi::OsStrExt,
            fs::{FileExt, OpenOptionsExt},
        },
    },
    path::{Component, Path, PathBuf},
};

use image::tar::{Entry, Kind, Reader, Segment};
use rustix::{
    fs::{Gid, Mode, OFlags, Timespec, Timestamps, Uid},
    io::Errno,
};
use tokio::sync::mpsc;

use super::{IN_FLIGHT, Parts, contents, feed};
use crate::cli::{
    Context,
    exit::{Failure, Outcome},
    progress::Transfer,
};

/// Entries an archive may have.
const MAX_ENTRIES: u64 = 4_000_000;

/// What becomes of the name that all paths of an archive begin with.
#[derive(Debug)]
enum Top {
    /// It stays.
    Keep,
    /// It becomes another.
    Rename(OsString),
    /// It goes: only what is in it is wanted.
    Leave,
}

/// Copies a path of an instance to a path here: below it if it is a directory, else as it.
pub(super) async fn download(
    cx: &Context,
    name: &str,
    path: &str,
    target: PathBuf,
    archived: bool,
) -> Outcome {
    let (below, top) = landing(path, target)?;
    // What is refused leaves nothing behind here.
    let mut bytes = cx.client.get_files(name, path).await?;
    if contents(path) == Some("") && !below.is_dir() {
        std::fs::create_dir(&below)?;
    }
    let (send, receive) = mpsc::channel(IN_FLIGHT);
    let unpacking = tokio::task::spawn_blocking(move || {
        let reader = io::BufReader::with_capacity(64 << 10, Parts::new(receive));
        unpack(reader, &below, &top, archived)
    });
    let transfer = Transfer::new(cx, format!("from {name}:{path}"));
    let received = feed(&mut bytes, send, &transfer).await;
    let unpacked = unpacking
        .await
        .map_err(|error| Failure::error(format!("unpacking failed: {error}")))?;
    drop(transfer);
    // A broken connection explains a broken archive, not the other way round.
    received?;
    unpacked
        .map_err(|error| Failure::error(format!("{name}:{path} cannot be written here: {error}")))
}

/// Where an archive of `path` goes, and what becomes of its top.
fn landing(path: &str, target: PathBuf) -> Outcome<(PathBuf, Top)> {
    // The archive of the root has no top to begin with.
    let is_root = contents(path) == Some("");
    if target.is_dir() {
        let top = match contents(path) {
            Some(inside) if !inside.is_empty() => Top::Leave,
            _ => Top::Keep,
        };
        return Ok((target, top));
    }
    let wants_directory = target.as_os_str().as_encoded_bytes().ends_with(b"/");
    let parent = match target.parent() {
        Some(parent) if parent != Path::new("") => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    let missing = if wants_directory { &target } else { &parent };
    if !missing.is_dir() {
        let missing = missing.display();
        return Err(Failure::usage(format!("there is no directory {missing}"))
            .advise(format!("make it first: mkdir -p {missing}")));
    }
    let Some(file_name) = target.file_name().map(ToOwned::to_owned) else {
        let target = target.display();
        return Err(Failure::usage(format!("{target} cannot be a target")));
    };
    if is_root {
        return Ok((target, Top::Keep));
    }
    Ok((parent, Top::Rename(file_name)))
}

/// Unpacks an archive below a directory.
fn unpack(input: impl BufRead, below: &Path, top: &Top, archived: bool) -> io::Result<()> {
    let limits = image::Limits {
        layer_bytes: u64::MAX,
        ..image::Limits::default()
    };
    let mut reader = Reader::new(input, &limits);
    let mut directories = Vec::new();
    let mut count = 0;
    while let Some(entry) = reader.next_entry().map_err(io::Error::other)? {
        count += 1;
        if count > MAX_ENTRIES {
            return Err(io::Error::other(format!("more than {MAX_ENTRIES} files")));
        }
        if matches!(entry.kind, Kind::Char | Kind::Block | Kind::Fifo) {
            // Devices and pipes mean nothing here.
            continue;
        }
        let Some(relative) = place(&entry.path, top)? else {
            continue;
        };
        let looks = Looks::of(&entry, archived);
        let target = below.join(&relative);
        match entry.kind {
            Kind::Directory => {
                make_directory(below, &relative)?;
                directories.push((relative, looks));
                continue;
            }
            _ => inside(below, &relative)?,
        }
        match entry.kind {
            Kind::HardLink => {
                let Some(linked) = place(&entry.link, top)? else {
                    continue;
                };
                inside(below, &linked)?;
                copy_link(&below.join(linked), &target)?;
            }
            Kind::Symlink => {
                free(&target)?;
                std::os::unix::fs::symlink(OsStr::from_bytes(&entry.link), &target)?;
                looks.give_to_link(&target)?;
            }
            _ => looks.give(&write(&target, &entry, &mut reader)?)?,
        }
    }
    reader.drain().map_err(io::Error::other)?;
    // Last, because what is put into a directory changes its time, and may need leave to.
    for (relative, looks) in directories.iter().rev() {
        inside(below, relative)?;
        looks.give_to_directory(&below.join(relative))?;
    }
    Ok(())
}

/// Writes a file in place of what has its name, holes left out.
fn write<R: BufRead>(target: &Path, entry: &Entry, reader: &mut Reader<R>) -> io::Result<File> {
    free(target)?;
    let mut options = File::options();
    let file = options
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(target)?;
    let whole = [Segment {
        offset: 0,
        length: entry.size,
    }];
    let mut segments = entry.sparse.as_deref().unwrap_or(&whole).iter();
    let (mut offset, mut left) = (0, 0);
    let written = reader.copy_data(|mut data| {
        while !data.is_empty() {
            while left == 0 {
                let next = segments.next();
                let next = next.ok_or_else(|| io::Error::other("it is longer than it says"))?;
                (offset, left) = (next.offset, next.length);
            }
            let count = data.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            file.write_all_at(&data[..count], offset)?;
            offset += count as u64;
            left -= count as u64;
            data = &data[count..];
        }
        Ok(())
    });
    written.map_err(io::Error::other)?;
    file.set_len(entry.size)?;
    Ok(file)
}

/// Makes a name free for something that is no directory.
fn free(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Permissions, owner and time.
struct Looks {
    mode: u32,
    /// Given only when asked for, and then permissions are kept whole.
    owner: Option<(u32, u32)>,
    written: (i64, u32),
}

impl Looks {
    fn of(entry: &Entry, archived: bool) -> Self {
        let kept = if archived { 0o7777 } else { 0o777 };
        Self {
            mode: entry.mode & kept,
            owner: archived.then_some((entry.uid, entry.gid)),
            written: entry.mtime,
        }
    }

    /// Gives them to a directory, unless a link has taken its place.
    fn give_to_directory(&self, path: &Path) -> io::Result<()> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match rustix::fs::open(path, flags, Mode::empty()) {
            Ok(directory) => self.give(&directory),
            // What was copied forbids its owner to look: it is as it should be already.
            Err(Errno::NOTDIR | Errno::LOOP | Errno::ACCESS) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    fn give(&self, file: &impl AsFd) -> io::Result<()> {
        if let Some((user, group)) = self.owner {
            let (user, group) = (Uid::from_raw(user), Gid::from_raw(group));
            rustix::fs::fchown(file, Some(user), Some(group))?;
        }
        // After the owner, whose change takes set-user-id bits away.
        rustix::fs::fchmod(file, Mode::from_raw_mode(self.mode))?;
        let (tv_sec, nanos) = self.written;
        let written = Timespec {
            tv_sec,
            tv_nsec: nanos.into(),
        };
        let times = Timestamps {
            last_access: written,
            last_modification: written,
        };
        Ok(rustix::fs::futimens(file, &times)?)
    }

    fn give_to_link(&self, path: &Path) -> io::Result<()> {
        match self.owner {
            Some((user, group)) => std::os::unix::fs::lchown(path, Some(user), Some(group)),
            None => Ok(()),
        }
    }
}

/// A hard link becomes a copy, of nothing but a plain file and over no symbolic link: both could
/// be ours.
fn copy_link(from: &Path, to: &Path) -> io::Result<()> {
    if !std::fs::symlink_metadata(from)?.is_file() {
        return Err(io::Error::other(format!(
            "{} is not a file to link to",
            from.display()
        )));
    }
    free(to)?;
    std::fs::copy(from, to).map(drop)
}

fn make_directory(below: &Path, relative: &Path) -> io::Result<()> {
    inside(below, relative)?;
    match std::fs::symlink_metadata(below.join(relative)) {
        Ok(there) if there.is_dir() => Ok(()),
        _ => std::fs::create_dir(below.join(relative)),
    }
}

/// Where an entry goes below the target; `None` for the target itself.
fn place(found: &[u8], top: &Top) -> io::Result<Option<PathBuf>> {
    let found = Path::new(OsStr::from_bytes(found));
    let mut placed = PathBuf::new();
    let mut parts = 0;
    for part in found.components() {
        match part {
            Component::CurDir => {}
            Component::Normal(name) => {
                parts += 1;
                match top {
                    Top::Leave if parts == 1 => {}
                    Top::Rename(other) if parts == 1 => placed.push(other),
                    _ => placed.push(name),
                }
            }
            _ => {
                return Err(io::Error::other(format!(
                    "the path {found:?} leads outside"
                )));
            }
        }
    }
    Ok((placed != Path::new("")).then_some(placed))
}

/// Makes sure that no directory on the way to an entry is a symbolic link; makes those missing.
fn inside(below: &Path, relative: &Path) -> io::Result<()> {
    let mut path = below.to_owned();
    for part in relative.parent().into_iter().flat_map(Path::components) {
        path.push(part);
        match std::fs::symlink_metadata(&path) {
            Ok(there) if there.is_dir() => {}
            Ok(_) => {
                return Err(io::Error::other(format!(
                    "{} is in the way",
                    path.display()
                )));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => std::fs::create_dir(&path)?,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(fill: impl FnOnce(&mut tar::Builder<Vec<u8>>)) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        fill(&mut builder);
        builder.into_inner().unwrap()
    }

    fn entry(builder: &mut tar::Builder<Vec<u8>>, kind: tar::EntryType, path: &[u8], link: &str) {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(0o4755);
        header.as_mut_bytes()[..path.len()].copy_from_slice(path);
        if !link.is_empty() {
            header.set_link_name_literal(link).unwrap();
        }
        header.set_size(if kind.is_file() { 4 } else { 0 });
        header.set_cksum();
        builder
            .append(&header, &b"evil"[..if kind.is_file() { 4 } else { 0 }])
            .unwrap();
    }

    #[test]
    fn nothing_gets_out_of_the_target() {
        use std::os::unix::fs::PermissionsExt;
        use tar::EntryType as Type;
        let dir = tempfile::tempdir().unwrap();
        let outside = dir.path().join("outside");
        std::fs::create_dir(&outside).unwrap();
        let link = outside.to_str().unwrap().to_owned();
        type Fill<'a> = Box<dyn Fn(&mut tar::Builder<Vec<u8>>) + 'a>;
        let hostile: Vec<Fill<'_>> = vec![
            Box::new(|b| entry(b, Type::Regular, b"../outside/x", "")),
            Box::new(|b| entry(b, Type::Regular, b"/outside/x", "")),
            Box::new(|b| {
                entry(b, Type::Symlink, b"d", &link);
                entry(b, Type::Regular, b"d/x", "");
            }),
            Box::new(|b| {
                entry(b, Type::Symlink, b"d", &link);
                entry(b, Type::Directory, b"d/sub", "");
            }),
            Box::new(|b| {
                entry(b, Type::Regular, b"a/f", "");
                entry(b, Type::Symlink, b"a/d", &link);
                entry(b, Type::Link, b"a/d/x", "a/f");
            }),
            Box::new(|b| entry(b, Type::Link, b"stolen", "../secret")),
            Box::new(|b| {
                entry(b, Type::Symlink, b"l", &format!("{link}/../secret"));
                entry(b, Type::Link, b"stolen", "l");
            }),
        ];
        std::fs::write(dir.path().join("secret"), "mine").unwrap();
        for (number, fill) in hostile.iter().enumerate() {
            let target = dir.path().join(format!("t{number}"));
            std::fs::create_dir(&target).unwrap();
            assert!(
                unpack(&archive(fill)[..], &target, &Top::Keep, false).is_err(),
                "{number}"
            );
            assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0, "{number}");
            assert!(!target.join("stolen").exists());
        }
        // Over a symbolic link that it brought: the link goes, what it leads to stays.
        let target = dir.path().join("over");
        std::fs::create_dir(&target).unwrap();
        let over = archive(|b| {
            entry(b, Type::Regular, b"f", "");
            for name in [b"l", b"m"] {
                entry(b, Type::Symlink, name, &format!("{link}/../secret"));
            }
            entry(b, Type::Link, b"l", "f");
            entry(b, Type::Regular, b"m", "");
        });
        unpack(&over[..], &target, &Top::Keep, false).unwrap();
        assert_eq!(
            std::fs::read_to_string(dir.path().join("secret")).unwrap(),
            "mine"
        );

        let target = dir.path().join("good");
        std::fs::create_dir(&target).unwrap();
        let good = archive(|b| {
            entry(b, Type::Directory, b"etc/", "");
            entry(b, Type::Regular, b"etc/f", "");
            entry(b, Type::Char, b"etc/null", "");
            entry(b, Type::Link, b"etc/g", "etc/f");
        });
        unpack(&good[..], &target, &Top::Rename("conf".into()), false).unwrap();
        let file = target.join("conf/f");
        assert_eq!(
            std::fs::read_to_string(target.join("conf/g")).unwrap(),
            "evil"
        );
        assert_eq!(
            std::fs::metadata(file).unwrap().permissions().mode() & 0o7000,
            0
        );
        assert!(!target.join("conf/null").exists());
        unpack(&good[..], &target, &Top::Leave, false).unwrap();
        assert!(target.join("f").exists());
    }

    #[test]
    fn targets_are_as_for_cp() {
        let dir = tempfile::tempdir().unwrap();
        let (here, there) = (dir.path().to_owned(), dir.path().join("new"));
        let lands = |path: &str, target: &Path| {
            let (below, top) = landing(path, target.to_owned()).map_err(|_| ())?;
            let (found, own) = (&b"etc/hosts"[..], &b"hosts"[..]);
            let found = if contents(path) == Some("") {
                own
            } else {
                found
            };
            Ok::<_, ()>(below.join(place(found, &top).unwrap().unwrap()))
        };
        assert_eq!(lands("/etc", &here), Ok(here.join("etc/hosts")));
        assert_eq!(lands("/etc/", &here), Ok(here.join("etc/hosts")));
        assert_eq!(lands("/etc/.", &here), Ok(here.join("hosts")));
        assert_eq!(lands("/etc", &there), Ok(there.join("hosts")));
        assert_eq!(lands("/etc/.", &there), Ok(there.join("hosts")));
        assert_eq!(lands("/", &here), Ok(here.join("hosts")));
        assert_eq!(lands("/.", &there), Ok(there.join("hosts")));
        assert_eq!(lands("/etc", &dir.path().join("new/")), Err(()));
        assert_eq!(lands("/etc", &there.join("deeper")), Err(()));
    }

    #[test]
    fn a_cut_archive_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let whole = archive(|b| entry(b, tar::EntryType::Regular, b"f", ""));
        assert!(unpack(&whole[..514], dir.path(), &Top::Keep, false).is_err());
    }
}
