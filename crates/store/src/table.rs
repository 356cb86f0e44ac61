//! [`Table`]: typed records over the store. A key prefix, a schema version, a way up from older.
//!
//! Control and node declare one constant per kind of record and build operations into a
//! transaction they share. What is stored is `{"v":1,"data":{…}}`, so a golden file is the record
//! itself. A table never commits and never watches by itself.

use std::fmt;
use std::marker::PhantomData;

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::error::ReadError;
use crate::handle::Store;
use crate::record::{Event, LeaseId, Range, Record, Revision};
use crate::txn::Txn;

/// Brings the data of a record from schema version `from` to the table's, or says why it cannot.
pub type Upgrade = fn(from: u32, data: serde_json::Value) -> Result<serde_json::Value, String>;

/// Why a typed record could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// The store could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The value cannot be written as JSON.
    #[error("the record {key:?} cannot be written as JSON")]
    Encode {
        /// The record's key.
        key: String,
        /// What JSON refused.
        #[source]
        source: serde_json::Error,
    },
    /// What is stored is not such a record.
    #[error("the record {key:?} is damaged; restore the store from its backup or run a recovery")]
    Decode {
        /// The record's key.
        key: String,
        /// Where it stopped making sense.
        #[source]
        source: serde_json::Error,
    },
    /// A newer Berth wrote it.
    #[error("the record {key:?} has version {found}, this Berth knows {known}; upgrade Berth")]
    Newer {
        /// The record's key.
        key: String,
        /// The version it has.
        found: u32,
        /// The newest version known here.
        known: u32,
    },
    /// It is older than this Berth can read.
    #[error("the record {key:?} of version {from} cannot be upgraded: {reason}")]
    Upgrade {
        /// The record's key.
        key: String,
        /// The version it has.
        from: u32,
        /// Why not.
        reason: String,
    },
    /// The key is not one of this table.
    #[error("the key {key:?} is not under {prefix:?}")]
    Foreign {
        /// The key.
        key: String,
        /// The table's prefix.
        prefix: &'static str,
    },
}

/// A typed record with the revision to update it by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry<T> {
    /// The key without the table's prefix.
    pub id: String,
    /// When it was last written: what [`Table::update`] expects.
    pub revision: Revision,
    /// The lease it hangs on.
    pub lease: Option<LeaseId>,
    /// The record.
    pub value: T,
}

/// Records of a table at one revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing<T> {
    /// In byte order of their ids.
    pub entries: Vec<Entry<T>>,
    /// The state shown: watch from here.
    pub revision: Revision,
    /// The id to continue after, when a page was cut.
    pub more: Option<String>,
}

/// A change of a typed record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TableChange<T> {
    /// Created or updated.
    Put(Entry<T>),
    /// Deleted.
    Deleted {
        /// The key without the table's prefix.
        id: String,
        /// When.
        revision: Revision,
    },
}

/// Records of one type under one prefix. Declared as a constant:
///
/// ```
/// # #[derive(serde::Serialize, serde::Deserialize)] struct Network { subnet: String }
/// const NETWORKS: store::Table<Network> = store::Table::new("network/", 1);
/// ```
pub struct Table<T> {
    prefix: &'static str,
    version: u32,
    upgrade: Option<Upgrade>,
    marker: PhantomData<fn() -> T>,
}

#[derive(Serialize)]
struct Written<'a, T> {
    v: u32,
    data: &'a T,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored<'a> {
    v: u32,
    #[serde(borrow)]
    data: &'a RawValue,
}

impl<T> Table<T> {
    /// A table of records whose data has schema `version` (from 1) under `prefix`, which ends in a
    /// slash so that no table's keys start like another's.
    #[must_use]
    pub const fn new(prefix: &'static str, version: u32) -> Self {
        let bytes = prefix.as_bytes();
        assert!(
            !bytes.is_empty() && bytes[bytes.len() - 1] == b'/',
            "a prefix ends in a slash"
        );
        assert!(version > 0, "versions count from 1");
        Self {
            prefix,
            version,
            upgrade: None,
            marker: PhantomData,
        }
    }

    /// Reads older versions too, by bringing them up with `upgrade`.
    #[must_use]
    pub const fn with_upgrade(mut self, upgrade: Upgrade) -> Self {
        self.upgrade = Some(upgrade);
        self
    }

    /// The prefix of every key of this table.
    #[must_use]
    pub const fn prefix(&self) -> &'static str {
        self.prefix
    }

    /// The whole key of a record.
    #[must_use]
    pub fn key(&self, id: &str) -> String {
        format!("{}{id}", self.prefix)
    }

    /// Deletes a record that is still at `revision`; otherwise the transaction is a conflict.
    pub fn delete(&self, txn: &mut Txn, id: &str, revision: Revision) {
        txn.expect_revision(self.key(id), revision)
            .delete(self.key(id));
    }

    /// Deletes a record, whatever it holds, if it exists.
    pub fn remove(&self, txn: &mut Txn, id: &str) {
        txn.delete(self.key(id));
    }
}

impl<T: Serialize> Table<T> {
    /// The bytes that are stored for `value`.
    ///
    /// # Errors
    /// [`TableError::Encode`].
    pub fn encode(&self, id: &str, value: &T) -> Result<Bytes, TableError> {
        serde_json::to_vec(&Written {
            v: self.version,
            data: value,
        })
        .map(Bytes::from)
        .map_err(|source| TableError::Encode {
            key: self.key(id),
            source,
        })
    }

    /// Creates a record that must not exist.
    ///
    /// # Errors
    /// [`TableError::Encode`].
    pub fn insert(&self, txn: &mut Txn, id: &str, value: &T) -> Result<(), TableError> {
        let bytes = self.encode(id, value)?;
        txn.expect_absent(self.key(id)).put(self.key(id), bytes);
        Ok(())
    }

    /// Replaces a record that is still at `revision`.
    ///
    /// # Errors
    /// [`TableError::Encode`].
    pub fn update(
        &self,
        txn: &mut Txn,
        id: &str,
        revision: Revision,
        value: &T,
    ) -> Result<(), TableError> {
        let bytes = self.encode(id, value)?;
        txn.expect_revision(self.key(id), revision)
            .put(self.key(id), bytes);
        Ok(())
    }

    /// Creates or replaces a record, whatever it held.
    ///
    /// # Errors
    /// [`TableError::Encode`].
    pub fn put(&self, txn: &mut Txn, id: &str, value: &T) -> Result<(), TableError> {
        let bytes = self.encode(id, value)?;
        txn.put(self.key(id), bytes);
        Ok(())
    }

    /// As [`Table::put`], and the record disappears with `lease`.
    ///
    /// # Errors
    /// [`TableError::Encode`].
    pub fn put_leased(
        &self,
        txn: &mut Txn,
        id: &str,
        value: &T,
        lease: LeaseId,
    ) -> Result<(), TableError> {
        let bytes = self.encode(id, value)?;
        txn.put_leased(self.key(id), bytes, lease);
        Ok(())
    }
}

impl<T: DeserializeOwned> Table<T> {
    /// One record.
    ///
    /// # Errors
    /// When the store cannot be read or the record makes no sense.
    pub async fn get(&self, store: &Store, id: &str) -> Result<Option<Entry<T>>, TableError> {
        match store.get(self.key(id)).await? {
            Some(record) => self.decode(&record).map(Some),
            None => Ok(None),
        }
    }

    /// Every record, at one revision.
    ///
    /// # Errors
    /// When the store cannot be read or one of the records makes no sense.
    pub async fn list(&self, store: &Store) -> Result<Listing<T>, TableError> {
        let page = store.list(self.prefix).await?;
        let entries = page
            .records
            .iter()
            .map(|record| self.decode(record))
            .collect::<Result<_, _>>();
        Ok(Listing {
            entries: entries?,
            revision: page.revision,
            more: None,
        })
    }

    /// At most `limit` records behind the id `after`.
    ///
    /// # Errors
    /// As [`Table::list`].
    pub async fn page(
        &self,
        store: &Store,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Listing<T>, TableError> {
        let mut range = Range::prefix(self.prefix).limit(limit);
        if let Some(after) = after {
            range = range.after(self.key(after));
        }
        let page = store.range(range).await?;
        let entries = page
            .records
            .iter()
            .map(|record| self.decode(record))
            .collect::<Result<_, _>>();
        let more = page.more.map(|key| key[self.prefix.len()..].to_owned());
        Ok(Listing {
            entries: entries?,
            revision: page.revision,
            more,
        })
    }

    /// Gives a raw record its meaning.
    ///
    /// # Errors
    /// When it makes no sense, or needs a newer Berth.
    pub fn decode(&self, record: &Record) -> Result<Entry<T>, TableError> {
        Ok(Entry {
            id: self.id(&record.key)?,
            revision: record.modified,
            lease: record.lease,
            value: self.parse(&record.key, &record.value)?,
        })
    }

    /// Gives a watched event its meaning.
    ///
    /// # Errors
    /// As [`Table::decode`].
    pub fn change(&self, event: &Event) -> Result<TableChange<T>, TableError> {
        match &event.record {
            Some(record) => self.decode(record).map(TableChange::Put),
            None => Ok(TableChange::Deleted {
                id: self.id(&event.key)?,
                revision: event.revision,
            }),
        }
    }

    fn id(&self, key: &str) -> Result<String, TableError> {
        match key.strip_prefix(self.prefix) {
            Some(id) => Ok(id.to_owned()),
            None => Err(TableError::Foreign {
                key: key.to_owned(),
                prefix: self.prefix,
            }),
        }
    }

    fn parse(&self, key: &str, value: &[u8]) -> Result<T, TableError> {
        let damaged = |source| TableError::Decode {
            key: key.to_owned(),
            source,
        };
        let stored: Stored<'_> = serde_json::from_slice(value).map_err(damaged)?;
        if stored.v == self.version {
            return serde_json::from_str(stored.data.get()).map_err(damaged);
        }
        if stored.v > self.version {
            let (found, known) = (stored.v, self.version);
            return Err(TableError::Newer {
                key: key.to_owned(),
                found,
                known,
            });
        }
        let refused = |reason| TableError::Upgrade {
            key: key.to_owned(),
            from: stored.v,
            reason,
        };
        let upgrade = self
            .upgrade
            .ok_or_else(|| refused("no way is known".to_owned()))?;
        let old = serde_json::from_str(stored.data.get()).map_err(damaged)?;
        serde_json::from_value(upgrade(stored.v, old).map_err(refused)?).map_err(damaged)
    }
}

impl<T> fmt::Debug for Table<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Table")
            .field("prefix", &self.prefix)
            .field("version", &self.version)
            .finish_non_exhaustive()
    }
}
