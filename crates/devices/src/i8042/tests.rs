//! Tests of `i8042`.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use super::*;
use crate::Registers;

#[test]
fn only_the_reset_command_resets() {
    let count = Arc::new(AtomicU32::new(0));
    let counter = count.clone();
    let i8042 = I8042::new(move || {
        counter.fetch_add(1, Ordering::Relaxed);
    });
    i8042.write(0, &[0xfe]);
    i8042.write(4, &[0xd1]);
    i8042.write(4, &[0xfe, 0]);
    assert_eq!(count.load(Ordering::Relaxed), 0);
    let mut status = [0xff];
    i8042.read(4, &mut status);
    assert_eq!(status, [0]);
    i8042.write(4, &[0xfe]);
    assert_eq!(count.load(Ordering::Relaxed), 1);
}
