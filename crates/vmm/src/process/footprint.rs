//! Memory that a machine's process takes beside the guest's own: kept small before anything else is done,
//! and given back of what only the start needed, before the guest runs.

/// Threads share one heap, and large pieces go back to the kernel: what is kept for speed by default
/// is more than all that a machine needs.
pub(super) fn keep_small() {
    /// `DEFAULT_MMAP_THRESHOLD` of glibc, which setting it keeps from growing.
    #[cfg(target_env = "gnu")]
    const LARGE: i32 = 128 << 10;
    // SAFETY: sets numbers of the allocator; one it does not take is left as it was.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE);
    }
}

/// Returns what only the start needed: heap, and pages of this program, which come back from the page
/// cache where they are used again.
pub(super) fn trim() {
    // SAFETY: gives unused pages back to the kernel.
    #[cfg(target_env = "gnu")]
    let _any_returned = unsafe { libc::malloc_trim(0) };

    unsafe extern "C" {
        /// Where constants and code begin, and where they end (`end(3)`, and the linker's manual).
        static __executable_start: u8;
        static etext: u8;
    }
    let page = rustix::param::page_size();
    let start = (&raw const __executable_start).addr();
    let end = (&raw const etext).addr() & !(page - 1);
    // SAFETY: unmapped pages of a file nobody writes to come back as they were; what may be written
    // to, relocated constants too, lies behind `etext`.
    let _kept = unsafe {
        libc::madvise(
            start as *mut libc::c_void,
            end.saturating_sub(start),
            libc::MADV_DONTNEED,
        )
    };
}
