//! Tests of `acpi`.

use std::{
    process::Command,
    sync::{Arc, Mutex},
};

use memory::Ram;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::{Registers, fuzzing, testing::Recorder};

const ADDRESS: u64 = 0xe_0000;

fn made(vcpus: u32) -> AcpiTables {
    tables(&AcpiConfig {
        address: ADDRESS,
        vcpus,
        memory64: 0x40_0000_0000..0x80_0000_0000,
    })
}

/// The table at an address: its signature, and that its bytes sum up to zero.
fn table(made: &AcpiTables, address: u64) -> &[u8] {
    let bytes = &made.bytes[(address - ADDRESS) as usize..];
    let length = u32::from_le_bytes(bytes[4..8].try_into().unwrap()) as usize;
    let bytes = &bytes[..length];
    assert_eq!(
        bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)),
        0
    );
    bytes
}

fn address(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// All tables in the order of the XSDT, and the DSDT.
fn all(made: &AcpiTables) -> Vec<&[u8]> {
    let rsdp = &made.bytes[..36];
    assert_eq!(&rsdp[..8], b"RSD PTR ");
    for length in [20, 36] {
        let sum = rsdp[..length]
            .iter()
            .fold(0u8, |sum, byte| sum.wrapping_add(*byte));
        assert_eq!(sum, 0);
    }
    let xsdt = table(made, address(rsdp, 24));
    assert_eq!(&xsdt[..4], b"XSDT");
    let mut tables: Vec<_> = (36..xsdt.len())
        .step_by(8)
        .map(|at| table(made, address(xsdt, at)))
        .collect();
    let dsdt = address(tables[0], 140);
    tables.push(table(made, dsdt));
    tables
}

#[test]
fn the_tables_are_found_from_the_first_and_their_sums_are_right() {
    let made = made(3);
    assert_eq!(made.rsdp, ADDRESS);
    assert!(made.bytes.len().is_multiple_of(4096));
    let tables = all(&made);
    let signatures: Vec<_> = tables.iter().map(|it| &it[..4]).collect();
    assert_eq!(signatures, [b"FACP", b"APIC", b"MCFG", b"DSDT"]);
    let madt = tables[1];
    // Three local APICs of 8 bytes, NMIs, the IOAPIC; no 8259.
    assert_eq!(madt.len(), 44 + 3 * 8 + 6 + 12);
    assert_eq!(&madt[36..44], [0, 0, 0xe0, 0xfe, 0, 0, 0, 0]);
    assert_eq!(&madt[60..68], [0, 8, 2, 2, 1, 0, 0, 0]);
    // Hardware-reduced, with a reset register: bits 20 and 10.
    let flags = u32::from_le_bytes(tables[0][112..116].try_into().unwrap());
    assert_eq!(flags & (1 << 20 | 1 << 10), 1 << 20 | 1 << 10);
    assert_eq!(address(tables[2], 44), 0xe000_0000);
}

#[test]
fn the_most_vcpus_fit_where_tables_are_put() {
    assert!(made(255).bytes.len() <= 0x2_0000);
}

#[test]
fn the_language_of_the_dsdt_is_understood_by_its_reference_compiler() {
    let name = "the_language_of_the_dsdt_is_understood_by_its_reference_compiler";
    if Command::new("iasl").arg("-v").output().is_err() {
        eprintln!("SKIP {name}: iasl is not installed");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let made = made(2);
    for table in all(&made) {
        let signature = std::str::from_utf8(&table[..4]).unwrap();
        let path = directory.path().join(format!("{signature}.dat"));
        std::fs::write(&path, table).unwrap();
        let run = |arguments: &[&str]| {
            let output = Command::new("iasl")
                .args(arguments)
                .current_dir(&directory)
                .output();
            let output = output.unwrap();
            let text = String::from_utf8_lossy(&output.stdout).into_owned()
                + &String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{signature}: {text}");
            text
        };
        run(&["-d", &format!("{signature}.dat")]);
        let source = std::fs::read_to_string(path.with_extension("dsl")).unwrap();
        assert!(!source.contains("Warning"), "{source}");
        if signature == "DSDT" {
            let text = run(&["-p", "again", &format!("{signature}.dsl")]);
            assert!(text.contains("0 Errors"), "{text}");
            for part in [
                "PNP0A08",
                "ACPI0013",
                "_S5",
                "Notify (\\_SB.VGEN",
                "0x000E0800",
            ] {
                assert!(source.contains(part), "{part} in {source}");
            }
        }
    }
}

type Requests = Arc<Mutex<Vec<PowerRequest>>>;

fn registers() -> (PowerRegisters, Arc<Recorder>, Requests) {
    let (line, requests) = (Arc::new(Recorder::default()), Requests::default());
    let sink = requests.clone();
    let registers = PowerRegisters::new(line.clone(), move |it| sink.lock().unwrap().push(it));
    (registers, line, requests)
}

fn events(registers: &PowerRegisters) -> u32 {
    let mut data = [0; 4];
    registers.read(4, &mut data);
    u32::from_le_bytes(data)
}

#[test]
fn only_soft_off_and_the_reset_value_are_requests() {
    let (registers, _, requests) = registers();
    // S5 without the bit that enters it, another type, another value.
    registers.write(0, &[5 << 2]);
    registers.write(0, &[3 << 2 | 1 << 5]);
    registers.write(2, &[0xfe]);
    registers.write(0, &[5 << 2 | 1 << 5, 0]);
    assert!(requests.lock().unwrap().is_empty());
    registers.write(0, &[5 << 2 | 1 << 5]);
    registers.write(2, &[1]);
    assert_eq!(
        *requests.lock().unwrap(),
        [PowerRequest::Off, PowerRequest::Reset]
    );
}

#[test]
fn events_wait_until_their_register_is_read() {
    let (registers, line, _) = registers();
    registers.press_power_button();
    registers.press_sleep_button();
    assert!(line.levels().iter().all(|high| *high));
    // A load of one byte takes nothing.
    registers.read(4, &mut [0]);
    assert_eq!(events(&registers), 0b11);
    assert_eq!(line.levels(), [false]);
    assert_eq!(events(&registers), 0);
    registers.press_power_button();
    let (restored, line, _) = self::registers();
    restored.restore(registers.state());
    assert_eq!(line.levels(), [true]);
    assert_eq!(events(&restored), 1);
}

#[test]
fn a_renewed_generation_is_in_memory_and_an_event() {
    let ram = Ram::new(1 << 20).unwrap();
    let made = made(1);
    let (registers, line, _) = registers();
    let registers = Arc::new(registers);
    let memory = ram.guest_memory().clone();
    let generation = GenerationId::new(memory, made.generation_id, registers.clone());
    generation.set([7; 16]).unwrap();
    assert!(line.levels().is_empty());
    generation.renew([9; 16]).unwrap();
    let found: [u8; 16] = ram
        .guest_memory()
        .read_obj(GuestAddress(made.generation_id))
        .unwrap();
    assert_eq!(found, [9; 16]);
    assert_eq!(events(&registers), 0b100);
    // Within the tables, where nothing else is.
    let at = (made.generation_id - ADDRESS) as usize;
    assert_eq!(made.bytes[at..at + 16], [0; 16]);
}

proptest::proptest! {
    #[test]
    fn hostile_accesses_do_no_harm(
        bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..1000),
    ) {
        fuzzing::power(&bytes);
    }
}
