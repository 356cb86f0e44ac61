//! Users and groups by name, from the guest's own files.
//!
//! A static program has no name service, and a guest's `/etc/passwd` is what its image came with: read
//! here line by line, with a limit on the file. See `passwd(5)`, `group(5)`.

use std::{fs::File, io::Read, path::Path};

const MAX_FILE: u64 = 4 << 20;

/// Whom a program runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Home directory.
    pub home: String,
}

/// A user or group is not to be found.
#[derive(Debug, thiserror::Error)]
#[error("there is no {what} {name:?} in the guest")]
pub struct Unknown {
    what: &'static str,
    name: String,
}

/// Finds `user[:group]`, each a name or a number, below `root`; the superuser when `None`.
pub fn find(root: &Path, wanted: Option<&str>) -> Result<Identity, Unknown> {
    let wanted = wanted.filter(|name| !name.is_empty()).unwrap_or("0");
    let (user, group) = match wanted.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|name| !name.is_empty())),
        None => (wanted, None),
    };
    let passwd = read(&root.join("etc/passwd"));
    let groups = read(&root.join("etc/group"));
    let entry = passwd
        .lines()
        .filter_map(PasswdLine::parse)
        .find(|line| line.name == user || user.parse() == Ok(line.uid));
    let uid = match (&entry, user.parse()) {
        (Some(entry), _) => entry.uid,
        (None, Ok(number)) => number,
        (None, Err(_)) => return Err(unknown("user", user)),
    };
    let gid = match group {
        Some(group) => groups
            .lines()
            .filter_map(GroupLine::parse)
            .find(|line| line.name == group)
            .map(|line| line.gid)
            .or_else(|| group.parse().ok())
            .ok_or_else(|| unknown("group", group))?,
        None => entry.as_ref().map_or(0, |entry| entry.gid),
    };
    let name = entry.as_ref().map_or("", |entry| entry.name);
    let member =
        |line: &GroupLine<'_>| !name.is_empty() && line.members.split(',').any(|m| m == name);
    Ok(Identity {
        uid,
        gid,
        groups: groups
            .lines()
            .filter_map(GroupLine::parse)
            .filter(member)
            .map(|line| line.gid)
            .collect(),
        home: entry.map_or_else(|| "/".to_owned(), |entry| entry.home.to_owned()),
    })
}

struct PasswdLine<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

impl<'a> PasswdLine<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        let home = fields.nth(1).filter(|home| home.starts_with('/'));
        Some(Self {
            name,
            uid,
            gid,
            home: home.unwrap_or("/"),
        })
    }
}

struct GroupLine<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

impl<'a> GroupLine<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let gid = fields.nth(1)?.parse().ok()?;
        let members = fields.next().unwrap_or("");
        Some(Self { name, gid, members })
    }
}

fn unknown(what: &'static str, name: &str) -> Unknown {
    let name = name.to_owned();
    Unknown { what, name }
}

/// The text of a file; empty when there is none.
fn read(path: &Path) -> String {
    let mut bytes = Vec::new();
    if let Ok(file) = File::open(path) {
        // A part is as good as what can be read of it.
        let _ = file.take(MAX_FILE).read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn users_and_groups_are_found_by_name_and_by_number() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("etc")).unwrap();
        let passwd = "root:x:0:0:root:/root:/bin/sh\nbroken\nweb:x:33:34::/srv/web:/bin/false\n";
        std::fs::write(root.path().join("etc/passwd"), passwd).unwrap();
        let group = "root:x:0:\nweb:x:34:\naudio:x:29:mail,web\ntty:x:5:webmaster\n";
        std::fs::write(root.path().join("etc/group"), group).unwrap();
        let find = |wanted| find(root.path(), wanted);

        let superuser = find(None).unwrap();
        assert_eq!((superuser.uid, superuser.home.as_str()), (0, "/root"));
        let web = find(Some("web")).unwrap();
        assert_eq!((web.uid, web.gid, web.groups), (33, 34, vec![29]));
        assert_eq!(find(Some("33:audio")).unwrap().gid, 29);
        let stranger = find(Some("1000:1000")).unwrap();
        assert_eq!((stranger.uid, stranger.gid), (1000, 1000));
        assert!(
            find(Some("nobody"))
                .unwrap_err()
                .to_string()
                .contains("nobody")
        );
        assert!(find(Some("web:nobody")).is_err());
    }
}
