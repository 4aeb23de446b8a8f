//! Referrers.
use crate::Error;
use crate::repository::Repository;
use gantry_types::{Descriptor, Digest};
pub(crate) async fn list(_: &Repository, _: &Digest, _: Option<&str>) -> Result<Vec<Descriptor>, Error> {
    todo!()
}
