//! Symbolic links on the way to a file, followed the same in every file system.

/// Most of them on the way to a file.
const MAX_LINKS: usize = 40;
/// Longest target of one.
pub(super) const MAX_TARGET: u64 = 4096;

/// What lies at a path, as far as the way to another is concerned.
pub(super) enum Step {
    /// A symbolic link, and where it leads.
    Link(String),
    /// Anything else.
    Real,
}

/// The path without symbolic links, if it leads to something. `look` says what lies at a path whose
/// directories are no links; `None` is nothing.
pub(super) fn resolve(path: &str, look: impl Fn(&str) -> Option<Step>) -> Option<String> {
    let parts = |path: &str| path.split('/').rev().map(str::to_owned).collect::<Vec<_>>();
    let (mut left, mut links) = (parts(path), 0);
    let mut real: Vec<String> = Vec::new();
    while let Some(part) = left.pop() {
        match part.as_str() {
            "" | "." => continue,
            ".." => {
                real.pop();
                continue;
            }
            _ => {}
        }
        let here = [&real[..], std::slice::from_ref(&part)].concat().join("/");
        match look(&format!("/{here}"))? {
            Step::Real => real.push(part),
            Step::Link(target) => {
                links += 1;
                if links > MAX_LINKS {
                    return None;
                }
                if target.starts_with('/') {
                    real.clear();
                }
                left.extend(parts(&target));
            }
        }
    }
    Some(format!("/{}", real.join("/")))
}
