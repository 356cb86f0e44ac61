//! Owners: as found on the host, and as the guest and every archive knows them.

use model::record::IdMap;
use rustix::thread::{
    CapabilitiesSecureBits, capabilities_secure_bits, set_capabilities_secure_bits,
    set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};

/// What an id that does not exist inside is shown as there (`/proc/sys/kernel/overflowuid`).
const NOBODY: u32 = 65534;

/// Maps ids both ways.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ids(Option<IdMap>);

impl Ids {
    pub(super) fn new(map: Option<IdMap>) -> Self {
        Self(map)
    }

    /// An id found on the host, as seen inside.
    pub(super) fn inside(self, outside: u32) -> u32 {
        let Some(map) = self.0 else { return outside };
        let id = outside.checked_sub(map.base).filter(|&id| id < map.count);
        id.unwrap_or(NOBODY)
    }

    /// An id as known inside, for the host; `None` when there is none.
    pub(super) fn outside(self, inside: u32) -> Option<u32> {
        let Some(map) = self.0 else {
            return Some(inside);
        };
        (inside < map.count).then(|| map.base.checked_add(inside))?
    }

    /// The host's id of root inside, when it is another than the host's own.
    pub(super) fn root(self) -> Option<u32> {
        self.0.map(|map| map.base)
    }

    /// Makes the calling thread, for the rest of its life, create files as root of the guest: an
    /// id-mapped file system takes none from ids it does not know (`EOVERFLOW`). It keeps its
    /// capabilities.
    ///
    /// # Errors
    /// When the kernel refuses, as it does without privilege.
    pub(super) fn become_root(self) -> rustix::io::Result<()> {
        let Some(map) = self.0 else { return Ok(()) };
        let bits = capabilities_secure_bits()?;
        set_capabilities_secure_bits(bits | CapabilitiesSecureBits::NO_SETUID_FIXUP)?;
        set_thread_groups(&[])?;
        let group = rustix::process::Gid::from_raw(map.base);
        set_thread_res_gid(None, Some(group), None)?;
        let user = rustix::process::Uid::from_raw(map.base);
        set_thread_res_uid(None, Some(user), None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_go_both_ways_and_never_past_the_map() {
        let map = Some(IdMap {
            base: 1_000_000,
            count: 65536,
        });
        let ids = Ids::new(map);
        assert_eq!(ids.outside(33), Some(1_000_033));
        assert_eq!(ids.inside(1_000_033), 33);
        assert_eq!(ids.outside(65536), None);
        for foreign in [0, 999_999, 1_065_536] {
            assert_eq!(ids.inside(foreign), NOBODY);
        }
        assert_eq!(Ids::new(None).outside(u32::MAX - 1), Some(u32::MAX - 1));
    }
}
