//! Entry points for fuzzing, also called by property tests: bytes in, no panic out.

use bytes::Bytes;

use crate::record::{Record, Revision};
use crate::table::Table;

/// Record decoding: whatever is stored, a table gives a value or an error, and what it accepts as
/// its own version it writes and reads back unchanged.
pub fn fuzz(data: &[u8]) {
    const TABLE: Table<serde_json::Value> =
        Table::new("fuzz/", 2).with_upgrade(|from, data| match from {
            1 => Ok(data),
            other => Err(format!("version {other} never was")),
        });
    let record = |value: Bytes| Record {
        key: "fuzz/record".to_owned(),
        value,
        created: Revision(1),
        modified: Revision(1),
        lease: None,
    };
    if let Ok(entry) = TABLE.decode(&record(Bytes::copy_from_slice(data))) {
        let bytes = TABLE
            .encode("record", &entry.value)
            .expect("JSON can be written as JSON");
        let again = TABLE
            .decode(&record(bytes))
            .expect("what a table writes it reads");
        assert_eq!(
            again.value, entry.value,
            "what a table writes it reads unchanged"
        );
    }
}
