//! Quantities as people write them.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// A number of bytes. People write `512M` or `4GiB`: units are powers of 1024, with or without
/// `iB` or `B`; a plain number is bytes. JSON carries bytes.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default,
)]
#[serde(transparent)]
pub struct ByteSize(pub u64);

/// Text that is not a size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a size: write a number with a unit, such as 512M or 4G (powers of 1024)")]
pub struct ParseByteSizeError {
    /// What was given.
    pub text: String,
}

const UNITS: [(&str, u32); 6] = [
    ("E", 60),
    ("P", 50),
    ("T", 40),
    ("G", 30),
    ("M", 20),
    ("K", 10),
];

impl FromStr for ByteSize {
    type Err = ParseByteSizeError;

    fn from_str(text: &str) -> Result<Self, ParseByteSizeError> {
        let error = || ParseByteSizeError {
            text: text.to_owned(),
        };
        let upper = text.trim().to_ascii_uppercase();
        let body = upper
            .strip_suffix("IB")
            .or_else(|| upper.strip_suffix('B'))
            .unwrap_or(&upper);
        let (digits, shift) = UNITS
            .iter()
            .find_map(|(unit, shift)| Some((body.strip_suffix(unit)?, *shift)))
            .unwrap_or((body, 0));
        let digits = digits.trim_end();
        if let Ok(whole) = digits.parse::<u64>() {
            return whole.checked_mul(1 << shift).map(Self).ok_or_else(error);
        }
        // A fraction: at most three decimals, kept exact in thousandths.
        let (whole, fraction) = digits.split_once('.').ok_or_else(error)?;
        if fraction.is_empty()
            || fraction.len() > 3
            || !fraction.bytes().all(|b| b.is_ascii_digit())
        {
            return Err(error());
        }
        let whole: u64 = whole.parse().map_err(|_| error())?;
        let thousandths: u64 = format!("{fraction:0<3}").parse().map_err(|_| error())?;
        let bytes = (u128::from(whole) * 1000 + u128::from(thousandths)) * (1u128 << shift) / 1000;
        u64::try_from(bytes).map(Self).map_err(|_| error())
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (unit, shift) in UNITS.iter().rev() {
            let scaled = self.0 as f64 / (1u64 << shift) as f64;
            if (1.0..1024.0).contains(&scaled) {
                let text = if scaled < 10.0 && self.0 & ((1 << shift) - 1) != 0 {
                    format!("{scaled:.1} {unit}iB")
                } else {
                    format!("{scaled:.0} {unit}iB")
                };
                return f.pad(&text);
            }
        }
        f.pad(&format!("{} B", self.0))
    }
}

/// A share of processor time in thousandths of one CPU: `1500` is one and a half CPUs. People
/// write `1.5`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MilliCpus(pub u32);

/// Text that is not a number of CPUs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a number of CPUs: write for example 2 or 0.5")]
pub struct ParseCpusError {
    /// What was given.
    pub text: String,
}

impl FromStr for MilliCpus {
    type Err = ParseCpusError;

    fn from_str(text: &str) -> Result<Self, ParseCpusError> {
        let error = || ParseCpusError {
            text: text.to_owned(),
        };
        let value: f64 = text.trim().parse().map_err(|_| error())?;
        if !(0.001..=1_000_000.0).contains(&value) {
            return Err(error());
        }
        Ok(Self((value * 1000.0).round() as u32))
    }
}

impl fmt::Display for MilliCpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}", f64::from(self.0) / 1000.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_and_print() {
        for (text, bytes) in [
            ("0", 0),
            ("1024", 1024),
            ("4K", 4096),
            ("512M", 512 << 20),
            ("4GiB", 4 << 30),
            ("1.5g", 3 << 29),
            ("2 TB", 2 << 40),
        ] {
            assert_eq!(text.parse::<ByteSize>().unwrap(), ByteSize(bytes), "{text}");
        }
        for bad in ["", "G", "-1", "1.2345G", "99999999E", "1X", "1.G"] {
            assert!(bad.parse::<ByteSize>().is_err(), "{bad}");
        }
        assert_eq!(ByteSize(3 << 29).to_string(), "1.5 GiB");
        assert_eq!(ByteSize(512 << 20).to_string(), "512 MiB");
        assert_eq!(ByteSize(7).to_string(), "7 B");
        assert_eq!(ByteSize(u64::MAX).to_string(), "16 EiB");
    }

    #[test]
    fn cpus_read_and_print() {
        assert_eq!("0.5".parse::<MilliCpus>().unwrap(), MilliCpus(500));
        assert_eq!(MilliCpus(1500).to_string(), "1.5");
        for bad in ["", "0", "-1", "NaN", "inf", "two"] {
            assert!(bad.parse::<MilliCpus>().is_err(), "{bad}");
        }
    }
}
