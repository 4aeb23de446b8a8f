//! Fetching blobs: in one stream or, when big, in parts put together in order.

use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::stream::{self, BoxStream};
use futures::{Stream, StreamExt};
use gantry_types::Descriptor;

use crate::parts::Parts;
use crate::repository::Repository;
use crate::segment::Segment;
use crate::{Error, Reason, Stage};

/// The bytes of a blob on their way here: a stream that ends after exactly as many bytes as were asked for, or with
/// one error. Dropping it stops the transfer.
pub struct Blob {
    size: u64,
    host: String,
    bytes: BoxStream<'static, Result<Bytes, Error>>,
}

impl Blob {
    /// How many bytes will come.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The host that the first byte came from; empty where there was nothing to fetch.
    pub fn host(&self) -> &str {
        &self.host
    }
}

impl std::fmt::Debug for Blob {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Blob").field("size", &self.size).field("host", &self.host).finish_non_exhaustive()
    }
}

impl Stream for Blob {
    type Item = Result<Bytes, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.bytes.as_mut().poll_next(cx)
    }
}

/// Begins to fetch a range of a blob.
pub(crate) async fn blob(repository: Repository, descriptor: &Descriptor, range: Range<u64>) -> Result<Blob, Error> {
    if range.start > range.end || range.end > descriptor.size {
        let reason = Reason::Request("the range leaves the blob");
        return Err(repository.error(Stage::FetchBlob, Some(&descriptor.digest), reason));
    }
    let size = range.end - range.start;
    if size == 0 {
        return Ok(Blob { size, host: String::new(), bytes: stream::empty().boxed() });
    }
    let (repository, descriptor) = (Arc::new(repository), Arc::new(descriptor.clone()));
    let ranged = &repository.shared.config.ranged;
    let (chunk, parallel) = (ranged.chunk.max(64 << 10), ranged.parallel);
    let window = repository.shared.window.clone();
    let in_parts = size > ranged.threshold && size > chunk && parallel > 1;
    let first_end = if in_parts { range.start + chunk } else { range.end };
    let mut first = Segment::new(repository.clone(), descriptor.clone(), range.start..first_end);
    let host = first.begin().await?;
    let bytes = if !in_parts || first.is_whole() {
        first.extend_to(range.end);
        pieces(first).boxed()
    } else {
        let ask = move |part| pieces(Segment::new(repository.clone(), descriptor.clone(), part)).boxed();
        Parts::new(pieces(first).boxed(), first_end..range.end, ask, parallel - 1, chunk, window).boxed()
    };
    Ok(Blob { size, host, bytes })
}

/// The pieces of one segment. After an error nothing follows.
fn pieces(segment: Segment) -> impl Stream<Item = Result<Bytes, Error>> + Send {
    stream::try_unfold(segment, |mut segment| async move {
        let piece = segment.next().await?;
        Ok(piece.map(|piece| (piece, segment)))
    })
}
