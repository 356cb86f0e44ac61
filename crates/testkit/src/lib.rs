//! Fixtures, fault injection and namespaces for tests
