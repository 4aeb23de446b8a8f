//! Lists.
use crate::Error;
use crate::repository::Repository;
pub(crate) async fn tags(_: &Repository) -> Result<Vec<String>, Error> {
    todo!()
}
pub(crate) async fn catalog(_: &Repository) -> Result<Vec<String>, Error> {
    todo!()
}
