//! Whatever crate `seccomp` parses of outside bytes.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| seccomp::fuzzing::fuzz(data));
