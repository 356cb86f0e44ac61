//! Points at which tests let this process die as in a power cut.
//!
//! Compiled always, inert unless the environment says otherwise: `BERTH_CRASH_AT=name:n` aborts the
//! process when it passes the point `name` for the n-th time (the first when `:n` is left out). What
//! changes the world in several steps has a point between any two of them; the crash tests go
//! through all. A point decides nothing and records nothing.

use std::sync::{
    OnceLock,
    atomic::{AtomicU32, Ordering},
};

/// Names the point and the pass, as `name:n`.
pub const VARIABLE: &str = "BERTH_CRASH_AT";

struct Armed {
    name: String,
    passes_left: AtomicU32,
}

fn armed() -> Option<&'static Armed> {
    static ARMED: OnceLock<Option<Armed>> = OnceLock::new();
    let read = || parse(&std::env::var(VARIABLE).ok()?);
    ARMED.get_or_init(read).as_ref()
}

fn parse(text: &str) -> Option<Armed> {
    let (name, passes) = match text.rsplit_once(':') {
        Some((name, passes)) => (name, passes.parse().ok()?),
        None => (text, 1),
    };
    Some(Armed {
        name: name.to_owned(),
        passes_left: AtomicU32::new(passes),
    })
}

/// Passes a point whose name has parts, written with dots between them: `["end", "signalled"]` is
/// `end.signalled`.
pub fn point(parts: &[&str]) {
    let Some(armed) = armed() else { return };
    if armed.passed(parts) {
        // Nothing is flushed, dropped or said: the kernel just ends us.
        std::process::abort();
    }
}

impl Armed {
    /// Whether this pass is the one.
    fn passed(&self, parts: &[&str]) -> bool {
        let named = self.name.split('.').eq(parts.iter().copied());
        named && self.passes_left.fetch_sub(1, Ordering::Relaxed) == 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_named_pass_of_the_named_point_counts() {
        let armed = parse("step.image.done:2").unwrap();
        assert!(!armed.passed(&["step", "image"]));
        assert!(!armed.passed(&["step", "image", "done"]));
        assert!(armed.passed(&["step", "image", "done"]));
        assert!(!armed.passed(&["step", "image", "done"]));
        assert!(parse("start").unwrap().passed(&["start"]));
        assert!(parse("start:x").is_none());
    }
}
