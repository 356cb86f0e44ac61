//! What the fuzz targets and property tests call. Nothing here may panic, whatever the bytes.

mod code;

pub use code::execute;

use std::sync::Arc;

use memory::Ram;

use crate::{
    Bus, Msi,
    soft::{
        clock::{KvmClock, Tsc},
        lapic::{Gates, LocalApic, Router},
    },
};

/// A bus with nothing on it.
struct Nothing;

impl Bus for Nothing {
    fn port_read(&self, _port: u16, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn port_write(&self, _port: u16, _data: &[u8]) {}

    fn mmio_read(&self, _address: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn mmio_write(&self, _address: u64, _data: &[u8]) {}

    fn end_of_interrupt(&self, _vector: u8) {}
}

/// Everything of this crate that a guest feeds.
pub fn fuzz(bytes: &[u8]) {
    lapic(bytes);
    execute(bytes);
    crate::soft::native::fuzzing::fuzz(bytes);
}

/// Two local APICs and a clock, under the accesses and messages that `bytes` encode: twelve bytes
/// each, of kind, place and value.
pub fn lapic(bytes: &[u8]) {
    let (router, tsc) = (Arc::new(Router::new()), Arc::new(Tsc::new()));
    let apic = |index| {
        LocalApic::new(
            index,
            Arc::clone(&router),
            Arc::new(Nothing),
            Arc::clone(&tsc),
        )
        .expect("both indexes are free")
    };
    let (mut apic, mut other) = (apic(0), apic(1));
    let ram = Ram::new(1 << 20).expect("a megabyte of memory");
    let mut clock = KvmClock::default();
    apic.bind().expect("a timer");
    for access in bytes.chunks_exact(12) {
        let [kind, a, b, c, value @ ..] = access else {
            continue;
        };
        let place = u32::from_le_bytes([*a, *b, *c, 0]);
        let value: [u8; 8] = value.try_into().expect("twelve bytes less four");
        let wide = u64::from_le_bytes(value);
        let offset = u64::from(place & 0xfff);
        match kind & 7 {
            0 => apic.mmio_write(offset & !0xf, &value[..4]),
            1 => apic.mmio_write(offset, &value[..usize::from(kind >> 3 & 7) + 1]),
            2 => {
                let mut data = value;
                apic.mmio_read(offset, &mut data[..usize::from(kind >> 3 & 7) + 1]);
            }
            3 => {
                let msr = [0x1b, 0x6e0, 0x800 + (place >> 2 & 0xff)][place as usize % 3];
                // Faults are the guest's business.
                let _ = apic.write_msr(msr, wide);
                let _ = apic.read_msr(msr);
            }
            4 => router.signal(Msi {
                address: wide,
                data: place,
            }),
            5 => {
                let msr = [0x11, 0x12, 0x4b56_4d00, 0x4b56_4d01][place as usize % 4];
                let _ = clock.write_msr(msr, wide, &ram, &tsc);
            }
            6 => apic.set_cr8(wide),
            _ => {
                let state = apic.state();
                apic.restore(&state).expect("what was saved is taken");
            }
        }
        let gates = Gates {
            interrupts: kind & 8 != 0,
            nmi: kind & 16 != 0,
            sipi: kind & 32 != 0,
        };
        apic.take(gates);
        other.take(gates);
    }
}
