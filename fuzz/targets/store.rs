//! Whatever crate `store` parses of outside bytes.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| store::fuzzing::fuzz(data));
