//! What a transaction may hold, whatever the backend. The one place where it is checked.
//!
//! The numbers are etcd's defaults (`--max-txn-ops`, `--max-request-bytes` less its own framing),
//! so that what one host accepts a cluster accepts. [`crate::Store`] calls this before any backend
//! sees a transaction; backends trust it.

use crate::error::LimitError;
use crate::record::Range;
use crate::txn::{Op, Txn};

/// Guards, and apart from them operations, in one transaction (etcd counts them apart too).
pub const MAX_TXN_OPS: usize = 128;
/// Bytes of all keys and values of one transaction.
pub const MAX_TXN_BYTES: usize = 1 << 20;
/// Bytes of one key.
pub const MAX_KEY_BYTES: usize = 1 << 10;
/// Bytes of one value: half a transaction, so that a record always leaves room for its company.
pub const MAX_VALUE_BYTES: usize = 512 << 10;
/// Records in one page of a range read.
pub const MAX_PAGE_RECORDS: usize = 10_000;
/// Bytes of values in one page of a range read. A page holds at least one record all the same.
pub const MAX_PAGE_BYTES: usize = 32 << 20;

/// Checks a whole transaction.
///
/// # Errors
/// The first limit it breaks, with the figure found and the figure allowed.
pub fn check_txn(txn: &Txn) -> Result<(), LimitError> {
    for (what, count) in [("guards", txn.guards.len()), ("operations", txn.ops.len())] {
        if count > MAX_TXN_OPS {
            return Err(LimitError::TooMany {
                what,
                count,
                max: MAX_TXN_OPS,
            });
        }
    }
    for guard in &txn.guards {
        check_key(&guard.key)?;
    }
    for op in &txn.ops {
        check_key(op.key())?;
        if let Op::Put { key, value, .. } = op
            && value.len() > MAX_VALUE_BYTES
        {
            return Err(LimitError::ValueTooLong {
                key: key.clone(),
                bytes: value.len(),
                max: MAX_VALUE_BYTES,
            });
        }
    }
    let bytes = txn.bytes();
    if bytes > MAX_TXN_BYTES {
        return Err(LimitError::TxnTooLong {
            bytes,
            max: MAX_TXN_BYTES,
        });
    }
    check_duplicates(txn)
}

/// Checks the keys a range read names.
///
/// # Errors
/// As for keys of a transaction; the empty prefix is allowed.
pub fn check_range(range: &Range) -> Result<(), LimitError> {
    for key in std::iter::once(&range.prefix).chain(&range.after) {
        if !key.is_empty() {
            check_key(key)?;
        }
    }
    Ok(())
}

/// Checks one key: not empty, not long, no control characters.
///
/// # Errors
/// [`LimitError::KeyTooLong`] or [`LimitError::KeyInvalid`].
pub fn check_key(key: &str) -> Result<(), LimitError> {
    if key.len() > MAX_KEY_BYTES {
        let start: String = key.chars().take(48).collect();
        return Err(LimitError::KeyTooLong {
            start,
            bytes: key.len(),
            max: MAX_KEY_BYTES,
        });
    }
    if key.is_empty() || key.chars().any(char::is_control) {
        return Err(LimitError::KeyInvalid {
            key: key.escape_debug().to_string(),
        });
    }
    Ok(())
}

/// Two operations on one key in one transaction have no order a reader could rely on.
fn check_duplicates(txn: &Txn) -> Result<(), LimitError> {
    let mut keys: Vec<&str> = txn.ops.iter().map(Op::key).collect();
    keys.sort_unstable();
    match keys.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(LimitError::DuplicateKey {
            key: pair[0].to_owned(),
        }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_limit_is_met_exactly_and_named_when_broken() {
        let mut full = Txn::new();
        for n in 0..MAX_TXN_OPS {
            full.expect_absent(format!("k{n}"))
                .put(format!("k{n}"), "v");
        }
        check_txn(&full).expect("128 guards and 128 operations are allowed");
        let mut more = full.clone();
        more.put("one-more", "v");
        assert!(matches!(
            check_txn(&more),
            Err(LimitError::TooMany {
                what: "operations",
                count: 129,
                max: 128
            })
        ));
        full.expect_absent("one-more");
        assert!(matches!(
            check_txn(&full),
            Err(LimitError::TooMany { what: "guards", .. })
        ));

        let put = |key: &str, bytes: usize| {
            let mut txn = Txn::new();
            txn.put(key, vec![0_u8; bytes]);
            txn
        };
        check_txn(&put("k", MAX_VALUE_BYTES)).expect("exactly the limit");
        assert!(matches!(
            check_txn(&put("k", MAX_VALUE_BYTES + 1)),
            Err(LimitError::ValueTooLong { .. })
        ));
        check_txn(&put(&"k".repeat(MAX_KEY_BYTES), 1)).expect("exactly the limit");
        assert!(matches!(
            check_txn(&put(&"k".repeat(MAX_KEY_BYTES + 1), 1)),
            Err(LimitError::KeyTooLong { .. })
        ));
        for bad in ["", "a\0b", "a\nb"] {
            assert!(matches!(
                check_txn(&put(bad, 1)),
                Err(LimitError::KeyInvalid { .. })
            ));
        }
        let mut long = put("a", MAX_VALUE_BYTES);
        long.put("b", vec![0_u8; MAX_VALUE_BYTES - 2]);
        check_txn(&long).expect("exactly a mebibyte");
        long.delete("c");
        assert!(matches!(
            check_txn(&long),
            Err(LimitError::TxnTooLong { .. })
        ));
        let mut twice = put("a", 1);
        twice.delete("a");
        assert!(matches!(check_txn(&twice), Err(LimitError::DuplicateKey { key }) if key == "a"));
    }
}
