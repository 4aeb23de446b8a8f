//! Calls that are answered without the generated code: the request's one message decoded, and an answer whose bytes go
//! to the connection as they are.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{BufMut as _, Bytes};
use futures::StreamExt as _;
use futures::stream::BoxStream;
use hyper::HeaderMap;
use hyper::body::Frame;
use prost::Message;
use tonic::body::Body;
use tonic::codec::{DecodeBuf, Decoder, Streaming};
use tonic::codegen::http;
use tonic::metadata::MetadataMap;
use tonic::{Request, Status};

/// What is before a message of gRPC: a flag, and its length in four bytes.
pub(crate) const PREFIX: usize = 5;

/// The one message of a request.
///
/// # Errors
/// Where there is none, it does not decode, or has more than `most` bytes.
pub(crate) async fn decoded<M>(request: http::Request<Body>, most: usize) -> Result<Request<M>, Status>
where
    M: Message + Default + 'static,
{
    let (parts, body) = request.into_parts();
    let mut messages = Streaming::new_request(Messages(std::marker::PhantomData), body, None, Some(most));
    let message = messages.message().await?.ok_or_else(|| Status::internal("a request without a message"))?;
    Ok(Request::from_parts(MetadataMap::from_headers(parts.headers), parts.extensions, message))
}

struct Messages<M>(std::marker::PhantomData<fn() -> M>);

impl<M: Message + Default> Decoder for Messages<M> {
    type Item = M;
    type Error = Status;

    fn decode(&mut self, message: &mut DecodeBuf<'_>) -> Result<Option<M>, Status> {
        M::decode(message).map(Some).map_err(|error| Status::internal(error.to_string()))
    }
}

/// Puts the length of a message into its prefix.
///
/// # Errors
/// `OutOfRange`, in the words of the library below, where it has more than `most` bytes.
pub(crate) fn seal(prefix: &mut [u8], len: usize, most: usize) -> Result<(), Status> {
    let length = u32::try_from(len).ok().filter(|_| len <= most).ok_or_else(|| {
        let text = "Error, encoded message length too large";
        Status::out_of_range(format!("{text}: found {len} bytes, the limit is: {most} bytes"))
    })?;
    prefix[0] = 0;
    (&mut prefix[1..PREFIX]).put_u32(length);
    Ok(())
}

/// Bytes to send, one after the other; the second may be none.
pub(crate) type Piece = (Bytes, Bytes);

/// An answer of these bytes, which are whole messages with their prefixes, and of the status they end with.
pub(crate) fn answer(pieces: BoxStream<'static, Result<Piece, Status>>) -> http::Response<Body> {
    let mut response = http::Response::new(Body::new(Pieces { pieces, second: Bytes::new(), over: false }));
    response.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/grpc"));
    response
}

struct Pieces {
    pieces: BoxStream<'static, Result<Piece, Status>>,
    second: Bytes,
    over: bool,
}

impl hyper::body::Body for Pieces {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.over {
            return Poll::Ready(None);
        }
        if !self.second.is_empty() {
            return Poll::Ready(Some(Ok(Frame::data(std::mem::take(&mut self.second)))));
        }
        let status = match ready!(self.pieces.poll_next_unpin(cx)) {
            Some(Ok((first, second))) => {
                self.second = second;
                return Poll::Ready(Some(Ok(Frame::data(first))));
            }
            Some(Err(status)) => status,
            None => Status::ok(""),
        };
        self.over = true;
        let mut trailers = HeaderMap::new();
        Poll::Ready(Some(status.add_header(&mut trailers).map(|()| Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.over
    }
}
