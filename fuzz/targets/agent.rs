//! Whatever crate `agent` parses of outside bytes: frames and messages of guests and hosts.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    agent::fuzzing::frames(data);
    agent::fuzzing::messages(data);
});
