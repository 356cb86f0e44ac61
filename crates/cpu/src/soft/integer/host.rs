//! Arithmetic by the host's own instructions: each returns its result and the flags it left.
//!
//! All inline assembly of the integer instructions is here, and none of it touches memory but
//! compare-and-exchange. Instructions that leave some flags alone, always or for some counts,
//! are given the old ones first, so that what they leave is right without a case for it.

use std::arch::asm;

use crate::soft::{core::Word, flags::Status};

/// A word the host computes with.
pub trait Host: Word {
    /// Its size in bits.
    const BITS: u32 = 8 * Self::BYTES as u32;

    /// `add`.
    fn add(self, other: Self) -> (Self, Status);
    /// `sub`.
    fn sub(self, other: Self) -> (Self, Status);
    /// `and`.
    fn and(self, other: Self) -> (Self, Status);
    /// `or`.
    fn or(self, other: Self) -> (Self, Status);
    /// `xor`.
    fn xor(self, other: Self) -> (Self, Status);
    /// `neg`.
    fn neg(self) -> (Self, Status);
    /// `cmp`.
    fn cmp_status(self, other: Self) -> Status;
    /// `test`.
    fn test_status(self, other: Self) -> Status;
    /// `adc`.
    fn adc(self, other: Self, old: Status) -> (Self, Status);
    /// `sbb`.
    fn sbb(self, other: Self, old: Status) -> (Self, Status);
    /// `inc`.
    fn inc(self, old: Status) -> (Self, Status);
    /// `dec`.
    fn dec(self, old: Status) -> (Self, Status);
    /// `shl` by a count that the instruction masks, as with all below.
    fn shl(self, count: u8, old: Status) -> (Self, Status);
    /// `shr`.
    fn shr(self, count: u8, old: Status) -> (Self, Status);
    /// `sar`.
    fn sar(self, count: u8, old: Status) -> (Self, Status);
    /// `rol`.
    fn rol(self, count: u8, old: Status) -> (Self, Status);
    /// `ror`.
    fn ror(self, count: u8, old: Status) -> (Self, Status);
    /// `rcl`.
    fn rcl(self, count: u8, old: Status) -> (Self, Status);
    /// `rcr`.
    fn rcr(self, count: u8, old: Status) -> (Self, Status);
    /// `mul`: low half, high half.
    fn mul(self, other: Self) -> (Self, Self, Status);
    /// `imul`: low half, high half.
    fn imul(self, other: Self) -> (Self, Self, Status);

    /// `lock cmpxchg`: stores `new` if the target holds `old`; returns what it held.
    ///
    /// # Safety
    /// The target must be mapped for writing.
    unsafe fn compare_exchange(target: *mut Self, old: Self, new: Self) -> Self;
}

/// A word of at least 16 bits: what 8-bit forms do not exist for.
pub trait Wide: Host {
    /// `shld`: shifts left, filling from `other`.
    fn shld(self, other: Self, count: u8, old: Status) -> (Self, Status);
    /// `shrd`: shifts right, filling from `other`.
    fn shrd(self, other: Self, count: u8, old: Status) -> (Self, Status);
    /// `imul` of two operands: the low half.
    fn imul_low(self, other: Self) -> (Self, Status);
    /// `bsf` into `self`, which stays as it was when `source` is zero.
    fn bsf(self, source: Self, old: Status) -> (Self, Status);
    /// `bsr` into `self`, which stays as it was when `source` is zero.
    fn bsr(self, source: Self, old: Status) -> (Self, Status);
    /// The bytes in reverse order.
    fn swapped(self) -> Self;
}

/// `name value, other`; flags are results only.
macro_rules! binary {
    ($class:ident, $size:literal, $($method:ident $name:literal),*) => { $(
        #[inline(always)]
        fn $method(self, other: Self) -> (Self, Status) {
            let mut value = self;
            let ax: u16;
            // SAFETY: computes in registers.
            unsafe {
                asm!(
                    concat!($name, " {value", $size, "}, {other", $size, "}"),
                    "lahf",
                    "seto al",
                    value = inout($class) value,
                    other = in($class) other,
                    out("ax") ax,
                    options(pure, nomem, nostack),
                );
            }
            (value, Status::from_ax(ax))
        }
    )* };
}

/// `name value, other` that writes nothing but flags.
macro_rules! compare {
    ($class:ident, $size:literal, $($method:ident $name:literal),*) => { $(
        #[inline(always)]
        fn $method(self, other: Self) -> Status {
            let ax: u16;
            // SAFETY: computes in registers.
            unsafe {
                asm!(
                    concat!($name, " {value", $size, "}, {other", $size, "}"),
                    "lahf",
                    "seto al",
                    value = in($class) self,
                    other = in($class) other,
                    out("ax") ax,
                    options(pure, nomem, nostack),
                );
            }
            Status::from_ax(ax)
        }
    )* };
}

/// `name value, other` that reads flags or leaves some alone.
macro_rules! keeping_binary {
    ($class:ident, $size:literal, $($method:ident $name:literal),*) => { $(
        #[inline(always)]
        fn $method(self, other: Self, old: Status) -> (Self, Status) {
            let mut value = self;
            let mut ax = old.to_ax();
            // SAFETY: computes in registers.
            unsafe {
                asm!(
                    "add al, 127",
                    "sahf",
                    concat!($name, " {value", $size, "}, {other", $size, "}"),
                    "lahf",
                    "seto al",
                    value = inout($class) value,
                    other = in($class) other,
                    inout("ax") ax,
                    options(pure, nomem, nostack),
                );
            }
            (value, Status::from_ax(ax))
        }
    )* };
}

/// `name value` that reads flags or leaves some alone.
macro_rules! keeping_unary {
    ($class:ident, $size:literal, $($method:ident $name:literal),*) => { $(
        #[inline(always)]
        fn $method(self, old: Status) -> (Self, Status) {
            let mut value = self;
            let mut ax = old.to_ax();
            // SAFETY: computes in registers.
            unsafe {
                asm!(
                    "add al, 127",
                    "sahf",
                    concat!($name, " {value", $size, "}"),
                    "lahf",
                    "seto al",
                    value = inout($class) value,
                    inout("ax") ax,
                    options(pure, nomem, nostack),
                );
            }
            (value, Status::from_ax(ax))
        }
    )* };
}

/// `name value, cl`.
macro_rules! shift {
    ($class:ident, $size:literal, $($method:ident $name:literal),*) => { $(
        #[inline(always)]
        fn $method(self, count: u8, old: Status) -> (Self, Status) {
            let mut value = self;
            let mut ax = old.to_ax();
            // SAFETY: computes in registers.
            unsafe {
                asm!(
                    "add al, 127",
                    "sahf",
                    concat!($name, " {value", $size, "}, cl"),
                    "lahf",
                    "seto al",
                    value = inout($class) value,
                    inout("ax") ax,
                    in("cl") count,
                    options(pure, nomem, nostack),
                );
            }
            (value, Status::from_ax(ax))
        }
    )* };
}

/// `name value, other, cl`.
macro_rules! double_shift {
    ($size:literal, $($method:ident $name:literal),*) => { $(
        #[inline(always)]
        fn $method(self, other: Self, count: u8, old: Status) -> (Self, Status) {
            let mut value = self;
            let mut ax = old.to_ax();
            // SAFETY: computes in registers.
            unsafe {
                asm!(
                    "add al, 127",
                    "sahf",
                    concat!($name, " {value", $size, "}, {other", $size, "}, cl"),
                    "lahf",
                    "seto al",
                    value = inout(reg) value,
                    other = in(reg) other,
                    inout("ax") ax,
                    in("cl") count,
                    options(pure, nomem, nostack),
                );
            }
            (value, Status::from_ax(ax))
        }
    )* };
}

/// `name other`, with the accumulator and `dx`.
macro_rules! multiply {
    ($size:literal, $a:tt, $d:tt, $($method:ident $name:literal),*) => { $(
        #[inline(always)]
        fn $method(self, other: Self) -> (Self, Self, Status) {
            let mut a = u64::from(self);
            let (low, high): (Self, Self);
            // SAFETY: computes in registers.
            unsafe {
                asm!(
                    concat!($name, " {other", $size, "}"),
                    concat!("mov {low", $size, "}, ", $a),
                    "lahf",
                    "seto al",
                    other = in(reg) other,
                    low = out(reg) low,
                    inout("rax") a,
                    out($d) high,
                    options(pure, nomem, nostack),
                );
            }
            (low, high, Status::from_ax(a as u16))
        }
    )* };
}

/// `name other` of bytes: the product is in `ax`.
macro_rules! multiply_bytes {
    ($($method:ident $name:literal),*) => { $(
        #[inline(always)]
        fn $method(self, other: Self) -> (Self, Self, Status) {
            let mut a = u64::from(self);
            let product: u16;
            // SAFETY: computes in registers.
            unsafe {
                asm!(
                    concat!($name, " {other}"),
                    "mov {product:e}, eax",
                    "lahf",
                    "seto al",
                    other = in(reg_byte) other,
                    product = out(reg) product,
                    inout("rax") a,
                    options(pure, nomem, nostack),
                );
            }
            let [low, high] = product.to_le_bytes();
            (low, high, Status::from_ax(a as u16))
        }
    )* };
}

/// The atomic primitive.
macro_rules! atomic {
    ($class:ident, $size:literal, $a:tt) => {
        #[inline(always)]
        unsafe fn compare_exchange(target: *mut Self, old: Self, new: Self) -> Self {
            let mut held = old;
            // SAFETY: the caller says that the target may be written; the instruction is atomic
            // whatever its alignment.
            unsafe {
                asm!(
                    concat!("lock cmpxchg [{target}], {new", $size, "}"),
                    target = in(reg) target,
                    new = in($class) new,
                    inout($a) held,
                    options(nostack),
                );
            }
            held
        }
    };
}

macro_rules! host {
    ($word:ty, $class:ident, $size:literal, $a:tt) => {
        binary!($class, $size, add "add", sub "sub", and "and", or "or", xor "xor");
        compare!($class, $size, cmp_status "cmp", test_status "test");
        keeping_binary!($class, $size, adc "adc", sbb "sbb");
        keeping_unary!($class, $size, inc "inc", dec "dec");
        shift!($class, $size, shl "shl", shr "shr", sar "sar");
        shift!($class, $size, rol "rol", ror "ror", rcl "rcl", rcr "rcr");
        atomic!($class, $size, $a);

        #[inline(always)]
        fn neg(self) -> (Self, Status) {
            <$word>::sub(0, self)
        }
    };
}

impl Host for u8 {
    host!(u8, reg_byte, "", "al");

    multiply_bytes!(mul "mul", imul "imul");
}

macro_rules! wide {
    ($word:ty, $size:literal, $a:tt, $d:tt) => {
        impl Host for $word {
            host!($word, reg, $size, $a);
            multiply!($size, $a, $d, mul "mul", imul "imul");
        }

        impl Wide for $word {
            double_shift!($size, shld "shld", shrd "shrd");
            keeping_binary!(reg, $size, bsf "bsf", bsr "bsr");
            binary!(reg, $size, imul_low "imul");

            #[inline(always)]
            fn swapped(self) -> Self {
                self.swap_bytes()
            }
        }
    };
}

wide!(u16, ":x", "ax", "dx");
wide!(u32, ":e", "eax", "edx");
wide!(u64, ":r", "rax", "rdx");

/// `lock cmpxchg16b`; returns what the target held.
///
/// # Safety
/// The target must be mapped for writing, and aligned to 16 bytes.
pub unsafe fn compare_exchange_16(target: *mut u128, old: u128, new: u128) -> u128 {
    let (mut low, mut high) = (old as u64, (old >> 64) as u64);
    // SAFETY: the caller says that the target may be written. `rbx`, which the compiler keeps for
    // itself, is put back.
    unsafe {
        asm!(
            "xchg rsi, rbx",
            "lock cmpxchg16b [rdi]",
            "mov rbx, rsi",
            in("rdi") target,
            inout("rsi") new as u64 => _,
            in("rcx") (new >> 64) as u64,
            inout("rax") low,
            inout("rdx") high,
            options(nostack),
        );
    }
    u128::from(high) << 64 | u128::from(low)
}
