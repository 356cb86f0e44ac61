//! Fuzz target: the JSON of a profile, parsed and compiled.

use crate::{Policy, compile};

/// Parses `data` as `linux.seccomp` and compiles it; must never panic, and what compiles must be
/// within the kernel's limit.
pub fn fuzz(data: &[u8]) {
    if let Ok(policy) = serde_json::from_slice::<Policy>(data)
        && let Ok(program) = compile(&policy)
    {
        assert!(!program.code.is_empty() && program.code.len() <= 4096);
    }
}
