//! Tar streams.
