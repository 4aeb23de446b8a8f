//! Walking the records of one kind, decoded as they are asked for.

use std::marker::PhantomData;
use std::ops::Bound;
use std::sync::Arc;

use crate::Error;
use crate::records::Records;
use crate::table::Record;
use crate::view::Viewed;

/// The records of one kind in a namespace, sorted by name, as they were when the scan began; writers go on meanwhile.
/// A damaged record comes as its error, and the scan goes on behind it.
pub struct Scan<R> {
    records: Arc<Records>,
    prefix: Vec<u8>,
    last: Option<Box<[u8]>>,
    kind: PhantomData<fn() -> R>,
}

impl<R> Scan<R> {
    pub(crate) fn new(records: Arc<Records>, prefix: Vec<u8>) -> Scan<R> {
        Scan { records, prefix, last: None, kind: PhantomData }
    }
}

impl<R> Scan<R> {
    /// Shows the next record, by name and as it is stored, and remembers it as seen.
    fn step<T>(&mut self, see: impl FnOnce(&[u8], &[u8]) -> T) -> Option<T> {
        let from: Bound<&[u8]> = match &self.last {
            Some(last) => Bound::Excluded(last),
            None => Bound::Included(&self.prefix),
        };
        let (name, value) = self.records.from(from).next()?;
        if !name.starts_with(&self.prefix) {
            return None;
        }
        let seen = see(name, value);
        self.last = Some(name.clone());
        Some(seen)
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
