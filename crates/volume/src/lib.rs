//! Pools and the volumes in them
