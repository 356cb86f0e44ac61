//! Mount options: from fstab words to what the mount API takes. Pure.
//!
//! Follows config.md ("Linux mount options") of the runtime specification. Words this list does not know
//! are data for the file system driver, which refuses what it does not know either; on a bind mount,
//! which has no driver to ask, they are ignored as the kernel always did.

use crate::spec::Mount;
use crate::sys::MountAttr;

/// `MOUNT_ATTR_*` of `linux/mount.h`.
pub(crate) mod attr {
    pub const RDONLY: u64 = 0x1;
    pub const NOSUID: u64 = 0x2;
    pub const NODEV: u64 = 0x4;
    pub const NOEXEC: u64 = 0x8;
    /// Mask of the access time modes.
    pub const ATIME: u64 = 0x70;
    pub const NOATIME: u64 = 0x10;
    pub const STRICTATIME: u64 = 0x20;
    pub const NODIRATIME: u64 = 0x80;
    pub const IDMAP: u64 = 0x10_0000;
    pub const NOSYMFOLLOW: u64 = 0x20_0000;
}

/// What a mount's options ask for.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Options {
    /// `Some(recursive)` for a bind mount.
    pub bind: Option<bool>,
    /// Changes the mount that is at the destination already.
    pub remount: bool,
    /// Attributes of the mount itself.
    pub attr: MountAttr,
    /// Attributes of it and of everything below it.
    pub recursive: MountAttr,
    /// Propagation types in order: kind and whether for everything below too.
    pub propagation: Vec<(u64, bool)>,
    /// `Some(recursive)` for an id-mapped mount with the container's own mapping.
    pub idmap: Option<bool>,
    /// Copies what the destination holds into the new tmpfs.
    pub copy_up: bool,
    /// Parameters of the file system.
    pub data: Vec<(String, Option<String>)>,
}

/// Sets or clears `bits`; the last word wins.
fn put(target: &mut MountAttr, on: bool, bits: u64) {
    let (add, remove) = if on {
        (&mut target.set, &mut target.clear)
    } else {
        (&mut target.clear, &mut target.set)
    };
    *add |= bits;
    *remove &= !bits;
}

/// Chooses an access time mode, which is a field and not a flag.
fn put_atime(target: &mut MountAttr, mode: u64) {
    target.set = target.set & !attr::ATIME | mode;
    target.clear |= attr::ATIME;
}

/// Parses the options of `mount`.
///
/// # Errors
/// Says which option cannot be used and why.
pub(crate) fn parse(mount: &Mount) -> Result<Options, String> {
    let mut options = Options::default();
    for word in &mount.options {
        if word.len() > 4095 || word.contains('\0') {
            return Err("an option is longer than 4095 bytes or contains NUL".into());
        }
        if !keyword(&mut options, word) && !attribute(&mut options, word) {
            let (key, value) = match word.split_once('=') {
                Some((key, value)) => (key, Some(value.to_owned())),
                None => (word.as_str(), None),
            };
            if key.is_empty() {
                return Err(format!("{word:?} is not an option"));
            }
            options.data.push((key.to_owned(), value));
        }
    }
    // Old tools write `"type": "bind"` and forget the option.
    if options.bind.is_none() && mount.kind == "bind" {
        options.bind = Some(true);
    }
    if !mount.uid_mappings.is_empty() && options.idmap.is_none() {
        options.idmap = Some(false);
    }
    if options.idmap.is_some() && options.bind.is_none() {
        return Err("an id mapping needs a bind mount".into());
    }
    if options.copy_up && mount.kind != "tmpfs" {
        return Err("tmpcopyup needs a mount of type tmpfs".into());
    }
    if options.bind.is_some() && !options.remount && mount.source.as_os_str().is_empty() {
        return Err("a bind mount needs a source".into());
    }
    if options.bind.is_none() && !options.remount && mount.kind.is_empty() {
        return Err("the mount has neither a type nor a bind option".into());
    }
    Ok(options)
}

/// Words about the operation itself.
fn keyword(options: &mut Options, word: &str) -> bool {
    match word {
        "bind" => options.bind = Some(options.bind == Some(true)),
        "rbind" => options.bind = Some(true),
        "remount" => options.remount = true,
        "idmap" => options.idmap = Some(false),
        "ridmap" => options.idmap = Some(true),
        "tmpcopyup" => options.copy_up = true,
        "shared" => options.propagation.push((libc::MS_SHARED, false)),
        "rshared" => options.propagation.push((libc::MS_SHARED, true)),
        "slave" => options.propagation.push((libc::MS_SLAVE, false)),
        "rslave" => options.propagation.push((libc::MS_SLAVE, true)),
        "private" => options.propagation.push((libc::MS_PRIVATE, false)),
        "rprivate" => options.propagation.push((libc::MS_PRIVATE, true)),
        "unbindable" => options.propagation.push((libc::MS_UNBINDABLE, false)),
        "runbindable" => options.propagation.push((libc::MS_UNBINDABLE, true)),
        // Ways to say what is so anyway, and a switch the kernel dropped in 5.15.
        "async" | "loud" | "nomand" | "mand" | "noiversion" | "nolazytime" | "silent" => {}
        _ => return false,
    }
    true
}

/// Words about the mount's attributes, with `r` in front for everything below it too.
fn attribute(options: &mut Options, word: &str) -> bool {
    if single(&mut options.attr, word) {
        return true;
    }
    match word.strip_prefix('r') {
        Some(rest) if word != "relatime" => single(&mut options.recursive, rest),
        _ => false,
    }
}

fn single(target: &mut MountAttr, word: &str) -> bool {
    match word {
        "defaults" => put(
            target,
            false,
            attr::RDONLY | attr::NOSUID | attr::NODEV | attr::NOEXEC,
        ),
        "ro" => put(target, true, attr::RDONLY),
        "rw" => put(target, false, attr::RDONLY),
        "nosuid" => put(target, true, attr::NOSUID),
        "suid" => put(target, false, attr::NOSUID),
        "nodev" => put(target, true, attr::NODEV),
        "dev" => put(target, false, attr::NODEV),
        "noexec" => put(target, true, attr::NOEXEC),
        "exec" => put(target, false, attr::NOEXEC),
        "nodiratime" => put(target, true, attr::NODIRATIME),
        "diratime" => put(target, false, attr::NODIRATIME),
        "nosymfollow" => put(target, true, attr::NOSYMFOLLOW),
        "symfollow" => put(target, false, attr::NOSYMFOLLOW),
        "relatime" | "atime" | "nostrictatime" => put_atime(target, 0),
        "noatime" | "norelatime" => {
            put_atime(target, if word == "noatime" { attr::NOATIME } else { 0 })
        }
        "strictatime" => put_atime(target, attr::STRICTATIME),
        _ => return false,
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(kind: &str, words: &[&str]) -> Result<Options, String> {
        parse(&Mount {
            kind: kind.into(),
            source: "/src".into(),
            options: words.iter().map(|w| w.to_string()).collect(),
            ..Mount::default()
        })
    }

    #[test]
    fn the_last_word_wins_and_recursive_words_are_kept_apart() {
        let o = options(
            "bind",
            &["rbind", "ro", "rw", "nosuid", "rro", "noatime", "rprivate"],
        )
        .unwrap();
        assert_eq!(o.bind, Some(true));
        assert_eq!(o.attr.set, attr::NOSUID | attr::NOATIME);
        assert_eq!(o.attr.clear, attr::RDONLY | attr::ATIME);
        assert_eq!(o.recursive.set, attr::RDONLY);
        assert_eq!(o.propagation, [(libc::MS_PRIVATE, true)]);
    }

    #[test]
    fn unknown_words_are_data_for_the_driver() {
        let o = options("tmpfs", &["size=64k", "nr_inodes=10", "relatime", "foo"]).unwrap();
        assert_eq!(o.data[0], ("size".into(), Some("64k".into())));
        assert_eq!(o.data[2], ("foo".into(), None));
        assert_eq!(o.bind, None);
    }

    #[test]
    fn nonsense_is_refused_in_words() {
        assert!(options("proc", &["idmap"]).unwrap_err().contains("bind"));
        assert!(
            options("proc", &["tmpcopyup"])
                .unwrap_err()
                .contains("tmpfs")
        );
        assert!(options("", &["ro"]).unwrap_err().contains("neither"));
        assert!(options("tmpfs", &["=x"]).is_err());
    }
}
