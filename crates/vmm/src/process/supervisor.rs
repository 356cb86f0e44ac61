//! x
/// x
pub fn supervise() {}
/// x
pub struct SuperviseError;
