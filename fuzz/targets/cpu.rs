//! Whatever a guest does to crate `cpu`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| cpu::fuzzing::fuzz(data));
