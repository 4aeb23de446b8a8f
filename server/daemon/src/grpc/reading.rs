//! `Content.Read`: the bytes of a blob go to the connection as they are, each chunk behind the few bytes that make it a
//! message; to a client with large frames the kernel sends what it has in memory, without a copy here.

use std::sync::Arc;

use bytes::{BufMut as _, Bytes, BytesMut};
use futures::StreamExt as _;
use futures::stream::{self, BoxStream};
use gantry_api::pb::containerd::services::content::v1::ReadContentRequest;
use gantry_engine::content::{CHUNK, ReaderAt};
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http;

use super::Services;
use super::decode::digest;
use super::front::{Answers, Method};
use super::plain::{PREFIX, Piece, answer, decoded, seal};
use crate::listen::Caller;
use crate::{scope, status};

/// Answers `Read`.
#[derive(Clone)]
pub(crate) struct Reading {
    services: Services,
    max_receive: usize,
}

impl Reading {
    /// Clients may send messages of `max_receive` bytes.
    pub(crate) fn new(services: Services, max_receive: usize) -> Reading {
        Reading { services, max_receive }
    }
}

impl Answers for Reading {
    fn method(name: &str) -> Option<Method<Reading>> {
        (name == "Read").then_some(|reading, request| {
            Box::pin(async move { answer_read(&reading.services, request, reading.max_receive).await })
        })
    }
}

async fn answer_read(
    services: &Services,
    request: http::Request<Body>,
    max_receive: usize,
) -> Result<http::Response<Body>, Status> {
    let request = decoded::<ReadContentRequest>(request, max_receive).await?;
    let scope = scope::of(&request)?;
    let takes_files = request.extensions().get::<Arc<Caller>>().is_some_and(|caller| caller.takes_files.get());
    let request = request.into_inner();
    let digest = digest(&request.digest)?;
    let blob = services.engine.content.reader(&scope, &digest).await.map_err(status::of)?;
    let size = blob.size();
    let start = u64::try_from(request.offset).unwrap_or(0);
    if start > size {
        return Err(Status::out_of_range(format!("read past object length {size} bytes")));
    }
    let wanted = u64::try_from(request.size).ok().filter(|&n| n > 0).unwrap_or(u64::MAX);
    let end = start.saturating_add(wanted).min(size);
    Ok(answer(pieces(blob, start, end, takes_files)))
}

/// The bytes from `start` to `end`, a chunk a message. Offsets on the wire count from `start`. Where the kernel sends
/// from files and has the bytes at hand a chunk is looked up when it is asked for; else one is read while another is sent.
fn pieces(
    blob: Arc<dyn ReaderAt>,
    start: u64,
    end: u64,
    takes_files: bool,
) -> BoxStream<'static, Result<Piece, Status>> {
    let offsets = (start..end).step_by(CHUNK);
    let read = move |offset: u64| {
        let blob = Arc::clone(&blob);
        let len = usize::try_from(end - offset).map_or(CHUNK, |left| left.min(CHUNK));
        async move {
            let mapped = takes_files.then(|| blob.mapped(offset, len)).flatten();
            let data = match mapped {
                Some(data) => data,
                None => whole(blob.read_at(offset, len).await.map_err(status::of)?, len)?,
            };
            Ok((head(offset - start, data.len())?, data))
        }
    };
    stream::iter(offsets).map(read).buffered(2).boxed()
}

fn whole(data: Bytes, len: usize) -> Result<Bytes, Status> {
    if data.len() == len {
        Ok(data)
    } else {
        let found = data.len();
        Err(Status::data_loss(format!("the blob is shorter than recorded: {found} bytes instead of {len}")))
    }
}

/// All of a `ReadContentResponse` as gRPC sends it, but the `len` bytes of data at its end.
fn head(offset: u64, len: usize) -> Result<Bytes, Status> {
    const OFFSET: u32 = 1;
    const DATA: u32 = 2;
    let mut fields = BytesMut::with_capacity(PREFIX + 2 * (1 + encoded_len_varint(u64::MAX)));
    fields.put_bytes(0, PREFIX);
    if offset > 0 {
        encode_key(OFFSET, WireType::Varint, &mut fields);
        encode_varint(offset, &mut fields);
    }
    if len > 0 {
        encode_key(DATA, WireType::LengthDelimited, &mut fields);
        encode_varint(len as u64, &mut fields);
    }
    let length = fields.len() - PREFIX + len;
    seal(&mut fields[..PREFIX], length, usize::MAX)?;
    Ok(fields.freeze())
}

#[cfg(test)]
mod tests {
    use gantry_api::pb::containerd::services::content::v1::ReadContentResponse;
    use prost::Message as _;

    use super::*;

    #[test]
    fn head_and_data_are_the_message_that_prost_encodes() {
        for (offset, data) in [(0, &b""[..]), (0, b"x"), (1, b""), (300, &[7; 200]), (1 << 40, &[1; 70_000])] {
            let message = ReadContentResponse { offset: offset as i64, data: Bytes::copy_from_slice(data) };
            let encoded = message.encode_to_vec();
            let mut expected = vec![0];
            expected.put_u32(encoded.len() as u32);
            expected.extend(encoded);
            assert_eq!([&head(offset, data.len()).unwrap()[..], data].concat(), expected);
        }
    }
}
