//! A bare machine: RAM with page tables, a bus that records, vCPUs, and a watch that ends what hangs.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, mpsc},
    time::Duration,
};

use cpu::{
    Bus, Exit, Kick, Partition, Vcpu, VcpuState,
    cpuid::Table,
    kvm::{KvmDevice, KvmPartition},
    soft::SoftPartition,
    state::{Activity, SegmentState, TableState},
};
use iced_x86::code_asm::{CodeAssembler, al};
use memory::Ram;

/// Memory of a guest.
pub const RAM_BYTES: u64 = 4 << 20;
/// Its page tables; all of the first GiB is mapped as itself, and 2 MiB pages of devices.
const TABLES: u64 = 0x1000;
/// Bits of entries: present and writable; a large page.
const USED: u64 = 0x3;
const LARGE: u64 = 0x80;
/// Tables that some tests add.
const LEAVES: u64 = 0x38_0000;
/// Its interrupt descriptor table, of 64-bit gates.
pub const IDT: u64 = 0x6000;
/// Its global descriptor table: null, code, data, task.
const GDT: u64 = 0x7000;
/// Where code lies.
pub const CODE: u64 = 0x1_0000;
/// Where handlers of interrupts lie.
pub const HANDLER: u64 = CODE + 0x6000;
/// Top of the stack of the first vCPU; of each other one a page above.
const STACK: u64 = 0x8_0000;
/// Where guests leave what they found.
pub const RESULT: u64 = 0x9_0000;
/// Device memory that the recording bus answers.
pub const DEVICE: u64 = 0xd000_0000;
/// An address nothing is mapped at.
pub const UNMAPPED: u64 = 0x80_0000_0000;
/// Port by which a guest says that it is done.
pub const DONE: u16 = 0x77;
/// Selector of the code segment.
const CODE_SELECTOR: u16 = 0x08;
const DATA_SELECTOR: u16 = 0x10;

/// What a guest did to its bus.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Access {
    PortWrite(u16, Vec<u8>),
    PortRead(u16, usize),
    Write(u64, Vec<u8>),
    Read(u64, usize),
}

/// What a device does when it is written to.
type Reaction = Box<dyn FnMut(&[u8]) + Send>;

/// Records, answers reads from a queue, and kicks all vCPUs when a guest is done.
#[derive(Default)]
pub struct Recorder {
    seen: Mutex<Vec<Access>>,
    answers: Mutex<VecDeque<Vec<u8>>>,
    kickers: Mutex<Vec<Arc<dyn Kick>>>,
    device: Mutex<Option<(u64, Reaction)>>,
    done: Mutex<bool>,
}

impl Recorder {
    pub fn seen(&self) -> Vec<Access> {
        self.seen.lock().unwrap().clone()
    }

    pub fn answer(&self, bytes: &[u8]) {
        self.answers.lock().unwrap().push_back(bytes.to_vec());
    }

    pub fn is_done(&self) -> bool {
        *self.done.lock().unwrap()
    }

    /// Puts a device at an address.
    pub fn react(&self, address: u64, reaction: impl FnMut(&[u8]) + Send + 'static) {
        *self.device.lock().unwrap() = Some((address, Box::new(reaction)));
    }

    fn note(&self, access: Access) {
        self.seen.lock().unwrap().push(access);
    }

    fn fill(&self, data: &mut [u8]) {
        let answer = self.answers.lock().unwrap().pop_front();
        data.fill(0xff);
        if let Some(answer) = answer {
            let count = answer.len().min(data.len());
            data[..count].copy_from_slice(&answer[..count]);
        }
    }
}

impl Bus for Recorder {
    fn port_read(&self, port: u16, data: &mut [u8]) {
        self.note(Access::PortRead(port, data.len()));
        self.fill(data);
    }

    fn port_write(&self, port: u16, data: &[u8]) {
        if port == DONE {
            *self.done.lock().unwrap() = true;
            for kicker in self.kickers.lock().unwrap().iter() {
                kicker.kick();
            }
            return;
        }
        self.note(Access::PortWrite(port, data.to_vec()));
    }

    fn mmio_read(&self, address: u64, data: &mut [u8]) {
        self.note(Access::Read(address, data.len()));
        self.fill(data);
    }

    fn mmio_write(&self, address: u64, data: &[u8]) {
        if let Some((at, reaction)) = &mut *self.device.lock().unwrap()
            && *at == address
        {
            return reaction(data);
        }
        self.note(Access::Write(address, data.to_vec()));
    }

    fn end_of_interrupt(&self, _vector: u8) {}
}

type Make = fn(&Ram, Arc<Recorder>) -> Result<Box<dyn Partition>, String>;

/// A machine without code yet.
pub struct Machine {
    pub ram: Ram,
    pub bus: Arc<Recorder>,
    pub partition: Arc<dyn Partition>,
    make: Make,
}

/// Every backend, with a fresh machine or why there is none.
pub fn backends() -> Vec<(&'static str, Result<Machine, String>)> {
    let all: [(&'static str, Make); 2] = [("kvm", kvm), ("soft", soft)];
    all.map(|(name, make)| (name, Machine::new(make))).into()
}

/// The software CPU, for what hardware need not be asked.
pub fn software() -> Machine {
    Machine::new(soft).unwrap()
}

fn kvm(ram: &Ram, bus: Arc<Recorder>) -> Result<Box<dyn Partition>, String> {
    let device = KvmDevice::open().map_err(|error| error.to_string())?;
    let supported = device
        .supported_cpuid()
        .map_err(|error| error.to_string())?;
    let cpuid = move |index: u32| {
        let mut cpuid = supported.clone();
        for entry in cpuid.as_mut_slice() {
            match entry.function {
                1 => entry.ebx = entry.ebx & 0x00ff_ffff | index << 24,
                0xb | 0x1f => entry.edx = index,
                _ => {}
            }
        }
        cpuid
    };
    KvmPartition::new(device, ram, bus, cpuid)
        .map(|partition| Box::new(partition) as Box<dyn Partition>)
        .map_err(|error| error.to_string())
}

fn soft(ram: &Ram, bus: Arc<Recorder>) -> Result<Box<dyn Partition>, String> {
    let cpuid = |_| Table::default();
    Ok(Box::new(SoftPartition::new(ram, bus, cpuid)))
}

impl Machine {
    fn new(make: Make) -> Result<Self, String> {
        let ram = Ram::new(RAM_BYTES).unwrap();
        let bus = Arc::new(Recorder::default());
        let partition = Arc::from(make(&ram, Arc::clone(&bus))?);
        let machine = Self {
            ram,
            bus,
            partition,
            make,
        };
        machine.tables();
        Ok(machine)
    }

    /// Another partition over the same memory and bus.
    pub fn another(&self) -> Arc<dyn Partition> {
        Arc::from((self.make)(&self.ram, Arc::clone(&self.bus)).unwrap())
    }

    pub fn write(&self, address: u64, bytes: &[u8]) {
        write(&self.ram, address, bytes);
    }

    pub fn word(&self, address: u64, value: u64) {
        self.write(address, &value.to_le_bytes());
    }

    pub fn read(&self, address: u64) -> u64 {
        use vm_memory::{Bytes, GuestAddress};
        self.ram
            .guest_memory()
            .read_obj(GuestAddress(address))
            .unwrap()
    }

    fn tables(&self) {
        self.word(TABLES, (TABLES + 0x1000) | USED);
        for gib in 0..4 {
            let table = TABLES + 0x2000 + gib * 0x1000;
            self.word(TABLES + 0x1000 + gib * 8, table | USED);
            for page in 0..512u64 {
                let address = gib << 30 | page << 21;
                self.word(table + page * 8, address | USED | LARGE);
            }
        }
        for (index, descriptor) in [
            0,
            0x00af_9b00_0000_ffff,
            0x00cf_9300_0000_ffff,
            // A 64-bit task state segment at 0x7800.
            0x0000_8900_7800_0067,
            0,
        ]
        .iter()
        .enumerate()
        {
            self.word(GDT + index as u64 * 8, *descriptor);
        }
    }

    /// Maps 2 MiB at a linear address of the first 4 GiB.
    pub fn map_large(&self, linear: u64, physical: u64) {
        self.word(directory_entry(linear), physical | USED | LARGE);
    }

    /// Maps 4 KiB at a linear address of the first 4 GiB, and nothing around it; where the entry is that does.
    pub fn map_small(&self, linear: u64, physical: u64) -> u64 {
        let entry = LEAVES + (linear >> 12 & 0x1ff) * 8;
        self.word(entry, physical | USED);
        self.word(directory_entry(linear), LEAVES | USED);
        entry
    }

    /// A second address space, for `cr3`: as the first, but for 4 KiB at a linear address that [`Self::map_small`]
    /// mapped.
    pub fn second_space(&self, linear: u64, physical: u64) -> u64 {
        const SPACE: u64 = LEAVES + 0x1000;
        let leaves = SPACE + 0x3000;
        for page in 0..2 {
            for entry in (0..0x1000).step_by(8) {
                self.word(
                    SPACE + page * 0x1000 + entry,
                    self.read(TABLES + page * 0x1000 + entry),
                );
            }
        }
        let directory = directory_entry(linear);
        for entry in (0..0x1000).step_by(8) {
            self.word(
                SPACE + 0x2000 + entry,
                self.read((directory & !0xfff) + entry),
            );
        }
        self.word(SPACE, (SPACE + 0x1000) | USED);
        self.word(SPACE + 0x1000 + (linear >> 30) * 8, (SPACE + 0x2000) | USED);
        self.word(SPACE + 0x2000 + (directory & 0xfff), leaves | USED);
        self.word(leaves + (linear >> 12 & 0x1ff) * 8, physical | USED);
        SPACE
    }

    /// Assembles 64-bit code at an address.
    pub fn code(&self, address: u64, write: impl FnOnce(&mut CodeAssembler)) {
        self.assemble(64, address, write);
    }

    /// Assembles code of some width at an address.
    pub fn assemble(&self, bits: u32, address: u64, write: impl FnOnce(&mut CodeAssembler)) {
        let mut assembler = CodeAssembler::new(bits).unwrap();
        write(&mut assembler);
        self.write(address, &assembler.assemble(address).unwrap());
    }

    /// Points a vector at code.
    pub fn gate(&self, vector: u8, handler: u64) {
        let low = handler & 0xffff
            | u64::from(CODE_SELECTOR) << 16
            | 0x8e00 << 32
            | (handler >> 16 & 0xffff) << 48;
        let gate = IDT + u64::from(vector) * 16;
        self.word(gate, low);
        self.word(gate + 8, handler >> 32);
    }

    /// The first vCPU, in 64-bit mode at [`CODE`].
    pub fn vcpu(&self) -> Box<dyn Vcpu> {
        self.vcpu_at(0, CODE)
    }

    /// Ends a vCPU's run when the guest is done.
    pub fn watch(&self, vcpu: &dyn Vcpu) {
        self.bus.kickers.lock().unwrap().push(vcpu.kicker());
    }

    /// Runs as many vCPUs as there are addresses, each from its own, until the guest is done; `meanwhile` is called
    /// now and then.
    pub fn run_all(&self, codes: &[u64], time: Duration, meanwhile: impl Fn()) {
        let mut vcpus: Vec<_> = (0..)
            .zip(codes)
            .map(|(index, code)| self.vcpu_at(index, *code))
            .collect();
        std::thread::scope(|scope| {
            let runs: Vec<_> = vcpus
                .iter_mut()
                .map(|vcpu| scope.spawn(move || within(&mut **vcpu, time)))
                .collect();
            while !self.bus.is_done() && !runs.iter().any(|run| run.is_finished()) {
                meanwhile();
                std::thread::sleep(Duration::from_millis(1));
            }
            for run in runs {
                assert_eq!(run.join().unwrap(), Exit::Kicked);
            }
        });
    }

    /// A vCPU in 64-bit mode at some code.
    fn vcpu_at(&self, index: u32, code: u64) -> Box<dyn Vcpu> {
        let mut vcpu = self.partition.create_vcpu(index).unwrap();
        let mut state = long_mode(index);
        state.activity = Activity::Running;
        state.registers.rip = code;
        vcpu.set_state(&state).unwrap();
        self.watch(&*vcpu);
        vcpu
    }

    /// Runs the first vCPU until the guest is done or shuts down.
    pub fn run(&self) -> Exit {
        let mut vcpu = self.vcpu();
        within(&mut *vcpu, Duration::from_secs(20))
    }
}

/// Writes to memory as a device does.
pub fn write(ram: &Ram, address: u64, bytes: &[u8]) {
    use vm_memory::{Bytes, GuestAddress};
    let memory = ram.guest_memory();
    memory.write_slice(bytes, GuestAddress(address)).unwrap();
}

/// Where a linear address of the first 4 GiB has its entry for 2 MiB.
fn directory_entry(linear: u64) -> u64 {
    TABLES + 0x2000 + (linear >> 30) * 0x1000 + (linear >> 21 & 0x1ff) * 8
}

/// Says that the guest is done.
pub fn done(a: &mut CodeAssembler) {
    a.out(i32::from(DONE), al).unwrap();
    let mut here = a.create_label();
    a.set_label(&mut here).unwrap();
    a.hlt().unwrap();
    a.jmp(here).unwrap();
}

/// Runs a vCPU; one that does not come back in time is a failure.
pub fn within(vcpu: &mut dyn Vcpu, time: Duration) -> Exit {
    let kicker = vcpu.kicker();
    let (sender, ended) = mpsc::channel::<()>();
    std::thread::scope(|scope| {
        let watch = scope.spawn(move || {
            let late = ended.recv_timeout(time) == Err(mpsc::RecvTimeoutError::Timeout);
            if late {
                kicker.kick();
            }
            late
        });
        let exit = vcpu.run();
        drop(sender);
        let late = watch.join().unwrap();
        assert!(
            !late,
            "the guest hangs: {:#x?}",
            vcpu.state().unwrap().registers
        );
        exit.unwrap()
    })
}

/// 64-bit mode at [`CODE`] with the machine's tables and a stack of the vCPU's own.
pub fn long_mode(index: u32) -> VcpuState {
    let mut state = VcpuState::protected32(index, CODE, 0);
    state.registers.general[4] = STACK + u64::from(index) * 0x1000;
    let data = SegmentState::flat_data(DATA_SELECTOR);
    let code = SegmentState::flat_code64(CODE_SELECTOR);
    state.segments.registers = [data, code, data, data, data, data];
    state.segments.tr = SegmentState::task(0x18, 0x7800);
    state.segments.gdt = TableState {
        base: GDT,
        limit: 0x27,
    };
    state.segments.idt = TableState {
        base: IDT,
        limit: 0xfff,
    };
    state.control.cr0 = 0x8000_0033;
    state.control.cr3 = TABLES;
    state.control.cr4 = 0x620;
    state.control.efer = 0x500;
    state
}
