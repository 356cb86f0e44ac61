//! Rate limits: a token bucket for bytes and one for operations, changed while in use.
//!
//! A request is let through while there is any credit, and may run it into debt; so one request
//! larger than the bucket waits no longer than it costs, and its size need not be known before.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

/// What is let through in a second. Zero: as much as comes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Bytes in a second.
    pub bytes_per_second: u64,
    /// Requests or packets in a second.
    pub operations_per_second: u64,
    /// Bytes let through at once after a pause. Zero: a tenth of a second's worth.
    pub burst_bytes: u64,
}

/// A limit changed by somebody else takes effect after this at the latest.
const LONGEST_WAIT: Duration = Duration::from_millis(50);

#[derive(Debug)]
struct Bucket {
    per_second: u64,
    /// The most tokens it holds.
    burst: u64,
    /// Credit in nanoseconds' worth times the rate: `tokens × 10^9`, so nothing is lost in rounding.
    credit: i128,
    at: Instant,
}

const NANOS: i128 = 1_000_000_000;

impl Bucket {
    /// A full one; without a `burst` it holds a tenth of a second's worth, one token at least.
    fn new(per_second: u64, burst: u64, now: Instant) -> Self {
        let usual = (per_second / 10).max(1);
        let mut bucket = Self {
            per_second,
            burst: if burst == 0 { usual } else { burst },
            credit: 0,
            at: now,
        };
        bucket.credit = bucket.capacity();
        bucket
    }

    fn capacity(&self) -> i128 {
        i128::from(self.burst) * NANOS
    }

    fn refill(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.at).as_nanos();
        self.at = self.at.max(now);
        let earned = i128::try_from(elapsed)
            .unwrap_or(i128::MAX)
            .saturating_mul(i128::from(self.per_second));
        self.credit = self.credit.saturating_add(earned).min(self.capacity());
    }

    /// How long until there is credit; zero when there is.
    fn wait(&mut self, now: Instant) -> Duration {
        if self.per_second == 0 {
            return Duration::ZERO;
        }
        self.refill(now);
        if self.credit > 0 {
            return Duration::ZERO;
        }
        let nanos = -self.credit / i128::from(self.per_second) + 1;
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    fn charge(&mut self, tokens: u64) {
        if self.per_second != 0 {
            self.credit = self.credit.saturating_sub(i128::from(tokens) * NANOS);
        }
    }
}

/// A limiter, shared by the queues of a device and whoever changes it.
#[derive(Debug)]
pub struct RateLimiter(Mutex<(Limits, Bucket, Bucket)>);

impl RateLimiter {
    /// One that lets `limits` through, and the burst they allow at once.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self(Mutex::new(Self::buckets(limits)))
    }

    fn buckets(limits: Limits) -> (Limits, Bucket, Bucket) {
        let now = Instant::now();
        (
            limits,
            Bucket::new(limits.bytes_per_second, limits.burst_bytes, now),
            Bucket::new(limits.operations_per_second, 0, now),
        )
    }

    /// Changes the limits; debts are forgotten.
    pub fn set(&self, limits: Limits) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Self::buckets(limits);
    }

    /// The limits now.
    #[must_use]
    pub fn limits(&self) -> Limits {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).0
    }

    /// Whether a request may begin at `now`; when not, how long to wait before asking again.
    #[must_use]
    pub fn admit(&self, now: Instant) -> Option<Duration> {
        let mut guard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (limits, bytes, operations) = &mut *guard;
        if *limits == Limits::default() {
            return None;
        }
        let wait = bytes.wait(now).max(operations.wait(now));
        (!wait.is_zero()).then(|| wait.min(LONGEST_WAIT))
    }

    /// Charges a request that began, of `bytes`.
    pub fn charge(&self, bytes: u64) {
        let mut guard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        guard.1.charge(bytes);
        guard.2.charge(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs requests of `bytes` for ten seconds of pretended time; returns how many began.
    fn began(limiter: &RateLimiter, bytes: u64) -> u64 {
        let start = Instant::now();
        let (mut now, mut count) = (Duration::ZERO, 0);
        while now < Duration::from_secs(10) {
            match limiter.admit(start + now) {
                Some(wait) => now += wait,
                None => {
                    limiter.charge(bytes);
                    count += 1;
                }
            }
        }
        count
    }

    #[test]
    fn as_much_goes_through_as_the_limit_says_whatever_the_size_of_requests() {
        for size in [512, 4096, 3 << 20] {
            let limiter = RateLimiter::new(Limits {
                bytes_per_second: 1 << 20,
                ..Limits::default()
            });
            let bytes = began(&limiter, size) * size;
            assert!(bytes >= 10 << 20, "{bytes} of requests of {size}");
            assert!(bytes <= (11 << 20) + size, "{bytes} of requests of {size}");
        }
        let limiter = RateLimiter::new(Limits {
            bytes_per_second: u64::MAX,
            operations_per_second: 100,
            ..Limits::default()
        });
        assert!((1000..=1011).contains(&began(&limiter, 1)));
    }

    #[test]
    fn a_burst_goes_through_at_once_and_is_earned_again_in_a_pause() {
        let limiter = RateLimiter::new(Limits {
            bytes_per_second: 1000,
            burst_bytes: 5000,
            ..Limits::default()
        });
        let mut now = Instant::now();
        for _ in 0..2 {
            let at_once = (0..100).take_while(|_| {
                let admitted = limiter.admit(now).is_none();
                limiter.charge(if admitted { 500 } else { 0 });
                admitted
            });
            assert_eq!(at_once.count(), 10);
            now += Duration::from_secs(60);
        }
    }

    #[test]
    fn new_limits_count_at_once_and_debts_are_forgotten() {
        let limiter = RateLimiter::new(Limits {
            bytes_per_second: 1,
            ..Limits::default()
        });
        let now = Instant::now();
        limiter.charge(1 << 40);
        assert!(limiter.admit(now).is_some_and(|wait| wait <= LONGEST_WAIT));
        limiter.set(Limits::default());
        assert_eq!(limiter.admit(now), None);
    }
}
