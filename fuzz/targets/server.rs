//! Whatever crate `server` parses of outside bytes.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| server::fuzzing::fuzz(data));
