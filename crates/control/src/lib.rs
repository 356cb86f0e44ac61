//! The meaning of the API: records, operations, access
