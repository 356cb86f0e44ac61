//! Tests of `rtc`.

use proptest::prelude::*;

use super::{device::Time, *};
use crate::{Registers, fuzzing};

fn get(rtc: &Rtc, index: u8) -> u8 {
    let mut data = [0];
    rtc.write(0, &[index]);
    rtc.read(1, &mut data);
    data[0]
}

fn put(rtc: &Rtc, index: u8, value: u8) {
    rtc.write(0, &[index]);
    rtc.write(1, &[value]);
}

/// `date -u -d @1709211599`: Thursday, 29 February 2024, 12:59:59.
const LEAP_DAY: u64 = 1_709_211_599;

#[test]
fn it_shows_the_time_in_both_encodings_and_both_halves_of_the_day() {
    let rtc = Rtc::with_clock(|| LEAP_DAY);
    let shown = [0x32, 9, 8, 7, 6, 4, 2, 0].map(|index| get(&rtc, index));
    assert_eq!(shown, [0x20, 0x24, 0x02, 0x29, 0x05, 0x12, 0x59, 0x59]);
    put(&rtc, 0x0b, 0x06);
    let shown = [0x32, 9, 8, 7, 6, 4, 2, 0].map(|index| get(&rtc, index));
    assert_eq!(shown, [20, 24, 2, 29, 5, 12, 59, 59]);
    put(&rtc, 0x0b, 0x04);
    assert_eq!(get(&rtc, 4), 0x80 | 12);
    assert_eq!(get(&Rtc::with_clock(|| 0), 4), 0);
    assert_eq!(get(&rtc, 0x0a), 0x26);
    assert_eq!(get(&rtc, 0x0d), 0x80);
}

#[test]
fn memory_is_kept_and_the_time_cannot_be_set() {
    let rtc = Rtc::with_clock(|| LEAP_DAY);
    put(&rtc, 0x40, 0xa5);
    put(&rtc, 9, 0x99);
    put(&rtc, 0x0b, 0xff);
    assert_eq!(get(&rtc, 0x40), 0xa5);
    assert_eq!(get(&rtc, 9), 24);
    assert_eq!(get(&rtc, 0x0b), 0x87);
    let restored = Rtc::with_clock(|| LEAP_DAY);
    restored.restore(&rtc.state()).unwrap();
    assert_eq!(get(&restored, 0x40), 0xa5);
    let short = RtcState {
        memory: vec![0; 3],
        ..rtc.state()
    };
    assert!(restored.restore(&short).is_err());
}

proptest! {
    /// The calendar, against the C library's.
    #[test]
    fn dates_are_those_of_the_calendar(seconds in 0u64..253_402_300_800) {
        // SAFETY: all zeros are a valid `tm`, and both pointers are to locals.
        let known = unsafe {
            let mut known: libc::tm = std::mem::zeroed();
            libc::gmtime_r(&(seconds as libc::time_t), &mut known);
            known
        };
        let time = Time::at(seconds);
        let date = (time.year as i32, i32::from(time.month), i32::from(time.day));
        prop_assert_eq!(date, (known.tm_year + 1900, known.tm_mon + 1, known.tm_mday));
        prop_assert_eq!(i32::from(time.weekday), known.tm_wday + 1);
        let moment = (i32::from(time.hour), i32::from(time.minute), i32::from(time.second));
        prop_assert_eq!(moment, (known.tm_hour, known.tm_min, known.tm_sec));
    }

    #[test]
    fn hostile_accesses_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..1000)) {
        fuzzing::rtc(&bytes);
    }
}
