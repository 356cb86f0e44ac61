//! A guest without an operating system: integer code that any `/dev/kvm` can run, also one that
//! interprets it. It greets, sends back what is typed, by interrupts, and ends as it is told.

use std::{fs, path::Path};

/// Where it lies.
const ADDRESS: u64 = 0x10_0000;
/// `XEN_ELFNOTE_PHYS32_ENTRY`: where it is entered, in 32-bit protected mode without paging.
const NOTE_ENTRY: u32 = 18;
const HEADERS: usize = 64 + 2 * 56;
const NOTE: usize = 20;

/// The sleep control register of ACPI, and what makes it power off: type 5, enabled.
const SLEEP_PORT: u32 = 0x600;
const SLEEP_OFF: u32 = 5 << 2 | 1 << 5;

/// What it says first.
pub const GREETING: &str = "bare metal\n";
/// Typed, this powers it off; so does every text with that letter, and likewise the others.
pub const OFF: &str = "q";
/// Typed, this resets it.
pub const RESET: &str = "r";
/// Typed, this makes it fault until it shuts down.
pub const FAULT: &str = "f";

std::arch::global_asm!(
    ".pushsection .rodata.berth_bare, \"a\"",
    ".code32",
    ".globl berth_bare_start",
    "berth_bare_start:",
    "mov esp, 0x180000",
    // What lies behind a call is found by where it would return to.
    "call .Lbare_table",
    // Everything that was received, then the end of the interrupt.
    ".Lbare_handler:",
    "mov edx, 0x3fd",
    "in al, dx",
    "test al, 1",
    "jz 6f",
    "mov edx, 0x3f8",
    "in al, dx",
    "out dx, al",
    "cmp al, 0x71",
    "je 7f",
    "cmp al, 0x72",
    "je 8f",
    "cmp al, 0x66",
    "jne .Lbare_handler",
    // A table of no gates, and a fault.
    "mov word ptr [esp - 8], 0",
    "lidt [esp - 8]",
    "ud2",
    "6: mov dword ptr [ebx + 0xb0], 0",
    // Not `iret`, which an interpreting kernel does not know in this mode: nothing was interrupted.
    "mov esp, 0x180000",
    "jmp .Lbare_wait",
    // Sleep control register of ACPI: S5, now.
    "7: mov edx, {sleep}",
    "mov al, {off}",
    "out dx, al",
    "jmp 7b",
    "8: mov al, 0xfe",
    "out 0x64, al",
    "jmp 8b",
    // The gate of vector 0x30, in a table at 0x140000.
    ".Lbare_table:",
    "pop eax",
    "mov edi, 0x140000",
    "mov word ptr [edi + 0x180], ax",
    "mov cx, cs",
    "mov word ptr [edi + 0x182], cx",
    "mov word ptr [edi + 0x184], 0x8e00",
    "shr eax, 16",
    "mov word ptr [edi + 0x186], ax",
    "mov word ptr [esp - 8], 0x3ff",
    "mov dword ptr [esp - 6], edi",
    "lidt [esp - 8]",
    // The local APIC on; line 4 of the IOAPIC is vector 0x30 of this vCPU.
    "mov ebx, 0xfee00000",
    "mov dword ptr [ebx + 0xf0], 0x1ff",
    "mov esi, 0xfec00000",
    "mov dword ptr [esi], 0x19",
    "mov dword ptr [esi + 0x10], 0",
    "mov dword ptr [esi], 0x18",
    "mov dword ptr [esi + 0x10], 0x30",
    // The serial port interrupts for what it receives.
    "mov edx, 0x3f9",
    "mov al, 1",
    "out dx, al",
    "call .Lbare_greet",
    ".ascii \"bare metal\\n\"",
    ".Lbare_greet:",
    "pop esi",
    "mov ecx, 11",
    "mov edx, 0x3f8",
    "rep outsb",
    ".Lbare_wait:",
    "sti",
    "4: hlt",
    "jmp 4b",
    ".globl berth_bare_end",
    "berth_bare_end:",
    ".code64",
    ".popsection",
    sleep = const SLEEP_PORT,
    off = const SLEEP_OFF,
);

unsafe extern "C" {
    static berth_bare_start: u8;
    static berth_bare_end: u8;
}

fn code() -> &'static [u8] {
    let start = &raw const berth_bare_start;
    let length = (&raw const berth_bare_end) as usize - start as usize;
    // SAFETY: the code lies between the two symbols, of one section that nobody writes.
    unsafe { std::slice::from_raw_parts(start, length) }
}

/// Writes it as a kernel with a PVH entry.
pub fn write(path: &Path) {
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    let half = |file: &mut Vec<u8>, values: &[u16]| {
        values.iter().for_each(|it| file.extend(it.to_le_bytes()));
    };
    let long = |file: &mut Vec<u8>, values: &[u64]| {
        values.iter().for_each(|it| file.extend(it.to_le_bytes()));
    };
    // An executable for x86-64; its program headers follow.
    half(&mut file, &[2, 62, 1, 0]);
    long(&mut file, &[ADDRESS, 64, 0]);
    half(&mut file, &[0, 0, 64, 56, 2, 0, 0, 0]);
    let (offset, length) = ((HEADERS + NOTE) as u64, code().len() as u64);
    for (kind, offset, address, length) in [
        (1, offset, ADDRESS, length),
        (4, HEADERS as u64, 0, NOTE as u64),
    ] {
        // Its kind, and that it can be read, written, executed.
        long(&mut file, &[kind | 7 << 32]);
        long(&mut file, &[offset, address, address, length, length, 4]);
    }
    // Lengths of name and description, kind, "Xen".
    for word in [
        4,
        4,
        NOTE_ENTRY,
        u32::from_le_bytes(*b"Xen\0"),
        ADDRESS as u32,
    ] {
        file.extend(word.to_le_bytes());
    }
    file.extend(code());
    fs::write(path, file).unwrap();
}
