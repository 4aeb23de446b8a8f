//! Whole blobs and streams over any [`Store`].

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures::Stream;
use gantry_types::Digest;

use crate::{Commit, Error, Info, ReaderAt, Store};

/// The bytes of a range of a blob in pieces of [`crate::CHUNK`], reading ahead of the consumer. A range behind the end is cut.
pub fn stream(
    _reader: Arc<dyn ReaderAt>,
    _range: Range<u64>,
) -> impl Stream<Item = Result<Bytes, Error>> + Send + 'static {
    futures::stream::empty()
}

/// A whole small blob, for example a manifest.
///
/// # Errors
/// [`Error::TooLarge`] where it has more than `limit` bytes; [`Error::NotFound`].
pub async fn read_all(_store: &dyn Store, _digest: &Digest, _limit: u64) -> Result<Bytes, Error> {
    todo!()
}

/// Stores `data` as one blob under the ingest name `reference`; a blob that exists already is success.
///
/// # Errors
/// Those of [`Store::writer`] and [`crate::Writer::commit`], except [`Error::AlreadyExists`].
pub async fn write_all(_store: &dyn Store, _reference: &str, _data: Bytes, _commit: Commit) -> Result<Info, Error> {
    todo!()
}
