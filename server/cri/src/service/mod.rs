//! The gRPC services: decode, call, encode.

mod image;
mod info;
mod runtime;
mod version;

use futures::stream::BoxStream;
use gantry_api::status;
use tonic::{Response, Status};

pub use image::Images;
pub use runtime::Runtime;

use crate::Result;

/// An answer, or why there is none.
type Reply<T> = std::result::Result<Response<T>, Status>;

/// A stream of answers.
type Answers<T> = BoxStream<'static, std::result::Result<T, Status>>;

/// How many entries of a list go into one message of its stream.
const CHUNK: usize = 64;

/// An answer of what was asked.
fn reply<T>(result: Result<T>) -> Reply<T> {
    result.map(Response::new).map_err(status::of)
}

/// A list as a stream of shorter ones; an empty list is one empty message.
fn chunks<T, M>(all: Vec<T>, message: impl Fn(Vec<T>) -> M + Send + 'static) -> Reply<Answers<M>>
where
    T: Send + 'static,
    M: Send + 'static,
{
    let mut parts = Vec::new();
    let mut rest = all;
    while rest.len() > CHUNK {
        let behind = rest.split_off(CHUNK);
        parts.push(std::mem::replace(&mut rest, behind));
    }
    parts.push(rest);
    let stream = futures::stream::iter(parts.into_iter().map(move |part| Ok(message(part))));
    Ok(Response::new(Box::pin(stream)))
}
