//! A guest of either tier: some pages of data with all kinds of neighbours, some of code.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicU32, Ordering},
};

use cpu::{
    Bus,
    soft::{
        self, Core, Fault, Flow, Interpreter, interpreter::Outcome, op::RIP, vector::VectorState,
    },
    state::{ControlRegisters, Segments},
};
use iced_x86::{Decoder, DecoderOptions, Instruction};
use memory::Ram;

pub const PAGE: u64 = 0x1000;
/// Pages of data; what each is, [`PAGES`] says.
pub const DATA: u64 = 0x0200_0000;
/// Pages of code.
pub const CODE: u64 = 0x0300_0000;
pub const CODE_BYTES: u64 = 4 * PAGE;
/// The middle of the page that is meant for the stack.
pub const STACK: u64 = DATA + 7 * PAGE + PAGE / 2;
const RAM_BYTES: u64 = 64 << 20;
const DEVICE: u64 = 0x1000_0000;
const TABLES: u64 = 0x1_0000;

/// What is mapped where.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Nothing,
    Writable,
    Readable,
    Device,
}

const PAGES: [Kind; 9] = [
    Kind::Nothing,
    Kind::Writable,
    Kind::Writable,
    Kind::Readable,
    Kind::Nothing,
    Kind::Writable,
    Kind::Device,
    Kind::Writable,
    Kind::Nothing,
];

/// An access to the device: address, bytes, and what was written.
type Touch = (u64, usize, Option<Vec<u8>>);

/// A device whose every answer is another one.
#[derive(Default)]
struct Device(Mutex<Vec<Touch>>);

impl Bus for Device {
    fn port_read(&self, _port: u16, data: &mut [u8]) {
        data.fill(0xff);
    }
    fn port_write(&self, _port: u16, _data: &[u8]) {}
    fn mmio_read(&self, address: u64, data: &mut [u8]) {
        let mut touches = self.0.lock().unwrap();
        data.fill(address as u8 ^ (touches.len() as u8).wrapping_mul(37));
        touches.push((address, data.len(), None));
    }
    fn mmio_write(&self, address: u64, data: &[u8]) {
        let touch = (address, data.len(), Some(data.to_vec()));
        self.0.lock().unwrap().push(touch);
    }
    fn end_of_interrupt(&self, _vector: u8) {}
}

/// What a run starts from.
#[derive(Clone)]
pub struct State {
    pub regs: [u64; 16],
    pub rip: u64,
    pub flags: u64,
    pub vector: VectorState,
}

/// What programs are not meant to change. Those that go astray do: they write over themselves, and execute what comes of
/// it.
#[derive(Debug, Clone, PartialEq)]
pub struct System {
    segments: Segments,
    control: ControlRegisters,
    msrs: Vec<(u32, u64)>,
}

/// What a run came to.
#[derive(Debug, PartialEq)]
pub struct End {
    pub fault: Option<Fault>,
    pub regs: [u64; 16],
    pub rip: u64,
    /// Without the status flags after a fault: a translation may have lost those that nobody reads.
    pub flags: u64,
    pub vector: VectorState,
    pub cr2: u64,
    pub system: System,
    pub memory: Vec<u8>,
    pub code: Vec<u8>,
    pub touches: Vec<Touch>,
}

/// The tier that executes.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Tier {
    /// The interpreter, instruction by instruction.
    Zero,
    /// What runs guests: translations, and the interpreter for what is not hot.
    One,
    /// Both, compared block by block.
    Lockstep,
}

impl End {
    /// Whether an indirect branch to an address that is not canonical faulted: tier 0 reports it at the branch, as Intel's
    /// processors do, translated code at the target.
    pub fn is_of_branch_nowhere(&self) -> bool {
        self.fault == Some(Fault::GP0) && !cpu::soft::memory::access::is_canonical(self.rip)
    }
}

pub struct Guest {
    interpreter: Interpreter,
    device: Arc<Device>,
    tier: Tier,
}

impl Guest {
    pub fn new(tier: Tier) -> Self {
        let device = Arc::new(Device::default());
        let ram = Ram::new(RAM_BYTES).expect("memory for a guest");
        let mut core = Core::flat(ram, Arc::clone(&device) as Arc<dyn Bus>);
        let mut table = TABLES;
        for (page, kind) in (0..).zip(PAGES) {
            let linear = DATA + page * PAGE;
            map(&mut core, &mut table, linear, kind, linear);
        }
        for page in 0..CODE_BYTES / PAGE {
            let linear = CODE + page * PAGE;
            map(&mut core, &mut table, linear, Kind::Writable, linear);
        }
        core.control.cr0 |= 1 << 31 | 1 << 16;
        core.control.cr3 = TABLES;
        core.control.cr4 |= 1 << 5;
        core.control.efer = 0x500;
        core.segments[4].base = 0x40;
        core.segments[5].base = 0x1000;
        let mut interpreter = Interpreter::new(core);
        let how = match tier {
            Tier::Zero => soft::Tier::Interpret,
            Tier::Lockstep => soft::Tier::Lockstep,
            Tier::One => soft::Tier::Translate {
                threshold: 3,
                chain: true,
            },
        };
        interpreter.set_tier(how).expect("memory for translations");
        Self {
            interpreter,
            device,
            tier,
        }
    }

    pub fn write(&mut self, address: u64, bytes: &[u8]) {
        let mut at = address;
        let mut rest = bytes;
        while !rest.is_empty() {
            let (part, after) = rest.split_at(rest.len().min((PAGE - at % PAGE) as usize));
            self.interpreter.core.physical_write(at, part);
            (at, rest) = (at + part.len() as u64, after);
        }
    }

    /// Fills the data.
    pub fn fill(&mut self, content: &[u8]) {
        let pages = (DATA..).step_by(PAGE as usize).zip(PAGES);
        let present = pages.filter(|(_, kind)| !matches!(kind, Kind::Nothing | Kind::Device));
        for ((address, _), page) in present.zip(content.chunks(PAGE as usize)) {
            self.interpreter.core.physical_write(address, page);
        }
    }

    /// Bytes that [`Guest::fill`] takes.
    pub fn data_bytes() -> usize {
        let absent = |kind: &&Kind| matches!(kind, Kind::Nothing | Kind::Device);
        (PAGES.len() - PAGES.iter().filter(absent).count()) * PAGE as usize
    }

    fn data(&mut self) -> Vec<u8> {
        let mut content = vec![0; Self::data_bytes()];
        let pages = (DATA..).step_by(PAGE as usize).zip(PAGES);
        let present = pages.filter(|(_, kind)| !matches!(kind, Kind::Nothing | Kind::Device));
        for ((address, _), page) in present.zip(content.chunks_mut(PAGE as usize)) {
            self.interpreter.core.physical_read(address, page);
        }
        content
    }

    fn code(&mut self) -> Vec<u8> {
        let mut content = vec![0; CODE_BYTES as usize];
        for (address, page) in (CODE..)
            .step_by(PAGE as usize)
            .zip(content.chunks_mut(PAGE as usize))
        {
            self.interpreter.core.physical_read(address, page);
        }
        content
    }

    /// Runs until `hlt` or a fault; `None` when it does not come to an end within some thousand instructions.
    pub fn run(&mut self, start: &State) -> Option<End> {
        self.prepare(start);
        let fault = match self.tier {
            Tier::Zero => self.step()?,
            Tier::One | Tier::Lockstep => self.translated(),
        };
        Some(self.end(fault))
    }

    fn prepare(&mut self, start: &State) {
        self.device.0.lock().unwrap().clear();
        let core = &mut self.interpreter.core;
        core.regs[..16].copy_from_slice(&start.regs);
        core.regs[RIP as usize] = start.rip;
        core.flags.set(start.flags);
        core.vector.state = start.vector.clone();
        core.control.cr2 = 0;
    }

    fn end(&mut self, fault: Option<Fault>) -> End {
        let core = &mut self.interpreter.core;
        let lost = if fault.is_some() { 0x8d5 } else { 0 };
        let mut regs = [0; 16];
        regs.copy_from_slice(&core.regs[..16]);
        End {
            fault,
            regs,
            rip: core.rip(),
            flags: core.flags.get() & !lost,
            vector: core.vector.state.clone(),
            cr2: core.control.cr2,
            system: self.system(),
            memory: self.data(),
            code: self.code(),
            touches: std::mem::take(&mut self.device.0.lock().unwrap()),
        }
    }

    /// What of it is not put back before each run.
    pub fn system(&self) -> System {
        const TSC: u32 = 0x10;
        let mut state = self.interpreter.core.state();
        state.msrs.retain(|(msr, _)| *msr != TSC);
        state.control.cr2 = 0;
        System {
            segments: state.segments,
            control: state.control,
            msrs: state.msrs,
        }
    }

    /// How often a block was run by both tiers.
    pub fn compared(&self) -> u64 {
        self.interpreter.compared()
    }

    /// How many blocks were translated.
    pub fn translations(&self) -> u64 {
        self.interpreter.counters().translations
    }

    /// The instructions of a run, as they are when they are executed: programs write over themselves, and jump into the
    /// middle of what was meant as an instruction.
    pub fn trace(&mut self, start: &State) -> Vec<Instruction> {
        self.prepare(start);
        let mut executed = Vec::new();
        for _ in 0..20_000 {
            let core = &mut self.interpreter.core;
            let (rip, mut bytes) = (core.rip(), [0; 15]);
            let room = (PAGE - rip % PAGE).min(15) as usize;
            // Code and data lie where they seem to.
            core.physical_read(rip, &mut bytes[..room]);
            executed.push(Decoder::with_ip(64, &bytes, rip, DecoderOptions::NONE).decode());
            match self.interpreter.step() {
                Ok(Flow::Sync) if self.halted() => break,
                Ok(_) => {}
                Err(_) => break,
            }
        }
        executed
    }

    fn step(&mut self) -> Option<Option<Fault>> {
        for _ in 0..20_000 {
            match self.interpreter.step() {
                Err(fault) => return Some(Some(fault)),
                Ok(Flow::Sync) if self.halted() => return Some(None),
                Ok(_) => {}
            }
        }
        None
    }

    fn translated(&mut self) -> Option<Fault> {
        let attention = AtomicU32::new(0);
        loop {
            match self.interpreter.run(&attention) {
                Outcome::Fault(fault) => return Some(fault),
                Outcome::Sync if self.halted() => return None,
                Outcome::Sync | Outcome::Attention => attention.store(0, Ordering::Relaxed),
            }
        }
    }

    /// Whether the last instruction, one after which all is looked at anew, was `hlt`.
    fn halted(&mut self) -> bool {
        let rip = self.interpreter.core.rip();
        let mut before = [0];
        if (CODE + 1..CODE + CODE_BYTES).contains(&rip) {
            self.interpreter.core.physical_read(rip - 1, &mut before);
        }
        before == [0xf4]
    }
}

/// Maps a page; takes tables as they are needed.
fn map(core: &mut Core, last: &mut u64, linear: u64, kind: Kind, physical: u64) {
    const PRESENT: u64 = 1;
    const WRITABLE: u64 = 2;
    let physical = match kind {
        Kind::Nothing => return,
        Kind::Device => DEVICE,
        Kind::Writable | Kind::Readable => physical,
    };
    let rights = PRESENT | if kind == Kind::Readable { 0 } else { WRITABLE };
    let mut table = TABLES;
    for level in 0..3 {
        let entry = table + (linear >> (39 - 9 * level) & 0x1ff) * 8;
        let mut bytes = [0; 8];
        core.physical_read(entry, &mut bytes);
        let mut value = u64::from_le_bytes(bytes);
        if value == 0 {
            *last += PAGE;
            value = *last | PRESENT | WRITABLE;
            core.physical_write(entry, &value.to_le_bytes());
        }
        table = value & !0xfff;
    }
    let entry = table + (linear >> 12 & 0x1ff) * 8;
    core.physical_write(entry, &(physical | rights).to_le_bytes());
}
