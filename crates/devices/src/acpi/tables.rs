//! All tables but the DSDT, and where each lies.

use std::ops::Range;

use acpi_tables::{
    Aml,
    fadt::{FADTBuilder, Flags},
    gas::{AccessSize, AddressSpace, GAS},
    mcfg::MCFG,
    rsdp::Rsdp,
    sdt::Sdt,
    xsdt::XSDT,
};
use memory::layout;

use super::{
    PowerRegisters,
    device::{RESET, RESET_VALUE, SLEEP_CONTROL, SLEEP_STATUS},
    dsdt::dsdt,
};

pub(super) const OEM: [u8; 6] = *b"BERTH ";
pub(super) const OEM_TABLE: [u8; 8] = *b"BERTHVM ";
pub(super) const OEM_REVISION: u32 = 1;

const TABLE_ALIGN: usize = 64;
const PAGE: usize = 4096;
/// Where in the first page the generation identifier is.
const GENERATION_ID: usize = 0x800;

/// FADT: there are devices on ports, no VGA, no ASPM. No keyboard controller, so that nobody waits
/// for one.
const BOOT_ARCHITECTURE: u16 = 1 << 0 | 1 << 2 | 1 << 4;

/// What the tables describe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AcpiConfig {
    /// Where they will lie, a multiple of 4096.
    pub address: u64,
    /// How many vCPUs; their APIC ids count from 0. At most 255.
    pub vcpus: u32,
    /// Addresses for 64-bit BARs, as the PCI bus has them.
    pub memory64: Range<u64>,
}

/// The tables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AcpiTables {
    /// To be placed at the address they were made for; whole pages, to be reserved.
    pub bytes: Vec<u8>,
    /// Address of the RSDP: where they begin.
    pub rsdp: u64,
    /// Address of the generation identifier, within them; all zeros there.
    pub generation_id: u64,
}

/// Makes the tables. The first page has the RSDP and the generation identifier, which are of known
/// sizes; then come the others.
#[must_use]
pub fn tables(config: &AcpiConfig) -> AcpiTables {
    let generation_id = config.address + GENERATION_ID as u64;
    let mut blob = Blob {
        address: config.address,
        bytes: vec![0; PAGE],
    };
    let dsdt = blob.place(dsdt(config, generation_id).as_slice());
    let fadt = blob.place(&to_bytes(&fadt(dsdt)));
    let madt = blob.place(madt(config.vcpus).as_slice());
    let mut mcfg = MCFG::new(OEM, OEM_TABLE, OEM_REVISION);
    mcfg.add_ecam(layout::ECAM_START, 0, 0, 0);
    let mcfg = blob.place(&to_bytes(&mcfg));
    let mut xsdt = XSDT::new(OEM, OEM_TABLE, OEM_REVISION);
    for table in [fadt, madt, mcfg] {
        xsdt.add_entry(table);
    }
    let xsdt = blob.place(&to_bytes(&xsdt));
    let rsdp = to_bytes(&Rsdp::new(OEM, xsdt));
    blob.bytes[..rsdp.len()].copy_from_slice(&rsdp);
    blob.bytes
        .resize(blob.bytes.len().next_multiple_of(PAGE), 0);
    AcpiTables {
        bytes: blob.bytes,
        rsdp: config.address,
        generation_id,
    }
}

/// The bytes so far, and where they will lie.
struct Blob {
    address: u64,
    bytes: Vec<u8>,
}

impl Blob {
    /// Appends a table; the result is its address.
    fn place(&mut self, table: &[u8]) -> u64 {
        let at = self.bytes.len().next_multiple_of(TABLE_ALIGN);
        self.bytes.resize(at, 0);
        self.bytes.extend_from_slice(table);
        self.address + at as u64
    }
}

fn to_bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

fn fadt(dsdt: u64) -> impl Aml {
    let register = |offset: u16| {
        let port = u64::from(PowerRegisters::BASE + offset);
        GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, port)
    };
    let mut fadt = FADTBuilder::new(OEM, OEM_TABLE, OEM_REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Wbinvd)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton);
    fadt.iapc_boot_arch = BOOT_ARCHITECTURE.into();
    fadt.reset_reg = register(RESET);
    fadt.reset_value = RESET_VALUE;
    fadt.sleep_control_reg = register(SLEEP_CONTROL);
    fadt.sleep_status_reg = register(SLEEP_STATUS);
    fadt.hypervisor_vendor_identity = u64::from_le_bytes(*b"BERTH\0\0\0").into();
    fadt.finalize()
}

/// Interrupt controllers (ACPI 6.5, 5.2.12): a local APIC for each vCPU, NMIs at their second
/// input, and the IOAPIC. There is no 8259.
fn madt(vcpus: u32) -> Sdt {
    let mut madt = Sdt::new(*b"APIC", 36, 5, OEM, OEM_TABLE, OEM_REVISION);
    madt.append_slice(&(layout::LAPIC_START as u32).to_le_bytes());
    madt.append_slice(&0u32.to_le_bytes());
    for id in 0..vcpus.min(255) as u8 {
        madt.append_slice(&[0, 8, id, id, 1, 0, 0, 0]);
    }
    madt.append_slice(&[4, 6, 0xff, 0, 0, 1]);
    madt.append_slice(&[1, 12, 0, 0]);
    madt.append_slice(&(layout::IOAPIC_START as u32).to_le_bytes());
    madt.append_slice(&0u32.to_le_bytes());
    madt
}
