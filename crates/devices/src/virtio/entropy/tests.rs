//! Tests of `entropy`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use proptest::prelude::*;

use super::Entropy;
use crate::virtio::{Host, fuzzing, testing::Driver};

#[test]
fn buffers_are_filled_with_what_nobody_knows() {
    let mut driver = Driver::new(Box::new(Entropy::new(&Host::default()).unwrap()));
    driver.start();
    let first = driver.request(0, &[], &[32, 32]);
    let second = driver.request(0, &[], &[64]);
    assert_eq!((first.written, second.written), (64, 64));
    assert_ne!(first.data, second.data);
    assert_ne!(first.data[..32], first.data[32..]);
    // The test driver fills buffers with 0xee before it hands them over.
    assert_ne!(first.data, [0xee; 64]);
    let large = driver.request(0, &[], &[1 << 20]);
    assert_eq!(large.written, 4096);
    assert_eq!(large.data[4096..], [0xee; (1 << 20) - 4096]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn no_driver_harms_the_host(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        let entropy = Entropy::new(&Host::default()).unwrap();
        fuzzing::device(Box::new(entropy), u64::MAX, &[], &bytes);
    }
}
