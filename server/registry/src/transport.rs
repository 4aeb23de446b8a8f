//! Transport.
pub(crate) struct Transport;
impl Transport {
    pub(crate) fn new(_: &crate::Config) -> Transport {
        Transport
    }
}
