//! Whole blobs and streams over any [`Store`].

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures::Stream;
use gantry_types::{Digest, ErrorKind};
use tokio::task::JoinHandle;

use crate::store::CHUNK;
use crate::{Commit, Error, Info, ReaderAt, Store, WriterOptions};

/// Bytes that are read at a time, ahead of the consumer.
const AHEAD: usize = 2 * CHUNK;

/// The bytes of a range of a blob in pieces of [`CHUNK`], reading ahead of the consumer. A range behind the end is cut.
/// To be polled within a tokio runtime.
pub fn stream(
    reader: Arc<dyn ReaderAt>,
    range: Range<u64>,
) -> impl Stream<Item = Result<Bytes, Error>> + Send + 'static {
    let end = range.end.min(reader.size());
    let ahead = ReadAhead { reader, offset: range.start.min(end), end, ready: Bytes::new(), coming: None };
    futures::stream::try_unfold(ahead, async |mut ahead| Ok(ahead.next().await?.map(|piece| (piece, ahead))))
}

struct ReadAhead {
    reader: Arc<dyn ReaderAt>,
    /// Where the next read begins, and where the last one ends.
    offset: u64,
    end: u64,
    ready: Bytes,
    coming: Option<JoinHandle<Result<Bytes, Error>>>,
}

impl ReadAhead {
    async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        if self.ready.is_empty() {
            if self.coming.is_none() {
                self.start();
            }
            let Some(coming) = self.coming.as_mut() else { return Ok(None) };
            self.ready = coming.await.map_err(|e| Error::task(&e))??;
            self.start();
        }
        let piece = self.ready.split_to(self.ready.len().min(CHUNK));
        match piece.is_empty() {
            true => Err(Error::Other { kind: ErrorKind::DataLoss, message: "a blob is shorter than it was".into() }),
            false => Ok(Some(piece)),
        }
    }

    /// Starts the next read, where there is one.
    fn start(&mut self) {
        let len = usize::try_from(self.end - self.offset).unwrap_or(AHEAD).min(AHEAD);
        let (reader, offset) = (self.reader.clone(), self.offset);
        self.offset += len as u64;
        self.coming = (len > 0).then(|| tokio::spawn(async move { reader.read_at(offset, len).await }));
    }
}

/// A whole small blob, for example a manifest.
///
/// # Errors
/// [`Error::TooLarge`] where it has more than `limit` bytes; [`Error::NotFound`].
pub async fn read_all(store: &dyn Store, digest: &Digest, limit: u64) -> Result<Bytes, Error> {
    let reader = store.reader(digest).await?;
    let size = reader.size();
    let too_large = || Error::TooLarge { digest: digest.clone(), size, limit };
    if size > limit {
        return Err(too_large());
    }
    reader.read_at(0, usize::try_from(size).map_err(|_| too_large())?).await
}

/// Stores `data` as one blob under the ingest name `reference`; a blob that exists already is success.
///
/// # Errors
/// Those of [`Store::writer`] and [`crate::Writer::commit`], except [`Error::AlreadyExists`].
pub async fn write_all(store: &dyn Store, reference: &str, data: Bytes, commit: Commit) -> Result<Info, Error> {
    let total = Some(data.len() as u64);
    let options = WriterOptions { reference: reference.to_owned(), total, expected: commit.digest.clone() };
    match put(store, options, data, commit).await {
        Err(Error::AlreadyExists { digest }) => store.info(&digest).await,
        result => result,
    }
}

async fn put(store: &dyn Store, options: WriterOptions, data: Bytes, commit: Commit) -> Result<Info, Error> {
    let mut writer = store.writer(options).await?;
    // Bytes of an earlier attempt may be others.
    writer.truncate(0).await?;
    writer.write(0, data).await?;
    writer.commit(commit).await
}
