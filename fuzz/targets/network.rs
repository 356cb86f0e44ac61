//! Whatever crate `network` parses of outside bytes.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| network::fuzzing::fuzz(data));
