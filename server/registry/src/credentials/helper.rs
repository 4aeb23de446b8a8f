//! x
/// x
pub struct Helper;
