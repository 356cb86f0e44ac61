//! Capabilities: names to sets, and the switch of a process to its user and rights.
//!
//! Order matters and is that of capabilities(7): bounding set first (needs CAP_SETPCAP), then ids with
//! the permitted set kept, then the three sets, then the ambient one.

use rustix::fs::{Gid, Uid};
use rustix::io::Errno;
use rustix::thread::{CapabilitySet, CapabilitySets};

use crate::error::{Context, Failure, Step};
use crate::spec::{Capabilities, User};
use crate::sys;
use crate::tail::Tail;

/// Names in the order of their numbers (linux/capability.h).
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// Every name, as `CAP_…`, for `features`.
pub(crate) fn names() -> impl Iterator<Item = String> {
    NAMES.iter().map(|name| format!("CAP_{name}"))
}

/// The five sets as bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sets {
    pub bounding: u64,
    pub effective: u64,
    pub inheritable: u64,
    pub permitted: u64,
    pub ambient: u64,
}

/// Turns names into bits. Names this kernel generation does not know are returned: the specification
/// wants them reported and otherwise ignored.
pub(crate) fn parse(capabilities: &Capabilities) -> (Sets, Vec<String>) {
    let mut unknown = Vec::new();
    let mut bits = |list: &[String]| {
        list.iter().fold(0, |bits, name| match number(name) {
            Some(number) => bits | 1u64 << number,
            None => {
                unknown.push(name.clone());
                bits
            }
        })
    };
    let sets = Sets {
        bounding: bits(&capabilities.bounding),
        effective: bits(&capabilities.effective),
        inheritable: bits(&capabilities.inheritable),
        permitted: bits(&capabilities.permitted),
        ambient: bits(&capabilities.ambient),
    };
    unknown.sort();
    unknown.dedup();
    (sets, unknown)
}

fn number(name: &str) -> Option<usize> {
    let short = name
        .get(..4)
        .filter(|head| head.eq_ignore_ascii_case("CAP_"))
        .map(|_| &name[4..])?;
    NAMES
        .iter()
        .position(|known| short.eq_ignore_ascii_case(known))
}

/// Refuses early what the kernel would refuse late: capabilities to inherit that are neither bounded nor
/// inherited already.
pub(crate) fn check_inheritable(sets: &Sets) -> Step<()> {
    let beyond = sets.inheritable & !sets.bounding;
    if beyond == 0 {
        return Ok(());
    }
    let own = rustix::thread::capabilities(None).ctx("cannot read the capabilities")?;
    if beyond & own.permitted.bits() & !own.inheritable.bits() == 0 {
        return Ok(());
    }
    Err(Failure {
        what:
            "cannot grant process.capabilities.inheritable beyond process.capabilities.bounding; \
               name them in both"
                .into(),
        source: Errno::PERM.into(),
        program: false,
    })
}

/// What a process that has become another user may keep of its capabilities.
#[derive(Debug)]
pub(crate) struct Rights {
    effective: u64,
    permitted: u64,
    inheritable: u64,
    ambient: u64,
}

/// Becomes `user` and gives up what lies outside the bounding set; everything else is kept until
/// [`Rights::keep_only`]. What cannot be granted because the caller does not have it is left out, as the
/// specification asks.
pub(crate) fn become_user(user: &User, sets: &Sets) -> Step<Rights> {
    let have = rustix::thread::capabilities(None).ctx("cannot read the capabilities")?;
    drop_bounding(sets.bounding)?;
    // Makes the kernel keep the permitted set across the change of ids.
    sys::prctl(libc::PR_SET_KEEPCAPS, 1, 0).ctx("cannot keep capabilities across setuid")?;
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    let groups: Vec<Gid> = user
        .additional_gids
        .iter()
        .map(|gid| Gid::from_raw(*gid))
        .collect();
    match rustix::thread::set_thread_groups(&groups) {
        // Without privilege the kernel forbids setgroups in the namespace altogether.
        Err(Errno::PERM) if groups.is_empty() => {}
        other => other.ctx("cannot set the supplementary groups (process.user.additionalGids)")?,
    }
    rustix::thread::set_thread_res_gid(gid, gid, gid).with(|| unmapped("gid", user.gid))?;
    rustix::thread::set_thread_res_uid(uid, uid, uid).with(|| unmapped("uid", user.uid))?;
    if user.uid != 0 {
        // The change of ids emptied the effective set; the last steps need it.
        rustix::thread::set_capabilities(None, have).ctx(CANNOT_SET)?;
    }
    let permitted = sets.permitted & have.permitted.bits();
    Ok(Rights {
        effective: sets.effective & permitted,
        permitted,
        inheritable: sets.inheritable & have.permitted.bits(),
        ambient: sets.ambient & sets.inheritable & permitted,
    })
}

const CANNOT_SET: &str = "cannot set the capabilities";

impl Rights {
    /// Plans giving up everything else.
    pub(crate) fn keep_only(&self, tail: &mut Tail) {
        const VERSION_3: u64 = 0x2008_0522;
        const PR_CAP_AMBIENT_RAISE: u64 = 2;
        // The header: version and process (0: this one). Then, as 32-bit numbers, the three sets' lower
        // halves and their upper halves.
        let header = tail.keep(vec![VERSION_3]);
        let low = |set: u64| set & 0xffff_ffff;
        let high = |set: u64| set >> 32;
        let sets = tail.keep(vec![
            low(self.effective) | low(self.permitted) << 32,
            low(self.inheritable) | high(self.effective) << 32,
            high(self.permitted) | high(self.inheritable) << 32,
        ]);
        tail.add(libc::SYS_capset, &[header, sets], CANNOT_SET);
        for number in (0..64u64).filter(|number| self.ambient & 1 << number != 0) {
            tail.add(
                libc::SYS_prctl,
                &[libc::PR_CAP_AMBIENT as u64, PR_CAP_AMBIENT_RAISE, number],
                "cannot raise the ambient capabilities",
            );
        }
    }
}

/// Whether the caller may make mounts in its own namespaces.
pub(crate) fn is_admin() -> Step<bool> {
    let sets = rustix::thread::capabilities(None).ctx("cannot read the capabilities")?;
    Ok(sets.effective.contains(CapabilitySet::SYS_ADMIN))
}

/// For a while, files are made with other ids and full rights; ends when dropped.
#[derive(Debug)]
pub(crate) struct ActAs {
    before: (u32, u32),
    sets: CapabilitySets,
}

impl ActAs {
    /// Makes files belong to this user and group from here on.
    pub(crate) fn files_of((uid, gid): (u32, u32)) -> Step<ActAs> {
        let sets = rustix::thread::capabilities(None).ctx("cannot read the capabilities")?;
        // SAFETY: both take a number and change only this thread's ids for file access.
        let before = unsafe { (libc::setfsuid(uid) as u32, libc::setfsgid(gid) as u32) };
        let acting = ActAs { before, sets };
        // Leaving uid 0 drops the rights over files from the effective set; the permitted keeps them.
        rustix::thread::set_capabilities(None, sets).ctx("cannot keep the rights over files")?;
        Ok(acting)
    }
}

impl Drop for ActAs {
    fn drop(&mut self) {
        // SAFETY: as in `files_of`.
        unsafe {
            libc::setfsuid(self.before.0);
            libc::setfsgid(self.before.1);
        }
        let _ = rustix::thread::set_capabilities(None, self.sets);
    }
}

fn unmapped(kind: &str, id: u32) -> String {
    format!("cannot become process.user.{kind} {id}; in a user namespace the id must be mapped")
}

fn drop_bounding(keep: u64) -> Step<()> {
    for number in 0..64u64 {
        if keep & 1 << number != 0 {
            continue;
        }
        match sys::prctl(libc::PR_CAPBSET_DROP, number, 0) {
            Ok(_) => {}
            // The first number this kernel does not know ends the list.
            Err(Errno::INVAL) => break,
            Err(errno) => {
                return Err(Failure {
                    what: "cannot drop capabilities from the bounding set".into(),
                    source: errno.into(),
                    program: false,
                });
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_their_kernel_numbers_and_strangers_are_reported() {
        let (sets, unknown) = parse(&Capabilities {
            bounding: vec!["CAP_CHOWN".into(), "cap_checkpoint_restore".into()],
            effective: vec!["CAP_NONSENSE".into(), "SYS_ADMIN".into()],
            ..Capabilities::default()
        });
        assert_eq!(sets.bounding, 1 | 1 << 40);
        assert_eq!(sets.effective, 0);
        assert_eq!(unknown, ["CAP_NONSENSE", "SYS_ADMIN"]);
        assert_eq!(number("CAP_SYS_ADMIN"), Some(21));
        assert_eq!(number("CAP_SETFCAP"), Some(31));
    }
}
