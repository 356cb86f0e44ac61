//! Control registers: their bits, and what follows from them.

/// `cr0`: protected mode.
pub const CR0_PE: u64 = 1 << 0;
/// `cr0`: `wait` minds `TS`.
pub const CR0_MP: u64 = 1 << 1;
/// `cr0`: no x87.
pub const CR0_EM: u64 = 1 << 2;
/// `cr0`: x87 and vector state belongs to another task.
pub const CR0_TS: u64 = 1 << 3;
/// `cr0`: x87 errors are exceptions.
pub const CR0_NE: u64 = 1 << 5;
/// `cr0`: the supervisor minds read-only pages.
pub const CR0_WP: u64 = 1 << 16;
/// `cr0`: alignment checks may be turned on.
pub const CR0_AM: u64 = 1 << 18;
/// `cr0`: not write-through.
pub const CR0_NW: u64 = 1 << 29;
/// `cr0`: caches off.
pub const CR0_CD: u64 = 1 << 30;
/// `cr0`: paging.
pub const CR0_PG: u64 = 1 << 31;

/// `cr4`: no `rdtsc` for users.
pub const CR4_TSD: u64 = 1 << 2;
/// `cr4`: 4 MiB pages.
pub const CR4_PSE: u64 = 1 << 4;
/// `cr4`: 8-byte page table entries.
pub const CR4_PAE: u64 = 1 << 5;
/// `cr4`: global pages.
pub const CR4_PGE: u64 = 1 << 7;
/// `cr4`: `rdpmc` for users.
pub const CR4_PCE: u64 = 1 << 8;
/// `cr4`: SSE and `fxsave` of it.
pub const CR4_OSFXSR: u64 = 1 << 9;
/// `cr4`: `#XM` exists.
pub const CR4_OSXMMEXCPT: u64 = 1 << 10;
/// `cr4`: no `sgdt` and the like for users.
pub const CR4_UMIP: u64 = 1 << 11;
/// `cr4`: `rdfsbase` and the like.
pub const CR4_FSGSBASE: u64 = 1 << 16;
/// `cr4`: XSAVE.
pub const CR4_OSXSAVE: u64 = 1 << 18;
/// `cr4`: the supervisor executes no user pages.
pub const CR4_SMEP: u64 = 1 << 20;
/// `cr4`: the supervisor accesses no user pages unless `rflags.AC` is set.
pub const CR4_SMAP: u64 = 1 << 21;
/// What may be set in `cr4`: the above, and what needs nothing of us (VME, PVI, DE, MCE).
pub const CR4_KNOWN: u64 = CR4_TSD
    | CR4_PSE
    | CR4_PAE
    | CR4_PGE
    | CR4_PCE
    | CR4_OSFXSR
    | CR4_OSXMMEXCPT
    | CR4_UMIP
    | CR4_FSGSBASE
    | CR4_OSXSAVE
    | CR4_SMEP
    | CR4_SMAP
    | 0b1001_1011 & !(CR4_PSE | CR4_PGE)
    | 1 << 6;

/// `efer`: `syscall`.
pub const EFER_SCE: u64 = 1 << 0;
/// `efer`: long mode wanted.
pub const EFER_LME: u64 = 1 << 8;
/// `efer`: long mode, read-only.
pub const EFER_LMA: u64 = 1 << 10;
/// `efer`: pages can be barred from execution.
pub const EFER_NXE: u64 = 1 << 11;

/// Control and debug registers of one vCPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Control {
    /// Modes; extension type (bit 4) is always set.
    pub cr0: u64,
    /// Linear address of the last page fault.
    pub cr2: u64,
    /// Root of the page tables.
    pub cr3: u64,
    /// Features.
    pub cr4: u64,
    /// Long mode and what came with it.
    pub efer: u64,
    /// Parts of the extended state that are on.
    pub xcr0: u64,
    /// `dr0` to `dr3`. They are kept; no breakpoint ever hits.
    pub breakpoints: [u64; 4],
    /// `dr6`.
    pub dr6: u64,
    /// `dr7`.
    pub dr7: u64,
}

impl Default for Control {
    /// Protected mode without paging, as the tests of handlers want it; power-on state comes from
    /// [`crate::VcpuState::reset`].
    fn default() -> Self {
        Self {
            cr0: CR0_PE | 0x10 | CR0_NE | CR0_MP | CR0_WP,
            cr2: 0,
            cr3: 0,
            cr4: CR4_OSFXSR | CR4_OSXMMEXCPT | CR4_OSXSAVE,
            efer: 0,
            xcr0: 7,
            breakpoints: [0; 4],
            dr6: 0xffff_0ff0,
            dr7: 0x400,
        }
    }
}

impl Control {
    /// Protected mode (32-bit or long).
    #[inline(always)]
    #[must_use]
    pub fn protected(&self) -> bool {
        self.cr0 & CR0_PE != 0
    }

    /// Paging.
    #[inline(always)]
    #[must_use]
    pub fn paging(&self) -> bool {
        self.cr0 & CR0_PG != 0
    }

    /// Long mode, 64-bit or compatibility.
    #[inline(always)]
    #[must_use]
    pub fn long(&self) -> bool {
        self.efer & EFER_LMA != 0
    }

    /// Translations of global pages survive a load of `cr3`.
    #[must_use]
    pub fn global_pages(&self) -> bool {
        self.cr4 & CR4_PGE != 0
    }
}
