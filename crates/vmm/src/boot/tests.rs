//! Tests of `boot`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{Seek, Write};

use proptest::prelude::*;

use super::*;

const LOAD_AT: u64 = 0x10_0000;
const CODE: &[u8] = b"this is the kernel, and it is repeated, repeated, repeated";

fn put(out: &mut Vec<u8>, fields: &[u64], bytes: usize) {
    for field in fields {
        out.extend_from_slice(&field.to_le_bytes()[..bytes]);
    }
}

/// A vmlinux with one segment at [`LOAD_AT`], and a PVH note if `pvh`.
fn vmlinux(pvh: Option<u32>) -> Vec<u8> {
    let mut note = Vec::new();
    // A note of somebody else comes first.
    put(&mut note, &[3, 5, 18], 4);
    note.extend_from_slice(b"ab\0\0......\0\0");
    note.truncate(12 + 4 + 8);
    if let Some(entry) = pvh {
        put(&mut note, &[4, 4, 18], 4);
        note.extend_from_slice(b"Xen\0");
        put(&mut note, &[u64::from(entry)], 4);
    }
    let code_at = (64 + 2 * 56 + note.len()) as u64;
    let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    put(&mut elf, &[2, 62], 2);
    put(&mut elf, &[1], 4);
    put(&mut elf, &[LOAD_AT + 8, 64, 0], 8);
    put(&mut elf, &[0], 4);
    put(&mut elf, &[64, 56, 2, 0, 0, 0], 2);
    put(&mut elf, &[1, 7], 4);
    let size = CODE.len() as u64;
    put(
        &mut elf,
        &[code_at, 0xffff_ffff_8000_0000, LOAD_AT, size, size + 100, 0],
        8,
    );
    put(&mut elf, &[4, 4], 4);
    let notes = note.len() as u64;
    put(&mut elf, &[64 + 2 * 56, 0, 0, notes, notes, 4], 8);
    elf.extend_from_slice(&note);
    elf.extend_from_slice(CODE);
    elf
}

/// A bzImage around a payload.
fn bzimage(payload: &[u8], entry64: bool) -> Vec<u8> {
    let mut file = vec![0; 1024];
    file[0x1f1] = 1;
    file[0x202..0x206].copy_from_slice(b"HdrS");
    file[0x206..0x208].copy_from_slice(&0x020fu16.to_le_bytes());
    file[0x236] = u8::from(entry64);
    file[0x248..0x24c].copy_from_slice(&16u32.to_le_bytes());
    file[0x24c..0x250].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    file[0x258..0x260].copy_from_slice(&(2u64 << 20).to_le_bytes());
    file[0x260..0x264].copy_from_slice(&(1u32 << 20).to_le_bytes());
    file.extend_from_slice(b"the decompressor");
    file.extend_from_slice(payload);
    file
}

fn ram() -> Ram {
    Ram::new(8 << 20).unwrap()
}

fn bytes_at(ram: &Ram, address: u64, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    ram.guest_memory()
        .read_slice(&mut bytes, GuestAddress(address))
        .unwrap();
    bytes
}

fn u64_at(ram: &Ram, address: u64) -> u64 {
    ram.guest_memory().read_obj(GuestAddress(address)).unwrap()
}

fn u32_at(ram: &Ram, address: u64) -> u32 {
    ram.guest_memory().read_obj(GuestAddress(address)).unwrap()
}

fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file.rewind().unwrap();
    file
}

#[test]
fn a_kernel_with_a_pvh_note_is_told_memory_initrd_command_line_and_acpi() {
    let ram = ram();
    let kernel = Kernel::open(file(&vmlinux(Some(0x10_0010)))).unwrap();
    let boot = Boot {
        kernel: &kernel,
        initrd: &[file(b"12345"), file(b"678")],
        command_line: "console=ttyS0",
        acpi: Some((b"RSD PTR ", ACPI_START)),
    };
    let entry = load(&ram, &boot).unwrap();
    assert_eq!(entry.protocol, Protocol::Pvh);
    let state = entry.state();
    assert_eq!(state.registers.rip, 0x10_0010);
    assert_eq!(state.control.cr0 & (1 << 31 | 1), 1);
    assert_eq!(bytes_at(&ram, LOAD_AT, CODE.len()), CODE);

    let info = state.registers.general[3];
    assert_eq!(u32_at(&ram, info), 0x336e_c578);
    assert_eq!(u32_at(&ram, info + 12), 1);
    let module = u64_at(&ram, info + 16);
    let (initrd, size) = (u64_at(&ram, module), u64_at(&ram, module + 8));
    assert_eq!(initrd % 4096, 0);
    assert_eq!(bytes_at(&ram, initrd, size as usize), b"12345\0\0\x00678\0");
    let line = u64_at(&ram, info + 24);
    assert_eq!(bytes_at(&ram, line, 14), b"console=ttyS0\0");
    assert_eq!(u64_at(&ram, info + 32), ACPI_START);
    assert_eq!(bytes_at(&ram, ACPI_START, 8), b"RSD PTR ");

    let map = u64_at(&ram, info + 40);
    let usable: u64 = (0..u64::from(u32_at(&ram, info + 48)))
        .map(|index| map + 24 * index)
        .filter(|&at| u32_at(&ram, at + 16) == 1)
        .map(|at| u64_at(&ram, at + 8))
        .sum();
    assert_eq!(usable, (8 << 20) - (0x10_0000 - 0xa_0000));
}

#[test]
fn a_kernel_without_one_is_entered_in_64_bit_mode_with_boot_params() {
    let ram = ram();
    let kernel = Kernel::parse(vmlinux(None)).unwrap();
    let boot = Boot {
        kernel: &kernel,
        initrd: &[],
        command_line: "quiet",
        acpi: None,
    };
    let state = load(&ram, &boot).unwrap().state();
    assert_eq!(state.registers.rip, LOAD_AT + 8);
    let params = state.registers.general[6];
    assert_eq!(u32_at(&ram, params + 0x202), u32::from_le_bytes(*b"HdrS"));
    let line = u64::from(u32_at(&ram, params + 0x228));
    assert_eq!(bytes_at(&ram, line, 6), b"quiet\0");
    // The page tables map an address to itself: walk them for one.
    let address = 3u64 << 30 | 5 << 21;
    let mut table = state.control.cr3;
    for shift in [39, 30, 21] {
        let entry = u64_at(&ram, table + (address >> shift & 511) * 8);
        assert_eq!(entry & 1, 1);
        table = entry & !0xfff;
    }
    assert_eq!(table, address);
}

#[test]
fn a_bzimage_of_unknown_compression_unpacks_itself() {
    let ram = ram();
    let image = bzimage(b"something new", true);
    let loaded = Kernel::parse(image).unwrap().load(&ram).unwrap();
    assert_eq!(loaded.protocol, Protocol::Linux64);
    assert_eq!(loaded.entry, (2 << 20) + 0x200);
    assert_eq!(loaded.end, 3 << 20);
    assert_eq!(bytes_at(&ram, 2 << 20, 16), b"the decompressor");
    assert!(Kernel::parse(bzimage(b"something new", false)).is_err());
}

#[test]
fn what_does_not_fit_is_refused_with_what_to_do() {
    let kernel = Kernel::parse(vmlinux(None)).unwrap();
    let small = Ram::new(1 << 20).unwrap();
    assert!(matches!(
        kernel.load(&small),
        Err(KernelError::Memory { .. })
    ));
    let boot = |initrd: &[File], command_line: &str| {
        let boot = Boot {
            kernel: &kernel,
            initrd,
            command_line,
            acpi: None,
        };
        load(&ram(), &boot).unwrap_err()
    };
    let large = tempfile::tempfile().unwrap();
    large.set_len(7 << 20).unwrap();
    assert!(matches!(boot(&[large], ""), BootError::InitrdRoom { .. }));
    let long = "x".repeat(2048);
    assert!(matches!(
        boot(&[], &long),
        BootError::CommandLine { bytes: 2048 }
    ));
}

proptest! {
    #[test]
    fn no_file_breaks_the_readers(
        bytes in proptest::collection::vec(any::<u8>(), 0..2048),
        flips in proptest::collection::vec((0usize..600, any::<u8>()), 0..8),
        kind in 0..3,
    ) {
        let mut file = match kind {
            0 => vmlinux(Some(0x10_0010)),
            1 => bzimage(&vmlinux(None), true),
            _ => bytes,
        };
        for (at, value) in flips {
            if let Some(byte) = file.get_mut(at) {
                *byte = value;
            }
        }
        crate::fuzzing::kernel(&file);
    }
}
