//! Extended attributes: which are kept, read with limits, and file capabilities as known inside.

use std::os::fd::BorrowedFd;

use rustix::{fs::XattrFlags, io::Errno};

use super::ids::Ids;

/// Names and values of one file together.
const MAX_BYTES: usize = 64 << 10;
/// Capabilities of a program file (capabilities(7)).
const CAPABILITY: &[u8] = b"security.capability";
/// Revisions of its value (`linux/capability.h`), in its first word's top byte.
const REVISION_2: u8 = 2;
const REVISION_3: u8 = 3;
/// Bytes of revision 2; revision 3 has the id of the root it is for after them.
const LENGTH_2: usize = 20;
const LENGTH_3: usize = 24;

/// Attributes by name, sorted.
pub(super) type Attributes = Vec<(Vec<u8>, Vec<u8>)>;

/// What of a file's attributes goes into an archive. A file system without any has none; what is
/// beyond the limit, or changes while it is read, is left out.
pub(super) fn read(file: BorrowedFd<'_>, ids: Ids) -> Attributes {
    let mut list = vec![0; MAX_BYTES];
    let Ok(length) = rustix::fs::flistxattr(file, &mut list[..]) else {
        return Vec::new();
    };
    let mut left = MAX_BYTES;
    let mut found = Vec::new();
    for name in list[..length].split(|&byte| byte == 0) {
        if !kept(name) {
            continue;
        }
        let mut value = vec![0; left];
        let Ok(length) = rustix::fs::fgetxattr(file, name, &mut value[..]) else {
            continue;
        };
        value.truncate(length);
        if name == CAPABILITY && !capability_inside(&mut value, ids) {
            continue;
        }
        left = left.saturating_sub(name.len() + length);
        found.push((name.to_vec(), value));
    }
    found.sort_unstable();
    found
}

/// Gives a file the attributes an archive has for it; those of other kinds, and those its file
/// system does not know, are left out.
pub(super) fn write(file: BorrowedFd<'_>, attributes: Attributes, ids: Ids) -> Result<(), Errno> {
    for (name, mut value) in attributes {
        if !kept(&name) || (name == CAPABILITY && !capability_outside(&mut value, ids)) {
            continue;
        }
        match rustix::fs::fsetxattr(file, &name[..], &value, XattrFlags::empty()) {
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::PERM | Errno::INVAL) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

fn kept(name: &[u8]) -> bool {
    name == CAPABILITY || (name.starts_with(b"user.") && name.len() <= 255)
}

/// Capabilities found on the host, as the guest writes them: for its own root. `false` when they
/// are for another root and mean nothing inside.
fn capability_inside(value: &mut Vec<u8>, ids: Ids) -> bool {
    match (value.get(3), value.len()) {
        (Some(&REVISION_2), LENGTH_2) => true,
        (Some(&REVISION_3), LENGTH_3) => {
            let root = u32::from_le_bytes([value[20], value[21], value[22], value[23]]);
            value.truncate(LENGTH_2);
            value[3] = REVISION_2;
            root == ids.root().unwrap_or(0)
        }
        _ => false,
    }
}

/// The other way: for the host's id of the guest's root, so that outside of it they give nothing.
fn capability_outside(value: &mut Vec<u8>, ids: Ids) -> bool {
    // An archive's are for the root of wherever it is unpacked.
    match (value.get(3), value.len()) {
        (Some(&REVISION_2), LENGTH_2) => {}
        (Some(&REVISION_3), LENGTH_3) => value.truncate(LENGTH_2),
        _ => return false,
    }
    value[3] = REVISION_2;
    if let Some(root) = ids.root() {
        value[3] = REVISION_3;
        value.extend_from_slice(&root.to_le_bytes());
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_for_the_root_inside() {
        let ids = Ids::new(Some(model::record::IdMap {
            base: 1_000_000,
            count: 65536,
        }));
        let mut inside = vec![0_u8; LENGTH_2];
        (inside[0], inside[3]) = (1, REVISION_2);
        let mut value = inside.clone();
        assert!(capability_outside(&mut value, ids));
        assert_eq!((value[3], value.len()), (REVISION_3, LENGTH_3));
        assert_eq!(value[20..], 1_000_000_u32.to_le_bytes());
        let mut foreign = value.clone();
        assert!(capability_inside(&mut value, ids));
        assert_eq!(value, inside);
        foreign[20..].copy_from_slice(&7_u32.to_le_bytes());
        assert!(!capability_inside(&mut foreign, ids));
        assert!(!capability_outside(&mut vec![0, 0, 0, 9], ids));
    }
}
