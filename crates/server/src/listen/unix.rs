//! The Unix socket: only one daemon serves a path, nobody connects before the mode is right, and
//! what a dead daemon left behind is no obstacle.

use std::{
    fs, io,
    os::unix::{
        fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, chown},
        net::UnixStream,
    },
    path::{Path, PathBuf},
};

use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind as bind_socket, listen,
    socket_with,
};
use tokio::net::UnixListener;

use super::ListenError;

/// Longest path of a socket, without the final zero byte (`unix(7)`).
const MAX_PATH: usize = 107;
const BACKLOG: i32 = 1024;

/// The file of a socket this process made. Dropping it removes the file, unless another has taken
/// its place.
pub(super) struct Made {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl Drop for Made {
    fn drop(&mut self) {
        let same = fs::symlink_metadata(&self.path)
            .is_ok_and(|now| (now.dev(), now.ino()) == (self.device, self.inode));
        if same {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Binds under another name, sets mode and group, listens, and only then renames to `path`: there
/// is no moment at which someone else could connect, and none at which the path leads nowhere.
pub(super) fn bind(path: &Path, group: &str) -> Result<(UnixListener, Made), ListenError> {
    let failed = |what| {
        move |source: io::Error| ListenError::Socket {
            what,
            address: path.display().to_string(),
            source,
        }
    };
    refuse_taken(path)?;
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}", std::process::id()));
    let temporary = path.with_file_name(name);
    if temporary.as_os_str().len() > MAX_PATH {
        return Err(ListenError::TooLong {
            path: path.to_owned(),
        });
    }
    let _ = fs::remove_file(&temporary);
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
        .map_err(|error| failed("open a socket for")(error.into()))?;
    let address = SocketAddrUnix::new(&temporary)
        .map_err(|error| failed("name a socket for")(error.into()))?;
    bind_socket(&socket, &address).map_err(|error| failed("bind")(error.into()))?;
    // From here on the temporary file is removed whatever goes wrong.
    let cleanup = Cleanup(&temporary);
    fs::set_permissions(&temporary, fs::Permissions::from_mode(0o660))
        .map_err(failed("set the mode of"))?;
    hand_to_group(&temporary, path, group);
    listen(&socket, BACKLOG).map_err(|error| failed("listen on")(error.into()))?;
    let meta = fs::symlink_metadata(&temporary).map_err(failed("look at"))?;
    fs::rename(&temporary, path).map_err(failed("put in place"))?;
    drop(cleanup);
    let made = Made {
        path: path.to_owned(),
        device: meta.dev(),
        inode: meta.ino(),
    };
    let listener = UnixListener::from_std(socket.into()).map_err(failed("watch"))?;
    Ok((listener, made))
}

struct Cleanup<'a>(&'a Path);

impl Drop for Cleanup<'_> {
    fn drop(&mut self) {
        let _ = fs::remove_file(self.0);
    }
}

fn refuse_taken(path: &Path) -> Result<(), ListenError> {
    let path = path.to_owned();
    match fs::symlink_metadata(&path) {
        Err(_) => return Ok(()),
        Ok(meta) if !meta.file_type().is_socket() => return Err(ListenError::NotASocket { path }),
        Ok(_) => {}
    }
    // Only a refusal says that nobody listens: a full backlog blocks, another error is no proof.
    match UnixStream::connect(&path) {
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound
            ) =>
        {
            tracing::debug!(path = %path.display(), "replacing a socket that nobody serves");
            Ok(())
        }
        _ => Err(ListenError::Live { path }),
    }
}

/// Without the group, or without the right to give the file away, only the owner may connect.
fn hand_to_group(socket: &Path, path: &Path, group: &str) {
    let groups = fs::read_to_string("/etc/group").unwrap_or_default();
    let Some(gid) = gid_of(&groups, group) else {
        tracing::debug!(group, "no such group: only the daemon's user may connect");
        return;
    };
    if let Err(error) = chown(socket, None, Some(gid)) {
        tracing::warn!(%error, group, path = %path.display(), "the group cannot be given the socket");
    }
}

/// The id of a group in the text of `/etc/group` (`group(5)`).
fn gid_of(groups: &str, name: &str) -> Option<u32> {
    groups
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .find(|fields| fields.first() == Some(&name))
        .and_then(|fields| fields.get(2)?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stale_socket_is_replaced_a_live_one_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("berth.sock");
        // What a killed daemon leaves behind: a bound name that nobody listens on.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());

        let (_first, made) = bind(&path, "no-such-group").unwrap();
        let meta = fs::metadata(&path).unwrap();
        assert_eq!(meta.permissions().mode() & 0o777, 0o660);
        assert!(matches!(
            bind(&path, "x"),
            Err(ListenError::Live { path: refused }) if refused == path
        ));
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);

        drop(made);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn what_is_no_socket_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("berth.sock");
        fs::write(&path, "precious").unwrap();
        assert!(matches!(
            bind(&path, "x"),
            Err(ListenError::NotASocket { .. })
        ));
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");

        let long = directory.path().join("x".repeat(120));
        assert!(matches!(bind(&long, "x"), Err(ListenError::TooLong { .. })));
        let missing = directory.path().join("none/berth.sock");
        assert!(matches!(
            bind(&missing, "x"),
            Err(ListenError::Socket { .. })
        ));
    }

    #[tokio::test]
    async fn the_socket_of_a_successor_is_not_removed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("berth.sock");
        let (listener, made) = bind(&path, "x").unwrap();
        drop(listener);
        let (_second, _made) = bind(&path, "x").unwrap();
        drop(made);
        assert!(path.exists());
    }

    #[test]
    fn groups_are_found_by_whole_name() {
        let groups = "root:x:0:\nberths:x:7:\nberth:x:998:alice,bob\n";
        assert_eq!(gid_of(groups, "berth"), Some(998));
        assert_eq!(gid_of(groups, "bert"), None);
        assert_eq!(gid_of("berth:x", "berth"), None);
    }
}
