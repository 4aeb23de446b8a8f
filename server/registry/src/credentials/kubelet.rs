//! x
/// x
pub struct KubeletCredentials;
