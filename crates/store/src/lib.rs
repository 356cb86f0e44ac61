//! Revisioned key-value store with compare-and-set transactions, watch and leases
