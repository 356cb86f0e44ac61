//! Memory that the allocator keeps for later.
//!
//! For processes that live long and do little after a burst of work: the shim once it is set up, and
//! the daemon when it is quiet.

/// Gives the free memory of the heap back to the kernel. Takes a few milliseconds for a heap of tens
/// of megabytes; an allocator that keeps nothing back has nothing to do.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim touches free memory only.
    unsafe {
        libc::malloc_trim(0);
    }
}
