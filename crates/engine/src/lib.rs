//! The trait every engine implements, its conformance suite and a fake
