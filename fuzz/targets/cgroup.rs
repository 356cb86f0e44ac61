//! Whatever crate `cgroup` parses of outside bytes.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| cgroup::fuzzing::fuzz(data));
