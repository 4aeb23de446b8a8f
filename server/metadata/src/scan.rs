//! Walking the records of one kind, decoded as they are asked for.

use std::marker::PhantomData;
use std::sync::Arc;

use crate::Error;
use crate::records::{Place, Records};
use crate::table::Record;
use crate::view::Viewed;

/// The records of one kind in a namespace, sorted by name, as they were when the scan began; writers go on meanwhile.
/// A damaged record comes as its error, and the scan goes on behind it.
pub struct Scan<R> {
    records: Arc<Records>,
    prefix: Vec<u8>,
    place: Place,
    kind: PhantomData<fn() -> R>,
}

impl<R> Scan<R> {
    pub(crate) fn new(records: Arc<Records>, prefix: Vec<u8>) -> Scan<R> {
        Scan { place: records.place(&prefix), records, prefix, kind: PhantomData }
    }
}

impl<R> Scan<R> {
    /// Shows the next record, by name and as it is stored.
    fn step<T>(&mut self, see: impl FnOnce(&[u8], &[u8]) -> T) -> Option<T> {
        let (name, value) = self.records.step(&mut self.place)?;
        // Most scans have no prefix, and to compare nothing with it takes as long as to decode a record.
        (self.prefix.is_empty() || name.starts_with(&self.prefix)).then(|| see(name, value))
    }
}

impl<R: Viewed> Scan<R> {
    /// Shows the next record as it is stored, without a copy.
    pub fn see<T>(&mut self, see: impl FnOnce(R::View<'_>) -> T) -> Option<Result<T, Error>> {
        self.step(|name, value| R::view(name, value).map(see))
    }
}

#[allow(private_bounds, reason = "Record is sealed: the kinds of records are the crate's own")]
impl<R: Record> Iterator for Scan<R> {
    type Item = Result<R, Error>;

    fn next(&mut self) -> Option<Result<R, Error>> {
        self.step(|name, value| R::decode(name, value))
    }
}
