//! Pure decisions: desired and observed state in, plan out
