//! Tests of the store: names, collection, crashes.
