//! Control groups v2, v1 and hybrid behind one interface
