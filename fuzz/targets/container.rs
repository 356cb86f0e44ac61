//! Whatever crate `container` parses of outside bytes.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| container::fuzzing::fuzz(data));
