//! x
/// x
pub struct DockerConfig;
