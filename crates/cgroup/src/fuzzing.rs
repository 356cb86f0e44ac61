//! Fuzz target over every parser of this crate; also run by a property test.

use crate::{CgroupPath, parse};

/// Feeds `data` to all parsers; must never panic, loop or grow without bound.
pub fn fuzz(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let _ = CgroupPath::parse(&text).map(|path| path.below(std::path::Path::new("/x")));
    let _ = parse::mountinfo(&text).controllers();
    parse::flat_keyed(&text).for_each(drop);
    parse::nested_device_keyed(&text).for_each(|(_, pairs)| pairs.for_each(drop));
    parse::pids(&text).for_each(drop);
    let _ = (parse::number(&text), parse::number_or_max(&text));
    let _ = crate::stats::parse_all(&text);
}

#[cfg(test)]
mod tests {
    proptest::proptest! {
        #[test]
        fn parsers_never_panic(data in proptest::collection::vec(proptest::num::u8::ANY, 0..512)) {
            super::fuzz(&data);
        }

        #[test]
        fn parsers_never_panic_on_near_misses(text in "([a-z_.]{1,6}[ =:])?[0-9:]{0,24}[ \n]?(- cgroup2? )?(rbytes=[0-9]{1,22} Read [0-9]+)?\n?{0,3}") {
            super::fuzz(text.as_bytes());
        }
    }
}
