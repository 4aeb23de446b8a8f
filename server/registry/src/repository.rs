//! One repository and the hosts that serve it.
use crate::{Access, Error, Registry};
use gantry_types::Reference;
pub(crate) struct Repository;
impl Repository {
    pub(crate) fn open(_: &Registry, _: &Reference, _: &Access) -> Result<Repository, Error> {
        todo!()
    }
    pub(crate) fn of_host(_: &Registry, _: &str, _: &Access) -> Result<Repository, Error> {
        todo!()
    }
}
