//! Decoded records, kept by revision: a listing of thousands decodes only what changed since the
//! last one, and is still exactly what the store holds.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use serde::de::DeserializeOwned;
use store::{Revision, Store, Table, TableError};

/// A table with its decoded records.
pub struct Cached<T: 'static> {
    table: &'static Table<T>,
    decoded: Mutex<HashMap<String, (Revision, Arc<T>)>>,
}

impl<T: DeserializeOwned> Cached<T> {
    /// An empty cache.
    #[must_use]
    pub fn new(table: &'static Table<T>) -> Self {
        Self {
            table,
            decoded: Mutex::default(),
        }
    }

    /// Every record at one revision, in the order of their ids.
    ///
    /// # Errors
    /// When the store cannot be read or a record makes no sense.
    pub async fn list(&self, store: &Store) -> Result<Vec<(String, Arc<T>)>, TableError> {
        let page = store.list(self.table.prefix()).await?;
        let mut before =
            std::mem::take(&mut *self.decoded.lock().unwrap_or_else(PoisonError::into_inner));
        let mut now = HashMap::with_capacity(page.records.len());
        let mut listing = Vec::with_capacity(page.records.len());
        for record in &page.records {
            let id = record.key[self.table.prefix().len()..].to_owned();
            let value = match before.remove(&id) {
                Some((revision, value)) if revision == record.modified => value,
                _ => Arc::new(self.table.decode(record)?.value),
            };
            now.insert(id.clone(), (record.modified, Arc::clone(&value)));
            listing.push((id, value));
        }
        *self.decoded.lock().unwrap_or_else(PoisonError::into_inner) = now;
        Ok(listing)
    }
}
