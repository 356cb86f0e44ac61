//! Names of system calls and their numbers.
//!
//! A hash table over the names is laid out when this crate is compiled, so that resolving the
//! several hundred names of a profile costs some µs.

mod table;

use crate::arch::Arch;
use table::TABLE;

const SLOTS: usize = 2048;
const EMPTY: u16 = u16::MAX;

/// Open addressing over [`TABLE`], by [`hash`].
static INDEX: [u16; SLOTS] = {
    let mut slots = [EMPTY; SLOTS];
    let mut entry = 0;
    while entry < TABLE.len() {
        let mut slot = hash(TABLE[entry].0) % SLOTS;
        while slots[slot] != EMPTY {
            slot = (slot + 1) % SLOTS;
        }
        slots[slot] = entry as u16;
        entry += 1;
    }
    slots
};

/// FNV-1a.
const fn hash(name: &str) -> usize {
    let bytes = name.as_bytes();
    let mut hash: u32 = 0x811c_9dc5;
    let mut i = 0;
    while i < bytes.len() {
        hash = (hash ^ bytes[i] as u32).wrapping_mul(0x0100_0193);
        i += 1;
    }
    (hash ^ (hash >> 15)) as usize
}

/// The numbers of `name` by [`Arch::column`], -1 where there is none; `None` for an unknown name.
pub(crate) fn numbers(name: &str) -> Option<&'static [i32; 6]> {
    let mut slot = hash(name) % SLOTS;
    while INDEX[slot] != EMPTY {
        let (known, numbers) = &TABLE[usize::from(INDEX[slot])];
        if *known == name {
            return Some(numbers);
        }
        slot = (slot + 1) % SLOTS;
    }
    None
}

/// The number of a system call on `arch`, without x32's marker bit.
pub fn number(arch: Arch, name: &str) -> Option<u32> {
    u32::try_from(numbers(name)?[arch.column()]).ok()
}

#[cfg(test)]
pub(crate) fn names() -> impl Iterator<Item = &'static str> {
    TABLE.iter().map(|(name, _)| *name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted_and_the_index_finds_every_name() {
        assert!(TABLE.windows(2).all(|pair| pair[0].0 < pair[1].0));
        assert!(TABLE.iter().all(|(name, row)| numbers(name) == Some(row)));
        assert_eq!(number(Arch::X86_64, "openat2"), Some(437));
        assert_eq!(number(Arch::Aarch64, "open"), None);
        assert_eq!(numbers("no_such_call"), None);
    }

    #[test]
    fn x86_numbers_are_those_of_the_kernel_headers() {
        let dir = "/usr/include/x86_64-linux-gnu/asm";
        for (file, arch) in [("64", Arch::X86_64), ("32", Arch::X86), ("x32", Arch::X32)] {
            let Ok(text) = std::fs::read_to_string(format!("{dir}/unistd_{file}.h")) else {
                return eprintln!("SKIP headers: linux-libc-dev is not installed");
            };
            let mut seen = 0;
            for line in text.lines().filter_map(|l| l.strip_prefix("#define __NR_")) {
                let Some((name, value)) = line.split_once(' ') else {
                    continue;
                };
                let value = value
                    .trim_start_matches("(__X32_SYSCALL_BIT + ")
                    .trim_end_matches(')');
                assert_eq!(number(arch, name), value.parse().ok(), "{name} on {arch:?}");
                seen += 1;
            }
            assert!(seen > 300, "{file}: {seen}");
        }
    }
}
