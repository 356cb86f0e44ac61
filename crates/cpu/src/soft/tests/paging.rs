//! The page walk, against what Intel SDM 3A, 4.6.1 and 4.7 say in words.

use proptest::prelude::*;

use super::{core, get, put};
use crate::soft::{
    Core, Fault,
    core::Access,
    memory::tlb::Context,
    system::control::{
        CR0_PG, CR0_WP, CR4_PAE, CR4_PSE, CR4_SMAP, CR4_SMEP, EFER_LMA, EFER_LME, EFER_NXE,
    },
};

const TABLES: u64 = 0x10_0000;
const PAGE: u64 = 0x20_0000;
const LINEAR: u64 = 0x1234_5678_9000;
const PRESENT: u64 = 1;
const WRITABLE: u64 = 2;
const USER: u64 = 4;
const ACCESSED: u64 = 0x20;
const DIRTY: u64 = 0x40;
const LARGE: u64 = 0x80;
const NX: u64 = 1 << 63;
const ALL: u64 = PRESENT | WRITABLE | USER;

/// Long mode with one page at [`LINEAR`]; returns where the entries are, top first.
fn long(core: &mut Core) -> [u64; 4] {
    core.control.cr0 |= CR0_PG;
    core.control.cr4 |= CR4_PAE;
    core.control.efer = EFER_LME | EFER_LMA | EFER_NXE;
    core.control.cr3 = TABLES;
    let entry = |level: u64| {
        let index = LINEAR >> (12 + 9 * (3 - level)) & 0x1ff;
        TABLES + level * 0x1000 + index * 8
    };
    let entries = [entry(0), entry(1), entry(2), entry(3)];
    for (level, entry) in entries[..3].iter().enumerate() {
        put(core, *entry, (TABLES + (level as u64 + 1) * 0x1000) | ALL);
    }
    put(core, entries[3], PAGE | ALL);
    core.tlb.flush(true);
    entries
}

fn is_permitted(
    access: Access,
    context: Context,
    rights: u64,
    (wp, smep, smap): (bool, bool, bool),
) -> bool {
    let (user_page, writable, nx) = (rights & USER != 0, rights & WRITABLE != 0, rights & NX != 0);
    match (context, access) {
        (Context::User, Access::Read) => user_page,
        (Context::User, Access::Write) => user_page && writable,
        (Context::User, Access::Execute) => user_page && !nx,
        (_, Access::Execute) if user_page && smep => false,
        (_, Access::Execute) => !nx,
        (_, Access::Read) => !user_page || !smap || context == Context::SupervisorOpen,
        (_, Access::Write) => {
            (writable || !wp) && (!user_page || !smap || context == Context::SupervisorOpen)
        }
    }
}

/// Every combination of rights, taken away at every level, for every kind of access.
#[test]
fn rights_are_those_of_the_manual() {
    let mut core = core();
    let entries = long(&mut core);
    for bits in 0..64u32 {
        let (wp, smep, smap) = (bits & 1 != 0, bits & 2 != 0, bits & 4 != 0);
        let bit = |on: bool, mask: u64| if on { mask } else { 0 };
        core.control.cr0 = core.control.cr0 & !CR0_WP | bit(wp, CR0_WP);
        core.control.cr4 =
            core.control.cr4 & !(CR4_SMEP | CR4_SMAP) | bit(smep, CR4_SMEP) | bit(smap, CR4_SMAP);
        let rights =
            bit(bits & 8 != 0, USER) | bit(bits & 16 != 0, WRITABLE) | bit(bits & 32 != 0, NX);
        for (level, entry) in entries.into_iter().enumerate() {
            let next = if level == 3 {
                PAGE
            } else {
                TABLES + (level as u64 + 1) * 0x1000
            };
            for access in [Access::Read, Access::Write, Access::Execute] {
                for context in [Context::User, Context::Supervisor, Context::SupervisorOpen] {
                    put(&mut core, entry, next | PRESENT | rights);
                    let found = core.translate(LINEAR | 0x123, access, context);
                    let permitted = is_permitted(access, context, rights, (wp, smep, smap));
                    let code = 1
                        | u16::from(access == Access::Write) << 1
                        | u16::from(context == Context::User) << 2
                        | u16::from(access == Access::Execute) << 4;
                    let case =
                        format!("{rights:#x} at {level}, {access:?} by {context:?}, {bits:#b}");
                    match found {
                        Ok(found) => {
                            assert!(permitted, "{case}");
                            assert_eq!(found.physical, PAGE | 0x123);
                        }
                        Err(fault) => {
                            assert!(!permitted, "{case}");
                            assert_eq!(fault, Fault::pf(code), "{case}");
                            assert_eq!(core.control.cr2, LINEAR | 0x123);
                        }
                    }
                    put(&mut core, entry, next | ALL);
                }
            }
        }
    }
}

#[test]
fn accessed_and_dirty_bits_are_set_by_what_succeeds() {
    let mut core = core();
    let entries = long(&mut core);
    put(&mut core, entries[3], PAGE | PRESENT | USER);
    assert!(
        core.translate(LINEAR, Access::Write, Context::User)
            .is_err()
    );
    for entry in entries {
        assert_eq!(get(&mut core, entry) & (ACCESSED | DIRTY), 0);
    }
    put(&mut core, entries[3], PAGE | ALL);
    let read = core.translate(LINEAR, Access::Read, Context::User).unwrap();
    assert!(
        !read.writable,
        "a store must come back to set the dirty bit"
    );
    for entry in entries {
        assert_eq!(get(&mut core, entry) & (ACCESSED | DIRTY), ACCESSED);
    }
    let written = core
        .translate(LINEAR, Access::Write, Context::User)
        .unwrap();
    assert!(written.writable);
    for entry in &entries[..3] {
        assert_eq!(get(&mut core, *entry) & DIRTY, 0);
    }
    assert_eq!(get(&mut core, entries[3]) & DIRTY, DIRTY);
}

#[test]
fn large_pages_and_reserved_bits_in_long_mode() {
    let mut core = core();
    let entries = long(&mut core);
    let offset = 0x12_3456;
    for (level, size) in [(2, 1u64 << 21), (1, 1 << 30)] {
        put(&mut core, entries[level], (size * 3) | ALL | LARGE);
        let linear = LINEAR & !(size - 1) | offset;
        let found = core.translate(linear, Access::Read, Context::User).unwrap();
        assert_eq!(found.physical, (size * 3) | offset);
        put(
            &mut core,
            entries[level],
            (size * 3) | ALL | LARGE | 1 << 13,
        );
        let refused = core.translate(linear, Access::Read, Context::User);
        assert_eq!(refused, Err(Fault::pf(0b1101)), "bit 13 of a large page");
    }
    let mut restored = long(&mut core);
    restored.reverse();
    put(&mut core, restored[3], (TABLES + 0x1000) | ALL | LARGE);
    let refused = core.translate(LINEAR, Access::Read, Context::User);
    assert_eq!(
        refused,
        Err(Fault::pf(0b1101)),
        "a top entry is never large"
    );
    long(&mut core);
    put(&mut core, entries[3], PAGE | ALL | 1 << 51);
    let refused = core.translate(LINEAR, Access::Write, Context::Supervisor);
    assert_eq!(
        refused,
        Err(Fault::pf(0b1011)),
        "an address beyond the physical"
    );
    core.control.efer &= !EFER_NXE;
    put(&mut core, entries[3], PAGE | ALL | NX);
    let refused = core.translate(LINEAR, Access::Read, Context::Supervisor);
    assert_eq!(
        refused,
        Err(Fault::pf(0b1001)),
        "no-execute without efer.NXE"
    );
}

#[test]
fn paging_of_32_bits_with_and_without_pae() {
    let mut core = core();
    core.control.cr0 |= CR0_PG;
    core.control.cr3 = TABLES;
    let linear = 0xc040_3004;
    // Two levels, then one with 4 MiB.
    core.physical_write(
        TABLES + (linear >> 22) * 4,
        &(TABLES as u32 + 0x1007).to_le_bytes(),
    );
    core.physical_write(TABLES + 0x1000 + 3 * 4, &(PAGE as u32 | 7).to_le_bytes());
    let found = core
        .translate(linear, Access::Write, Context::User)
        .unwrap();
    assert_eq!(found.physical, PAGE | 4);
    core.control.cr4 |= CR4_PSE;
    // PSE-36: bit 13 of the entry is address bit 32.
    core.physical_write(TABLES + (linear >> 22) * 4, &0x0040_2087u32.to_le_bytes());
    let found = core.translate(linear, Access::Read, Context::User).unwrap();
    assert_eq!(found.physical, 0x1_0040_3004);
    // PAE: the root has four entries without rights.
    core.control.cr4 |= CR4_PAE;
    core.control.cr3 = TABLES + 0x20;
    put(
        &mut core,
        TABLES + 0x20 + 3 * 8,
        (TABLES + 0x1000) | PRESENT,
    );
    put(&mut core, TABLES + 0x1000 + 2 * 8, (TABLES + 0x2000) | ALL);
    put(&mut core, TABLES + 0x2000 + 3 * 8, PAGE | ALL);
    let found = core
        .translate(linear, Access::Write, Context::User)
        .unwrap();
    assert_eq!(found.physical, PAGE | 4);
    put(&mut core, TABLES + 0x20 + 3 * 8, (TABLES + 0x1000) | ALL);
    let refused = core.translate(linear, Access::Read, Context::User);
    assert_eq!(refused, Err(Fault::pf(0b1101)), "rights in a root entry");
}

#[test]
fn an_access_over_two_pages_faults_where_the_second_begins() {
    let mut core = core();
    let entries = long(&mut core);
    core.tlb.set_context(Context::User);
    put(&mut core, PAGE + 0xff8, 0x1111_1111_1111_1111);
    assert_eq!(core.load::<u32>(LINEAR + 0xffc), Ok(0x1111_1111));
    assert_eq!(core.load::<u64>(LINEAR + 0xffc), Err(Fault::pf(0b100)));
    assert_eq!(core.control.cr2, LINEAR + 0x1000);
    assert_eq!(core.store::<u64>(LINEAR + 0xffc, 0), Err(Fault::pf(0b110)));
    assert_eq!(get(&mut core, PAGE + 0xff8), 0x1111_1111_1111_1111);
    put(&mut core, entries[3] + 8, (PAGE + 0x1000) | ALL);
    assert_eq!(
        core.store::<u64>(LINEAR + 0xffc, 0x2222_2222_3333_3333),
        Ok(())
    );
    assert_eq!(core.load::<u64>(LINEAR + 0xffc), Ok(0x2222_2222_3333_3333));
    assert_eq!(get(&mut core, PAGE + 0x1000) as u32, 0x2222_2222);
    assert_eq!(core.load::<u8>(0x8000_0000_0000), Err(Fault::GP0));
}

#[test]
fn a_cached_translation_lives_until_it_is_flushed() {
    let mut core = core();
    let entries = long(&mut core);
    put(&mut core, PAGE, 1);
    put(&mut core, PAGE + 0x1000, 2);
    assert_eq!(core.load::<u64>(LINEAR), Ok(1));
    put(&mut core, entries[3], (PAGE + 0x1000) | ALL);
    core.tlb.flush_page(LINEAR);
    assert_eq!(core.load::<u64>(LINEAR), Ok(2));
    put(&mut core, entries[3], PAGE | ALL);
    core.tlb.flush(false);
    assert_eq!(core.load::<u64>(LINEAR), Ok(1));
}

#[test]
fn stores_are_logged_again_after_the_log_was_taken() {
    let mut core = core();
    long(&mut core);
    let pages = std::sync::Arc::clone(core.ram.pages());
    let page = (PAGE / 0x1000) as usize;
    core.store::<u8>(LINEAR, 1).unwrap();
    pages.set_logging(true);
    core.tlb.flush_writes(None);
    for _ in 0..2 {
        assert!(!pages.is_dirty(page));
        core.store::<u8>(LINEAR, 1).unwrap();
        assert!(pages.is_dirty(page));
        assert_ne!(pages.take_dirty(page / 64), 0);
        core.tlb.flush_writes(None);
    }
}

proptest! {
    /// Whatever is in the tables, a walk ends, and what is cached is what a walk finds.
    #[test]
    fn any_tables_can_be_walked(
        words in prop::collection::vec(any::<u64>(), 8),
        linear in any::<u64>(),
        mode in 0..3u32,
    ) {
        let mut core = core();
        core.control.cr0 |= CR0_PG;
        core.control.cr3 = TABLES;
        core.control.cr4 |= CR4_PSE;
        if mode > 0 {
            core.control.cr4 |= CR4_PAE;
        }
        if mode > 1 {
            core.control.efer = EFER_LME | EFER_LMA | EFER_NXE;
        }
        // Tables that point into themselves, mostly.
        for slot in 0..512u64 {
            let word = words[slot as usize % words.len()];
            let value = if word % 4 == 0 { word } else { word & 0xfff | TABLES | PRESENT };
            put(&mut core, TABLES + slot * 8, value);
        }
        core.tlb.flush(true);
        let canonical = (linear as i64) << 16 >> 16;
        let linear = if mode > 1 { canonical as u64 & !7 } else { linear & 0xffff_fff8 };
        let walked = core.translate(linear, Access::Read, Context::Supervisor);
        match (walked, core.load::<u64>(linear)) {
            (Ok(found), Ok(loaded)) => {
                let mut bytes = [0; 8];
                core.physical_read(found.physical, &mut bytes);
                prop_assert_eq!(loaded, u64::from_le_bytes(bytes));
            }
            (Err(walked), Err(loaded)) => prop_assert_eq!(walked, loaded),
            (walked, loaded) => prop_assert!(false, "{:?} but {:?}", walked, loaded),
        }
    }
}
