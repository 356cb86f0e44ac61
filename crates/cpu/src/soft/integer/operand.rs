//! Reading, changing and writing a memory operand in one step, plain or locked.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::host::Host;
use crate::soft::{
    Core, Fault,
    core::{Access, Place},
    memory::access::stack_fault,
    op::Mem,
};

/// Bytes within which the host's locked instructions are cheap.
const LINE: usize = 64;

/// Held for a locked access that the host cannot do in one instruction at a fair price: over the
/// end of a cache line or page, or to a device. It keeps such accesses from one another, of all
/// vCPUs, which is what software that does this counts on.
static SPLIT: Mutex<()> = Mutex::new(());

fn split_lock() -> MutexGuard<'static, ()> {
    SPLIT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Replaces a memory operand by what `compute` makes of it, and returns the other half of what it
/// returns. With `LOCK` it is atomic, and `compute` may be called more than once.
///
/// # Errors
/// As for a store; nothing was changed then.
#[inline(always)]
pub fn modify<T: Host, R, const LOCK: bool>(
    core: &mut Core,
    mem: &Mem,
    compute: impl Fn(T) -> (T, R),
) -> Result<R, Fault> {
    let linear = core.linear(mem, T::BYTES, Access::Write)?;
    let place = core
        .find(linear, T::BYTES, Access::Write)
        .map_err(|fault| stack_fault(mem, fault))?;
    match place {
        Place::Ram(host) => {
            let target = host.cast::<T>();
            if !LOCK {
                // SAFETY: `find` returns a mapped address of at least as many bytes.
                let (new, result) = compute(unsafe { target.read_unaligned() });
                // SAFETY: as above.
                unsafe { target.write_unaligned(new) };
                return Ok(result);
            }
            let _guard = (target.as_ptr() as usize % LINE + T::BYTES > LINE).then(split_lock);
            // SAFETY: as above.
            let mut old = unsafe { target.read_unaligned() };
            loop {
                let (new, result) = compute(old);
                if _guard.is_some() {
                    // SAFETY: as above.
                    unsafe { target.write_unaligned(new) };
                    return Ok(result);
                }
                // SAFETY: as above.
                let held = unsafe { T::compare_exchange(target.as_ptr(), old, new) };
                if held == old {
                    return Ok(result);
                }
                old = held;
            }
        }
        place => modify_elsewhere(core, place, linear, LOCK, compute),
    }
}

/// [`modify`] for what is not contiguous in RAM.
#[cold]
#[inline(never)]
fn modify_elsewhere<T: Host, R>(
    core: &mut Core,
    place: Place,
    linear: u64,
    lock: bool,
    compute: impl Fn(T) -> (T, R),
) -> Result<R, Fault> {
    let _guard = lock.then(split_lock);
    let mut bytes = [0; 8];
    core.copy_in(place, linear, &mut bytes[..T::BYTES]);
    let (new, result) = compute(T::low(u64::from_le_bytes(bytes)));
    core.copy_out(place, linear, &new.wide().to_le_bytes()[..T::BYTES]);
    Ok(result)
}

/// `cmpxchg16b`: if the 16 bytes at `linear` hold `old`, stores `new`; returns what they held.
/// Always atomic.
///
/// # Errors
/// `#GP(0)` when the operand is not aligned; as for a store.
pub fn compare_exchange_16(
    core: &mut Core,
    linear: u64,
    old: u128,
    new: u128,
) -> Result<u128, Fault> {
    if !linear.is_multiple_of(16) {
        return Err(Fault::GP0);
    }
    match core.find(linear, 16, Access::Write)? {
        Place::Ram(host) => {
            // SAFETY: `find` returns a mapped address of at least as many bytes, and pages keep
            // the alignment.
            Ok(unsafe { super::host::compare_exchange_16(host.as_ptr().cast(), old, new) })
        }
        place => {
            let _guard = split_lock();
            let mut bytes = [0; 16];
            core.copy_in(place, linear, &mut bytes);
            let held = u128::from_le_bytes(bytes);
            let value = if held == old { new } else { held };
            core.copy_out(place, linear, &value.to_le_bytes());
            Ok(held)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{Arc, Barrier},
        thread,
    };

    use iced_x86::code_asm::*;
    use memory::Ram;

    use super::*;
    use crate::{Bus, soft::Interpreter};

    struct Nothing;

    impl Bus for Nothing {
        fn port_read(&self, _port: u16, _data: &mut [u8]) {}
        fn port_write(&self, _port: u16, _data: &[u8]) {}
        fn mmio_read(&self, _address: u64, _data: &mut [u8]) {}
        fn mmio_write(&self, _address: u64, _data: &[u8]) {}
        fn end_of_interrupt(&self, _vector: u8) {}
    }

    /// Runs a locked instruction on a qword at `rdi`, so many times on each of two threads, and
    /// returns what the qword is then.
    fn contended(address: u64, times: u32, write: fn(&mut CodeAssembler)) -> u64 {
        const CODE: u64 = 0x1_0000;
        let ram = Ram::new(1 << 20).unwrap();
        let mut code = CodeAssembler::new(64).unwrap();
        let mut again = code.create_label();
        code.set_label(&mut again).unwrap();
        write(&mut code);
        code.dec(ecx).unwrap();
        code.jne(again).unwrap();
        let bytes = code.assemble(CODE).unwrap();
        let core = || Core::flat(ram.clone(), Arc::new(Nothing));
        core().physical_write(CODE, &bytes);
        // Without it one might be done before the other is there.
        let together = Barrier::new(2);
        thread::scope(|scope| {
            for _ in 0..2 {
                let mut core = core();
                core.set_rip(CODE);
                (core.regs[1], core.regs[7]) = (u64::from(times), address);
                let together = &together;
                scope.spawn(move || {
                    together.wait();
                    let mut interpreter = Interpreter::new(core);
                    while interpreter.core.regs[1] != 0 {
                        interpreter.step().unwrap();
                    }
                });
            }
        });
        core().load(address).unwrap()
    }

    #[test]
    fn locked_instructions_of_two_vcpus_are_all_there_wherever_the_operand_lies() {
        for address in [0x2_0000, 0x2_0003, 0x2_003d, 0x2_0ffb] {
            let sum = contended(address, 500_000, |code| {
                code.lock().add(qword_ptr(rdi), 3).unwrap();
            });
            assert_eq!(sum, 3_000_000, "add at {address:#x}");
            let sum = contended(address, 500_000, |code| {
                code.mov(eax, 5).unwrap();
                code.lock().xadd(qword_ptr(rdi), rax).unwrap();
            });
            assert_eq!(sum, 5_000_000, "xadd at {address:#x}");
        }
    }
}
