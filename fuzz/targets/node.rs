//! Archives that callers unpack into an instance.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| node::files::fuzzing::fuzz(data));
