//! Litmus tests: what vCPUs may see of each other's stores. The memory model is x86-TSO (Intel SDM 3A, 8.2; Owens,
//! Sarkar, Sewell: "A better x86 memory model", 2009): what it forbids must never be seen, however often it is tried.
//!
//! All vCPUs of a test meet at a barrier before each attempt, and each attempt has variables of its own. Attempts are
//! made until [`ATTEMPTS`] are or the time is up, `CPU_LITMUS_MS` (200) milliseconds, but [`FEWEST`] at least; what is
//! allowed and seen is told, not demanded.

use std::time::{Duration, Instant};

use iced_x86::code_asm::*;

use crate::machine::{CODE, DONE, Machine, RESULT};

/// Attempts of a test at most.
pub const ATTEMPTS: u64 = 16 << 10;
const FEWEST: u64 = 200;
/// The variables `x` and `y` of each attempt, in cache lines of their own.
const VARIABLES: u64 = 0x10_0000;
const LINE: u64 = 64;
/// For each attempt eight bytes: two results of each vCPU.
const SEEN: u64 = 0x30_0000;
/// How often vCPUs came to the barrier.
const BARRIER: u64 = RESULT;
/// Not zero: no more attempts.
const STOP: u64 = RESULT + LINE;
/// How many vCPUs have ended.
const ENDED: u64 = RESULT + 2 * LINE;
/// How many attempts each vCPU made, in eight bytes each.
const MADE: u64 = RESULT + 3 * LINE;

/// What one vCPU does in an attempt: `x` is at `rdi`, `y` at `rsi`; what it leaves in `al` and `bl` is what it saw.
type Part = fn(&mut CodeAssembler) -> Result<(), IcedError>;

/// What the vCPUs saw in an attempt, `al` and `bl` of each, and then `x` and `y`.
pub struct Attempt {
    seen: [u8; 8],
    x: u64,
    y: u64,
}

/// A litmus test.
pub struct Litmus {
    pub parts: &'static [Part],
    /// Whether what was seen is what the test is named for.
    pub is_special: fn(&Attempt) -> bool,
    /// Whether that is allowed.
    pub allowed: bool,
}

/// Each vCPU stores, then loads what the other stores: stores are buffered.
pub const STORE_BUFFERING: Litmus = Litmus {
    parts: &[
        |a| {
            a.mov(dword_ptr(rdi), 1)?;
            a.mov(eax, dword_ptr(rsi))
        },
        |a| {
            a.mov(dword_ptr(rsi), 1)?;
            a.mov(eax, dword_ptr(rdi))
        },
    ],
    is_special: |it| it.seen[0] == 0 && it.seen[2] == 0,
    allowed: true,
};

pub const STORE_BUFFERING_FENCED: Litmus = Litmus {
    parts: &[
        |a| {
            a.mov(dword_ptr(rdi), 1)?;
            a.mfence()?;
            a.mov(eax, dword_ptr(rsi))
        },
        |a| {
            a.mov(dword_ptr(rsi), 1)?;
            a.mfence()?;
            a.mov(eax, dword_ptr(rdi))
        },
    ],
    allowed: false,
    ..STORE_BUFFERING
};

/// Locked instructions are fences.
pub const STORE_BUFFERING_LOCKED: Litmus = Litmus {
    parts: &[
        |a| {
            a.mov(ebx, 1)?;
            a.xchg(dword_ptr(rdi), ebx)?;
            a.mov(eax, dword_ptr(rsi))
        },
        |a| {
            a.mov(dword_ptr(rsi), 1)?;
            a.lock().add(dword_ptr(rsp - 8), 0)?;
            a.mov(eax, dword_ptr(rdi))
        },
    ],
    allowed: false,
    ..STORE_BUFFERING
};

/// Stores are seen in their order, and loads are made in theirs.
pub const MESSAGE_PASSING: Litmus = Litmus {
    parts: &[
        |a| {
            a.mov(dword_ptr(rdi), 1)?;
            a.mov(dword_ptr(rsi), 1)
        },
        |a| {
            a.mov(eax, dword_ptr(rsi))?;
            a.mov(ebx, dword_ptr(rdi))
        },
    ],
    is_special: |it| it.seen[2] == 1 && it.seen[3] == 0,
    allowed: false,
};

/// The same by way of vector registers, the stack, and a store and a load of one instruction.
pub const MESSAGE_PASSING_OTHERWISE: Litmus = Litmus {
    parts: &[
        |a| {
            a.mov(eax, 1)?;
            a.movd(xmm0, eax)?;
            a.movd(dword_ptr(rdi), xmm0)?;
            a.lea(rdx, qword_ptr(rsi + 8))?;
            a.xchg(rsp, rdx)?;
            a.push(1)?;
            a.mov(rsp, rdx)
        },
        |a| {
            a.xor(eax, eax)?;
            a.add(eax, dword_ptr(rsi))?;
            a.movd(xmm1, dword_ptr(rdi))?;
            a.movd(ebx, xmm1)
        },
    ],
    ..MESSAGE_PASSING
};

/// No load sees what is stored after it.
pub const LOAD_BUFFERING: Litmus = Litmus {
    parts: &[
        |a| {
            a.mov(eax, dword_ptr(rdi))?;
            a.mov(dword_ptr(rsi), 1)
        },
        |a| {
            a.mov(eax, dword_ptr(rsi))?;
            a.mov(dword_ptr(rdi), 1)
        },
    ],
    is_special: |it| it.seen[0] == 1 && it.seen[2] == 1,
    allowed: false,
};

/// Two that look see the stores of two others in the same order.
pub const INDEPENDENT_READS: Litmus = Litmus {
    parts: &[
        |a| a.mov(dword_ptr(rdi), 1),
        |a| a.mov(dword_ptr(rsi), 1),
        |a| {
            a.mov(eax, dword_ptr(rdi))?;
            a.mov(ebx, dword_ptr(rsi))
        },
        |a| {
            a.mov(eax, dword_ptr(rsi))?;
            a.mov(ebx, dword_ptr(rdi))
        },
    ],
    is_special: |it| it.seen[4..] == [1, 0, 1, 0],
    allowed: false,
};

/// One variable is never seen to go back.
pub const COHERENCE: Litmus = Litmus {
    parts: &[
        |a| {
            a.mov(dword_ptr(rdi), 1)?;
            a.mov(dword_ptr(rdi), 2)
        },
        |a| {
            a.mov(eax, dword_ptr(rdi))?;
            a.mov(ebx, dword_ptr(rdi))
        },
        |a| {
            a.movzx(eax, byte_ptr(rdi))?;
            a.mov(bl, byte_ptr(rdi))
        },
    ],
    is_special: |it| it.seen[2] > it.seen[3] || it.seen[4] > it.seen[5],
    allowed: false,
};

/// Two store to both variables, in opposite order: one of them ends with both its last stores overwritten, never both.
pub const CROSSED_STORES: Litmus = Litmus {
    parts: &[
        |a| {
            a.mov(dword_ptr(rdi), 1)?;
            a.mov(dword_ptr(rsi), 2)
        },
        |a| {
            a.mov(dword_ptr(rsi), 1)?;
            a.mov(dword_ptr(rdi), 2)
        },
    ],
    is_special: |it| it.x == 1 && it.y == 1,
    allowed: false,
};

/// Both halves of 16 bytes change at once, also for one that only compares.
pub const SIXTEEN_BYTES: Litmus = Litmus {
    parts: &[
        |a| {
            exchange_sixteen(a, 0)?;
            a.mov(ebx, edx)
        },
        |a| {
            exchange_sixteen(a, 0)?;
            a.mov(ebx, edx)
        },
        |a| {
            exchange_sixteen(a, 0x70)?;
            a.mov(ebx, edx)
        },
    ],
    is_special: |it| it.seen.chunks(2).any(|halves| halves[0] != halves[1]),
    allowed: false,
};

/// If `x` is twice `expected`, makes it twice 1; what was there goes to `rax` and `rdx`.
fn exchange_sixteen(a: &mut CodeAssembler, expected: u32) -> Result<(), IcedError> {
    a.mov(eax, expected)?;
    a.mov(edx, expected)?;
    a.push(rcx)?;
    a.mov(ebx, 1)?;
    a.mov(ecx, 1)?;
    a.lock().cmpxchg16b(xmmword_ptr(rdi))?;
    a.pop(rcx)
}

/// Where the code of a vCPU lies.
fn code_of(index: usize) -> u64 {
    CODE + 0x1000 * index as u64
}

/// The code of one vCPU: barrier, part, what it saw, and again.
fn assemble(
    a: &mut CodeAssembler,
    index: usize,
    count: usize,
    part: Part,
) -> Result<(), IcedError> {
    a.mov(edi, VARIABLES as u32)?;
    a.mov(r12d, SEEN as u32 + 2 * index as u32)?;
    a.mov(r13d, MADE as u32 + 8 * index as u32)?;
    a.mov(r14d, BARRIER as u32)?;
    a.xor(ebp, ebp)?;
    a.mov(ecx, ATTEMPTS as u32)?;
    let mut again = a.create_label();
    let mut waits = a.create_label();
    let mut meets = a.create_label();
    let mut ends = a.create_label();
    a.set_label(&mut again)?;
    a.add(rbp, count as i32)?;
    a.lea(rsi, qword_ptr(rdi + LINE))?;
    a.lock().inc(qword_ptr(r14))?;
    a.set_label(&mut waits)?;
    a.cmp(qword_ptr(r14), rbp)?;
    a.jae(meets)?;
    a.cmp(byte_ptr(r14 + (STOP - BARRIER)), 0)?;
    a.je(waits)?;
    a.jmp(ends)?;
    a.set_label(&mut meets)?;
    part(a)?;
    a.mov(byte_ptr(r12), al)?;
    a.mov(byte_ptr(r12 + 1), bl)?;
    a.inc(qword_ptr(r13))?;
    a.add(rdi, 2 * LINE as i32)?;
    a.add(r12, 8)?;
    a.dec(ecx)?;
    a.jne(again)?;
    a.set_label(&mut ends)?;
    end(a, count)
}

impl Litmus {
    /// Makes attempts, and looks at what was seen.
    ///
    /// # Panics
    /// When something forbidden was.
    pub fn run(&self, machine: &Machine) {
        let count = self.parts.len();
        for (index, part) in self.parts.iter().enumerate() {
            machine.code(code_of(index), |a| {
                assemble(a, index, count, *part).unwrap()
            });
        }
        let codes: Vec<_> = (0..count).map(code_of).collect();
        let time = std::env::var("CPU_LITMUS_MS").map_or(200, |value| value.parse().unwrap());
        let time = Duration::from_millis(time);
        let deadline = Instant::now() + time;
        machine.run_all(&codes, time + Duration::from_secs(120), || {
            let met = machine.read(BARRIER) / count as u64;
            if Instant::now() >= deadline && met > FEWEST {
                machine.word(STOP, 1);
            }
        });
        let made = (0..count as u64)
            .map(|index| machine.read(MADE + 8 * index))
            .min()
            .unwrap_or(0);
        assert!(made >= FEWEST, "only {made} attempts");
        let seen = (0..made)
            .filter(|number| (self.is_special)(&attempt(machine, *number)))
            .count();
        eprintln!("{seen} of {made} attempts");
        assert!(
            self.allowed || seen == 0,
            "{seen} of {made} attempts saw what is forbidden"
        );
    }
}

fn attempt(machine: &Machine, number: u64) -> Attempt {
    let x = VARIABLES + number * 2 * LINE;
    Attempt {
        seen: machine.read(SEEN + 8 * number).to_le_bytes(),
        x: machine.read(x),
        y: machine.read(x + LINE),
    }
}

/// Additions of each vCPU, in each way.
const ROUNDS: u32 = 3000;
const ADDERS: usize = 4;
/// What they add to, a cache line each; the lock of those who need one is behind the last.
const SUMS: u64 = VARIABLES;

/// Adds one to what is at `rdi`, by some locked instruction.
const WAYS: [Part; 9] = [
    |a| a.lock().add(qword_ptr(rdi), 1),
    |a| a.lock().inc(qword_ptr(rdi)),
    |a| a.lock().sub(dword_ptr(rdi), -1),
    |a| {
        a.mov(eax, 1)?;
        a.lock().xadd(word_ptr(rdi), ax)
    },
    |a| {
        a.stc()?;
        a.lock().adc(dword_ptr(rdi), 0)
    },
    |a| {
        let mut again = a.create_label();
        a.mov(rax, qword_ptr(rdi))?;
        a.set_label(&mut again)?;
        a.lea(rdx, qword_ptr(rax + 1))?;
        a.lock().cmpxchg(qword_ptr(rdi), rdx)?;
        a.jne(again)
    },
    // Both halves of 16 bytes.
    |a| {
        let mut again = a.create_label();
        a.mov(rax, qword_ptr(rdi))?;
        a.mov(rdx, qword_ptr(rdi + 8))?;
        a.set_label(&mut again)?;
        a.lea(rbx, qword_ptr(rax + 1))?;
        a.lea(rcx, qword_ptr(rdx + 1))?;
        a.lock().cmpxchg16b(xmmword_ptr(rdi))?;
        a.jne(again)
    },
    // Under a lock that is taken by an exchange and given back by a plain store.
    |a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.mov(eax, 1)?;
        a.xchg(dword_ptr(r14), eax)?;
        a.test(eax, eax)?;
        a.jne(again)?;
        a.mov(rax, qword_ptr(rdi))?;
        a.inc(rax)?;
        a.mov(qword_ptr(rdi), rax)?;
        a.mov(dword_ptr(r14), 0)
    },
    // Under a lock that is one bit.
    |a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.lock().bts(qword_ptr(r14 + 8), 40)?;
        a.jb(again)?;
        a.inc(qword_ptr(rdi))?;
        a.lock().btr(qword_ptr(r14 + 8), 40)
    },
];

fn assemble_adder(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut again = a.create_label();
    a.mov(ebp, ROUNDS)?;
    a.mov(r14d, (SUMS + LINE * WAYS.len() as u64) as u32)?;
    a.set_label(&mut again)?;
    for (number, way) in WAYS.iter().enumerate() {
        a.mov(edi, (SUMS + LINE * number as u64) as u32)?;
        way(a)?;
    }
    a.dec(ebp)?;
    a.jne(again)?;
    end(a, ADDERS)
}

/// The last of the vCPUs says that all are done.
fn end(a: &mut CodeAssembler, count: usize) -> Result<(), IcedError> {
    a.mov(edi, ENDED as u32)?;
    a.mov(eax, 1)?;
    a.lock().xadd(qword_ptr(rdi), rax)?;
    let mut here = a.create_label();
    a.cmp(eax, count as i32 - 1)?;
    a.jne(here)?;
    a.out(i32::from(DONE), al)?;
    a.set_label(&mut here)?;
    a.hlt()?;
    a.jmp(here)
}

/// What several vCPUs add by locked instructions is all there.
pub fn locked_sums(machine: &Machine) {
    let codes = [CODE; ADDERS];
    machine.code(CODE, |a| assemble_adder(a).unwrap());
    machine.run_all(&codes, Duration::from_secs(120), || ());
    let expected = u64::from(ROUNDS) * ADDERS as u64;
    for number in 0..WAYS.len() as u64 {
        assert_eq!(machine.read(SUMS + LINE * number), expected, "way {number}");
    }
    assert_eq!(
        machine.read(SUMS + LINE * 6 + 8),
        expected,
        "the upper half"
    );
}
