//! Ids, specs, status and the lifecycle of everything Berth manages: pure data, no I/O
