//! Translation between the scales of cgroup v1 and v2. Pure.
//!
//! Sources: the OCI runtime specification's `config-linux.md`, and the mapping that runc and crun
//! share since 2025, which keeps the two defaults (1,024 shares and weight 100) on each other.

use crate::resources::Limit;

/// v1 `cpu.shares` (2 to 262,144) as v2 `cpu.weight` (1 to 10,000): minimum, default and maximum
/// map to each other on a quadratic curve between the logarithms. 0 means the default.
pub fn weight_from_shares(shares: u64) -> u64 {
    if shares == 0 {
        return 100;
    }
    let l = (shares.clamp(2, 262_144) as f64).log2();
    let exponent = (l * l + 125.0 * l) / 612.0 - 7.0 / 34.0;
    // The curve meets whole numbers exactly; rounding noise must not push it one up.
    ((10f64.powf(exponent) - 1e-9).ceil() as u64).clamp(1, 10_000)
}

/// The inverse of [`weight_from_shares`], to the nearest share.
pub fn shares_from_weight(weight: u64) -> u64 {
    if weight == 0 {
        return 1024;
    }
    let target = (weight.clamp(1, 10_000) as f64).log10() + 7.0 / 34.0;
    let l = (-125.0 + (125.0f64 * 125.0 + 4.0 * 612.0 * target).sqrt()) / 2.0;
    (l.exp2().round() as u64).clamp(2, 262_144)
}

/// v1 `blkio.weight` (10 to 1,000) as v2 `io.weight` (1 to 10,000), linear.
pub fn io_weight_from_blkio(weight: u16) -> u16 {
    let weight = u32::from(weight.clamp(10, 1000));
    (1 + (weight - 10) * 9999 / 990) as u16
}

/// v1 counts memory and swap together, v2 swap alone. `None` when the sum makes no sense: there
/// is no memory limit to subtract, or it is larger than the sum.
pub fn swap_from_total(memory: Option<Limit>, total: Limit) -> Option<Limit> {
    match (memory, total) {
        (_, Limit::Max) => Some(Limit::Max),
        (Some(Limit::At(memory)), Limit::At(total)) => total.checked_sub(memory).map(Limit::At),
        (Some(Limit::Max) | None, Limit::At(_)) => None,
    }
}

/// The inverse of [`swap_from_total`].
pub fn total_from_swap(memory: Option<Limit>, swap: Limit) -> Option<Limit> {
    match (memory, swap) {
        (_, Limit::Max) | (Some(Limit::Max), _) => Some(Limit::Max),
        (Some(Limit::At(memory)), Limit::At(swap)) => Some(Limit::At(memory.saturating_add(swap))),
        (None, Limit::At(_)) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_weights_keep_minimum_default_and_maximum() {
        for (shares, weight) in [
            (0, 100),
            (2, 1),
            (1024, 100),
            (262_144, 10_000),
            (u64::MAX, 10_000),
        ] {
            assert_eq!(weight_from_shares(shares), weight, "{shares} shares");
        }
        for (weight, shares) in [(1, 2), (100, 1024), (10_000, 262_144)] {
            assert_eq!(shares_from_weight(weight), shares, "weight {weight}");
        }
        // Between them, computed by hand from the formula: 10^1.764, 10^2.239, 10^1.078.
        assert_eq!([512, 2048, 64].map(weight_from_shares), [59, 174, 12]);
    }

    proptest::proptest! {
        #[test]
        fn cpu_weight_is_monotonic_and_survives_the_round_trip(a in 2u64..262_144) {
            proptest::prop_assert!(weight_from_shares(a) <= weight_from_shares(a + 1));
            let weight = weight_from_shares(a);
            let again = weight_from_shares(shares_from_weight(weight));
            proptest::prop_assert!(again.abs_diff(weight) <= 1 + weight / 100);
        }
    }

    #[test]
    fn swap_is_the_difference() {
        use Limit::{At, Max};
        assert_eq!(swap_from_total(Some(At(10)), At(30)), Some(At(20)));
        assert_eq!(swap_from_total(Some(At(30)), At(10)), None);
        assert_eq!(swap_from_total(None, At(10)), None);
        assert_eq!(swap_from_total(None, Max), Some(Max));
        assert_eq!(total_from_swap(Some(At(10)), At(20)), Some(At(30)));
        assert_eq!([10, 500, 1000].map(io_weight_from_blkio), [1, 4950, 10_000]);
    }
}
