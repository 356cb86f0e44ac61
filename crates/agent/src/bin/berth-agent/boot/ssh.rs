//! Lets those log in by SSH whose keys the host was given.
//!
//! Called once in the new root, before anything of it starts. Keys are added where they are missing and
//! none is ever taken away: what the guest did with its file stays. An image with cloud-init is left
//! alone, for cloud-init does it from its seed and knows its own user, unless a user is named.

use std::{
    fs::{self, DirBuilder, File},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use agent::config::Ssh;

use crate::{
    console::{chain, say},
    users,
};

/// Where images have cloud-init.
const CLOUD_INIT: &[&str] = &["usr/bin/cloud-init", "bin/cloud-init"];
/// The most that is read of a guest's own file.
const MAX_FILE: u64 = 1 << 20;

/// A key cannot be let in.
#[derive(Debug, thiserror::Error)]
enum SshError {
    /// There is nobody of that name.
    #[error("{0}; name another with --ssh-user")]
    User(#[from] users::Unknown),
    /// The file cannot be read or written.
    #[error("cannot write {}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Adds the keys to the user's `authorized_keys`. A guest whose keys cannot be set comes up all the
/// same, and says so: there are other ways in.
pub fn authorize(ssh: &Ssh, root: &Path) {
    if ssh.user.is_none() && has_cloud_init(root) {
        return;
    }
    if let Err(error) = add(ssh, root) {
        say(&format!("no SSH key was let in: {}", chain(&error)));
    }
}

/// Whether the image brings a cloud-init, which has an opinion of its own.
pub fn has_cloud_init(root: &Path) -> bool {
    CLOUD_INIT.iter().any(|path| root.join(path).exists())
}

fn add(ssh: &Ssh, root: &Path) -> Result<(), SshError> {
    let user = users::find(root, ssh.user.as_deref())?;
    let home = root.join(user.home.trim_start_matches('/'));
    let directory = home.join(".ssh");
    let path = directory.join("authorized_keys");
    let failed = |source| SshError::File {
        path: path.clone(),
        source,
    };
    let owner = (Some(user.uid), Some(user.gid));
    for (path, mode) in [(&home, 0o755), (&directory, 0o700)] {
        match DirBuilder::new().mode(mode).create(path) {
            Ok(()) => std::os::unix::fs::chown(path, owner.0, owner.1).map_err(failed)?,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(failed(error)),
        }
    }
    let mut file = File::options()
        .read(true)
        .append(true)
        .create(true)
        .mode(0o600)
        .open(&path)
        .map_err(failed)?;
    let mut text = String::new();
    (&mut file)
        .take(MAX_FILE)
        .read_to_string(&mut text)
        .map_err(failed)?;
    let missing = missing(&text, &ssh.keys);
    file.write_all(missing.as_bytes()).map_err(failed)?;
    if text.is_empty() {
        std::os::unix::fs::fchown(&file, owner.0, owner.1).map_err(failed)?;
    }
    fs::File::sync_all(&file).map_err(failed)
}

/// The lines to append so that a file with `text` has all keys.
fn missing(text: &str, keys: &[String]) -> String {
    let mut lines = String::new();
    for key in keys {
        let has = |text: &str| text.lines().any(|line| line.trim() == key);
        if has(text) || has(&lines) {
            continue;
        }
        if lines.is_empty() && !text.is_empty() && !text.ends_with('\n') {
            lines.push('\n');
        }
        lines.push_str(key);
        lines.push('\n');
    }
    lines
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use super::*;

    #[test]
    fn keys_are_added_once_and_what_is_there_stays() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        fs::create_dir_all(root.join("etc")).unwrap();
        fs::create_dir_all(root.join("home")).unwrap();
        let own = fs::metadata(root).unwrap();
        let passwd = format!(
            "root:x:0:0::/root:/bin/sh\nme:x:{}:{}::/home/me:/bin/sh\n",
            own.uid(),
            own.gid()
        );
        fs::write(root.join("etc/passwd"), passwd).unwrap();
        let ssh = Ssh {
            user: Some("me".to_owned()),
            keys: vec!["ssh-ed25519 A".to_owned(), "ssh-rsa B".to_owned()],
        };
        let path = root.join("home/me/.ssh/authorized_keys");
        add(&ssh, root).unwrap();
        add(&ssh, root).unwrap();
        assert_eq!(
            fs::read_to_string(&path).unwrap(),
            "ssh-ed25519 A\nssh-rsa B\n"
        );
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&path), 0o600);
        assert_eq!(mode(path.parent().unwrap()), 0o700);
        fs::write(&path, "ssh-ed25519 own").unwrap();
        add(&ssh, root).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text, "ssh-ed25519 own\nssh-ed25519 A\nssh-rsa B\n");

        let nobody = Ssh {
            user: Some("nobody-here".to_owned()),
            ..ssh
        };
        let error = add(&nobody, root).unwrap_err().to_string();
        assert!(error.contains("nobody-here"), "{error}");
    }

    #[test]
    fn an_image_with_cloud_init_is_left_alone_unless_a_user_is_named() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        for path in ["etc", "root", "usr/bin"] {
            fs::create_dir_all(root.join(path)).unwrap();
        }
        fs::write(root.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\n").unwrap();
        fs::write(root.join("usr/bin/cloud-init"), "").unwrap();
        let mut ssh = Ssh {
            user: None,
            keys: vec!["ssh-ed25519 A".to_owned()],
        };
        authorize(&ssh, root);
        assert!(!root.join("root/.ssh").exists());
        ssh.user = Some("root".to_owned());
        authorize(&ssh, root);
        assert!(root.join("root/.ssh/authorized_keys").exists());
    }
}
