//! Out of an instance: an archive unpacked here.
//!
//! It is hostile: it is unpacked below the target only, without devices and, unless asked for,
//! owners and set-user-id bits, and never through a symbolic link that it brought itself.

use std::{
    ffi::OsString,
    io::{self, Read},
    path::{Component, Path, PathBuf},
};

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
fn unpack(reader: impl Read, below: &Path, top: &Top, archived: bool) -> io::Result<()> {
    let mut archive = tar::Archive::new(reader);
    archive.set_preserve_ownerships(archived);
    let mut directories = Vec::new();
    for (count, entry) in archive.entries()?.enumerate() {
        if count as u64 >= MAX_ENTRIES {
            return Err(io::Error::other(format!("more than {MAX_ENTRIES} files")));
        }
        let mut entry = entry?;
        let kind = entry.header().entry_type();
        if !(kind.is_file() || kind.is_dir() || kind.is_symlink() || kind.is_hard_link()) {
            // Devices, sockets and pipes mean nothing here.
            continue;
        }
        let found = entry.path()?.into_owned();
        let Some(relative) = place(&found, top)? else {
            continue;
        };
        entry.set_preserve_permissions(archived);
        if kind.is_dir() {
            make_directory(below, &relative)?;
            directories.push((relative, Looks::of(entry.header(), archived)?));
            continue;
        }
        let target = below.join(&relative);
        inside(below, &relative)?;
        if kind.is_hard_link() {
            let linked = entry.link_name()?.map(std::borrow::Cow::into_owned);
            let Some(linked) = linked.map(|path| place(&path, top)).transpose()?.flatten() else {
                continue;
            };
            inside(below, &linked)?;
            copy_link(&below.join(linked), &target)?;
            continue;
        }
        entry.unpack(&target)?;
    }
    // Last, because what is put into a directory changes its time, and may need leave to.
    for (relative, looks) in directories.iter().rev() {
        inside(below, relative)?;
        looks.give(&below.join(relative))?;
    }
    Ok(())
}

/// Permissions, owner and time of a directory.
struct Looks {
    mode: u32,
    /// Given only when asked for, and then permissions are kept whole.
    owner: Option<(u32, u32)>,
    written: u64,
}

impl Looks {
    fn of(header: &tar::Header, archived: bool) -> io::Result<Self> {
        let id = |id: u64| u32::try_from(id).map_err(|_| io::Error::other("an owner is no id"));
        let owner = if archived {
            Some((id(header.uid()?)?, id(header.gid()?)?))
        } else {
            None
        };
        let kept = if archived { 0o7777 } else { 0o777 };
        Ok(Self {
            mode: header.mode()? & kept,
            owner,
            written: header.mtime()?,
        })
    }

    /// Gives them to a directory, unless a link has taken its place.
    fn give(&self, path: &Path) -> io::Result<()> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = match rustix::fs::open(path, flags, Mode::empty()) {
            Ok(directory) => directory,
            // What was copied forbids its owner to look: it is as it should be already.
            Err(Errno::NOTDIR | Errno::LOOP | Errno::ACCESS) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        };
        if let Some((user, group)) = self.owner {
            let (user, group) = (Uid::from_raw(user), Gid::from_raw(group));
            rustix::fs::fchown(&directory, Some(user), Some(group))?;
        }
        rustix::fs::fchmod(&directory, Mode::from_raw_mode(self.mode))?;
        let written = Timespec {
            tv_sec: i64::try_from(self.written).unwrap_or(0),
            tv_nsec: 0,
        };
        let times = Timestamps {
            last_access: written,
            last_modification: written,
        };
        Ok(rustix::fs::futimens(&directory, &times)?)
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
    match std::fs::remove_file(to) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
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
fn place(found: &Path, top: &Top) -> io::Result<Option<PathBuf>> {
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
            let (found, own) = (Path::new("etc/hosts"), Path::new("hosts"));
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
