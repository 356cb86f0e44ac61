//! What a translation takes for granted.

use crate::soft::{Core, memory::tlb::Context, system::control::CR4_TSD, vector::Unit};

/// What a translation takes for granted: on whose behalf it accesses memory, which units are open,
/// what is permitted, and whether the guest's `mxcsr` has floating point compute as the host does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(in crate::soft) struct Mode(u8);

const CONTEXT: u8 = 3;
const SSE: u8 = 1 << 2;
const AVX: u8 = 1 << 3;
const AS_HOST: u8 = 1 << 4;
const RING_0: u8 = 1 << 5;
const CLOCK: u8 = 1 << 6;
/// All exceptions masked, rounding to nearest, denormals as they are.
const MASKED: u32 = 0x1f80;
const RAISED: u32 = 0x3f;

impl Mode {
    /// That of a core now.
    #[inline(always)]
    pub(super) fn of(core: &Core) -> Self {
        let vector = &core.vector;
        let flag = |bit: u8, on: bool| if on { bit } else { 0 };
        Self(
            core.tlb.context() as u8
                | flag(SSE, vector.is_open(Unit::Sse))
                | flag(AVX, vector.is_open(Unit::Avx))
                | flag(
                    CLOCK,
                    core.privilege == 0 || core.control.cr4 & CR4_TSD == 0,
                )
                | flag(RING_0, core.privilege == 0)
                | flag(AS_HOST, vector.state.mxcsr & !RAISED == MASKED),
        )
    }

    /// That of ordinary code of the supervisor, or of users.
    pub(super) fn usual(user: bool) -> Self {
        let who = if user {
            Context::User as u8
        } else {
            Context::Supervisor as u8 | RING_0
        };
        Self(who | SSE | AVX | AS_HOST | CLOCK)
    }

    /// As a number under 128.
    pub(super) fn number(self) -> u8 {
        self.0
    }

    /// The number of the context.
    pub(super) fn context(self) -> usize {
        usize::from(self.0 & CONTEXT)
    }

    /// All of it that is the same wherever code lies: what a target may be of without being asked.
    pub(super) fn units(self) -> u8 {
        let ring_0 = if self.context() == Context::User as usize {
            RING_0
        } else {
            self.0 & RING_0
        };
        self.0 & (SSE | AVX | AS_HOST | CLOCK) | ring_0
    }

    /// Whether ring 0's instructions are permitted.
    pub(super) fn is_ring0(self) -> bool {
        self.0 & RING_0 != 0
    }

    /// Whether `rdtsc` is permitted.
    pub(super) fn may_read_clock(self) -> bool {
        self.0 & CLOCK != 0
    }

    /// Whether a unit is open.
    pub(super) fn is_open(self, unit: Unit) -> bool {
        match unit {
            Unit::Sse => self.0 & SSE != 0,
            Unit::Avx => self.0 & AVX != 0,
            Unit::Integer => true,
            _ => false,
        }
    }

    /// Whether floating point computes as on the host.
    pub(super) fn computes_as_host(self) -> bool {
        self.0 & AS_HOST != 0
    }
}
