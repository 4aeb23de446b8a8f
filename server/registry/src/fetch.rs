//! Fetching blobs: in one stream or, when big, in parts put together in order.

use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::Stream;
use futures::stream::BoxStream;
use gantry_types::Descriptor;

use crate::Error;
use crate::repository::Repository;

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

    /// The host that the first byte came from.
    pub fn host(&self) -> &str {
        &self.host
    }
}

impl Stream for Blob {
    type Item = Result<Bytes, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.bytes.as_mut().poll_next(cx)
    }
}

pub(crate) async fn blob(repository: Repository, descriptor: &Descriptor, range: Range<u64>) -> Result<Blob, Error> {
    let _ = (repository, descriptor, range);
    todo!()
}
