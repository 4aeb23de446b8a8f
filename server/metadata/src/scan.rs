//! Walking the records of one kind, decoded as they are asked for.

use std::marker::PhantomData;
use std::ops::Bound;
use std::sync::Arc;

use crate::Error;
use crate::memory::Records;
use crate::table::Record;

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

#[allow(private_bounds, reason = "Record is sealed: the kinds of records are the crate's own")]
impl<R: Record> Iterator for Scan<R> {
    type Item = Result<R, Error>;

    fn next(&mut self) -> Option<Result<R, Error>> {
        let from: Bound<&[u8]> = match &self.last {
            Some(last) => Bound::Excluded(last),
            None => Bound::Included(&self.prefix),
        };
        let (name, value) = self.records.range::<[u8], _>((from, Bound::Unbounded)).next()?;
        if !name.starts_with(&self.prefix) {
            return None;
        }
        let record = R::decode(name, value);
        self.last = Some(name.clone());
        Some(record)
    }
}
