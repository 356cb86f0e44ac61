//! Who a program runs as: `user[:group]`, by name or number, looked up in the guest's own
//! `/etc/passwd` and `/etc/group` (passwd(5), group(5)). The files are the guest's: read inside
//! its root without following anything out, with limits.

use std::{
    fs::File,
    io::Read,
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};

/// Bytes of either file that are read.
const MAX_BYTES: u64 = 1 << 20;
/// Supplementary groups.
const MAX_GROUPS: usize = 1024;

/// Numbers inside the guest.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Identity {
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) groups: Vec<u32>,
    pub(super) home: String,
}

/// Where the guest's files are: its root while it runs, else its changes and layers, topmost
/// first.
pub(super) struct Files {
    roots: Vec<OwnedFd>,
}

impl Files {
    /// Below these directories, the first one that has a file wins. Those that are missing are
    /// passed over.
    pub(super) fn below(roots: impl IntoIterator<Item = PathBuf>) -> Self {
        let open = |path: PathBuf| {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            rustix::fs::openat(CWD, path, flags, Mode::empty()).ok()
        };
        Self {
            roots: roots.into_iter().filter_map(open).collect(),
        }
    }

    fn read(&self, path: &str) -> String {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        for root in &self.roots {
            let opened = rustix::fs::openat2(root.as_fd(), path, flags, Mode::empty(), resolve);
            let Ok(opened) = opened else { continue };
            let file = File::from(opened);
            if !file.metadata().is_ok_and(|metadata| metadata.is_file()) {
                continue;
            }
            let mut bytes = Vec::new();
            // What cannot be read is as if it were empty.
            let _ = file.take(MAX_BYTES).read_to_end(&mut bytes);
            return String::from_utf8_lossy(&bytes).into_owned();
        }
        String::new()
    }
}

/// Looks an identity up.
///
/// # Errors
/// What is wrong with `user`, for the user.
pub(super) fn resolve(user: Option<&str>, files: &Files) -> Result<Identity, String> {
    let user = user.unwrap_or("0");
    let (name, group) = match user.split_once(':') {
        Some((name, group)) => (name, Some(group)),
        None => (user, None),
    };
    let passwd = files.read("etc/passwd");
    let groups = files.read("etc/group");
    let entry = passwd
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .find(|fields| {
            fields.len() >= 6 && (fields[0] == name || (is_number(name) && fields[2] == name))
        });
    let mut identity = match &entry {
        Some(fields) => Identity {
            uid: number(fields[2]).ok_or_else(|| damaged("passwd"))?,
            gid: number(fields[3]).ok_or_else(|| damaged("passwd"))?,
            groups: Vec::new(),
            home: fields[5].to_owned(),
        },
        None => {
            let uid = number(name).ok_or_else(|| {
                format!("the image has no user {name:?}; name one of its /etc/passwd, or a number")
            })?;
            Identity {
                uid,
                home: "/".to_owned(),
                ..Identity::default()
            }
        }
    };
    match group {
        Some(group) => identity.gid = group_id(group, &groups)?,
        // Only who comes with a name and no group of their own is a member of others.
        None => {
            let name = entry.as_ref().map_or(name, |fields| fields[0]);
            identity.groups = memberships(name, &groups);
        }
    }
    Ok(identity)
}

fn group_id(group: &str, text: &str) -> Result<u32, String> {
    if let Some(gid) = number(group) {
        return Ok(gid);
    }
    let found = text
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .find_map(|fields| (fields.len() >= 3 && fields[0] == group).then(|| number(fields[2]))?);
    found.ok_or_else(|| {
        format!("the image has no group {group:?}; name one of its /etc/group, or a number")
    })
}

fn memberships(name: &str, text: &str) -> Vec<u32> {
    text.lines()
        .filter_map(|line| {
            let fields: Vec<&str> = line.split(':').collect();
            let member = fields.len() >= 4 && fields[3].split(',').any(|member| member == name);
            if member { number(fields[2]) } else { None }
        })
        .take(MAX_GROUPS)
        .collect()
}

fn is_number(text: &str) -> bool {
    number(text).is_some()
}

fn number(text: &str) -> Option<u32> {
    // Not even a leading '+', which `parse` would take.
    text.bytes()
        .all(|byte| byte.is_ascii_digit())
        .then(|| text.parse().ok())?
}

fn damaged(file: &str) -> String {
    format!("the image's /etc/{file} is damaged")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files() -> (tempfile::TempDir, Files) {
        let dir = tempfile::tempdir().unwrap();
        let etc = dir.path().join("lower/etc");
        std::fs::create_dir_all(&etc).unwrap();
        std::fs::write(
            etc.join("passwd"),
            "root:x:0:0:root:/root:/bin/sh\nweb:x:33:33::/var/www:/bin/sh\nbad:x:y:0::/:/\n",
        )
        .unwrap();
        std::fs::write(
            etc.join("group"),
            "root:x:0:\nweb:x:33:\nmail:x:8:web,root\n",
        )
        .unwrap();
        std::fs::create_dir_all(dir.path().join("upper/etc")).unwrap();
        let roots = [
            dir.path().join("upper"),
            dir.path().join("missing"),
            dir.path().join("lower"),
        ];
        let files = Files::below(roots);
        (dir, files)
    }

    #[test]
    fn users_go_by_name_and_number() {
        let (_dir, files) = files();
        let web = Identity {
            uid: 33,
            gid: 33,
            groups: vec![8],
            home: "/var/www".to_owned(),
        };
        assert_eq!(resolve(Some("web"), &files), Ok(web.clone()));
        assert_eq!(resolve(Some("33"), &files), Ok(web.clone()));
        let other = resolve(Some("web:mail"), &files).unwrap();
        assert_eq!((other.gid, other.groups), (8, vec![]));
        assert_eq!(resolve(None, &files).unwrap().home, "/root");
        let unknown = resolve(Some("1234:5"), &files).unwrap();
        assert_eq!(
            (unknown.uid, unknown.gid, unknown.home.as_str()),
            (1234, 5, "/")
        );
        for bad in ["nobody", "web:nogroup", "+5", "", "bad", "99999999999"] {
            assert!(resolve(Some(bad), &files).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_link_out_of_the_root_leads_nowhere() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("secret"), "root:x:7:7::/:/\n").unwrap();
        std::fs::create_dir_all(dir.path().join("root/etc")).unwrap();
        let link = dir.path().join("root/etc/passwd");
        std::os::unix::fs::symlink("../../secret", &link).unwrap();
        let files = Files::below([dir.path().join("root")]);
        assert_eq!(
            resolve(Some("0"), &files).unwrap().home,
            "/",
            "nothing was found"
        );
    }
}
