//! Listings of what may be thousands of records: encoded from the stored records, one after the other, without the
//! messages in between. Answered before the generated service.

use std::marker::PhantomData;
use std::time::SystemTime;

use bytes::Bytes;
use futures::{StreamExt as _, stream};
use gantry_api::convert::time_to_wire;
use gantry_api::pb::containerd::services::containers::v1::ListContainersRequest;
use gantry_engine::containers::{AnyView, Container, ContainerView, Damaged};
use gantry_engine::images::{Image, ImageView};
use gantry_engine::{Engine, Filter, Listing, Scope, Viewed};
use prost::encoding::{WireType, encode_key, encode_varint};
use tokio::sync::mpsc;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http;

use super::Services;
use super::decode::filter;
use super::front::{Answers, Method};
use super::plain::{PREFIX, Piece, answer, decoded, seal};
use crate::scope;

/// Records that are encoded before others have their turn.
const TURN: usize = 256;

/// Bytes of a stream that are handed to the connection at once.
const BATCH: usize = 128 << 10;

/// Batches that wait for the connection at most.
const AHEAD: usize = 2;

/// The field of a record, in answers to `List` and in messages of `ListStream` alike.
const RECORD: u32 = 1;

/// Bytes that the length of most records takes.
const RECORD_ROOM: usize = 2;

/// A kind of record with long listings.
pub(crate) trait Listed: Viewed + Send + Sync + Sized + 'static {
    /// The selected records.
    fn listing(engine: &Engine, scope: &Scope, filter: Filter) -> Listing<Self>;

    /// Appends the fields of a record's message.
    fn encode(view: &Self::View<'_>, out: &mut Vec<u8>) -> Result<(), Damaged>;
}

/// Answers `List` and `ListStream`.
pub(crate) struct Listings<R> {
    services: Services,
    max_receive: usize,
    max_send: usize,
    kind: PhantomData<fn() -> R>,
}

impl<R> Listings<R> {
    /// Clients may send messages of `max_receive` bytes, and get such of `max_send`.
    pub(crate) fn new(services: Services, max_receive: usize, max_send: usize) -> Listings<R> {
        Listings { services, max_receive, max_send, kind: PhantomData }
    }
}

impl<R> Clone for Listings<R> {
    fn clone(&self) -> Listings<R> {
        Listings { services: self.services.clone(), ..*self }
    }
}

impl<R: Listed> Answers for Listings<R> {
    fn method(name: &str) -> Option<Method<Listings<R>>> {
        match name {
            "List" => Some(|listings, request| Box::pin(listings.list(request))),
            "ListStream" => Some(|listings, request| Box::pin(listings.list_stream(request))),
            _ => None,
        }
    }
}

/// Requests for listings have one form: filters in field 1.
type ListRequest = ListContainersRequest;

impl<R: Listed> Listings<R> {
    async fn listing(&self, request: http::Request<Body>) -> Result<Listing<R>, Status> {
        let request = decoded::<ListRequest>(request, self.max_receive).await?;
        let scope = scope::of(&request)?;
        let filter = filter(&request.get_ref().filters)?;
        Ok(R::listing(&self.services.engine, &scope, filter))
    }

    /// All records in one message.
    async fn list(self, request: http::Request<Body>) -> Result<http::Response<Body>, Status> {
        let mut listing = self.listing(request).await?;
        let mut out = vec![0; PREFIX];
        while (0..TURN).all(|_| append(&mut listing, &mut out)) {
            tokio::task::yield_now().await;
        }
        let length = out.len() - PREFIX;
        seal(&mut out[..PREFIX], length, self.max_send)?;
        Ok(answer(stream::iter([Ok((out.into(), Bytes::new()))]).boxed()))
    }

    /// Each record in a message of its own. They are encoded by another task while those before are sent.
    async fn list_stream(self, request: http::Request<Body>) -> Result<http::Response<Body>, Status> {
        let mut listing = self.listing(request).await?;
        let (batches, encoded) = mpsc::channel(AHEAD);
        tokio::spawn(async move {
            while let Some(batch) = batch(&mut listing, self.max_send) {
                let failed = batch.is_err();
                // Nobody takes it any more where the call has ended.
                if batches.send(batch).await.is_err() || failed {
                    return;
                }
            }
        });
        let pieces = stream::unfold(encoded, async |mut encoded| Some((encoded.recv().await?, encoded)));
        Ok(answer(pieces.boxed()))
    }
}

/// The next messages of a stream; none at its end.
fn batch<R: Listed>(listing: &mut Listing<R>, max_send: usize) -> Option<Result<Piece, Status>> {
    let mut out = Vec::with_capacity(BATCH + BATCH / 4);
    while out.len() < BATCH {
        let start = out.len();
        out.resize(start + PREFIX, 0);
        if !append(listing, &mut out) {
            out.truncate(start);
            break;
        }
        let length = out.len() - start - PREFIX;
        if let Err(status) = seal(&mut out[start..start + PREFIX], length, max_send) {
            return Some(Err(status));
        }
    }
    (!out.is_empty()).then(|| Ok((out.into(), Bytes::new())))
}

/// Appends the next record that is not damaged; false where there is none.
fn append<R: Listed>(listing: &mut Listing<R>, out: &mut Vec<u8>) -> bool {
    let start = out.len();
    while let Some(encoded) = listing.see(|view| nested(out, RECORD, RECORD_ROOM, |out| R::encode(&view, out))) {
        match encoded {
            Ok(()) => return true,
            Err(error) => {
                tracing::warn!(%error, "record skipped");
                out.truncate(start);
            }
        }
    }
    false
}

impl Listed for Container {
    fn listing(engine: &Engine, scope: &Scope, filter: Filter) -> Listing<Container> {
        engine.containers.listing(scope, filter)
    }

    fn encode(container: &ContainerView<'_>, out: &mut Vec<u8>) -> Result<(), Damaged> {
        let ((runtime, options), (snapshotter, snapshot_key)) = (container.runtime(), container.snapshot());
        let [created, updated] = container.times();
        text(out, 1, container.id);
        texts(out, 2, container.labels());
        text(out, 3, container.image());
        nested(out, 4, 1, |out| {
            text(out, 1, runtime);
            options.map_or(Ok(()), |options| any(out, 2, options))
        })?;
        container.spec().map_or(Ok(()), |spec| any(out, 5, spec))?;
        text(out, 6, snapshotter);
        text(out, 7, snapshot_key);
        time(out, 8, created);
        time(out, 9, updated);
        for (name, extension) in container.extensions() {
            nested(out, 10, 1, |out| {
                text(out, 1, name);
                any(out, 2, extension)
            })?;
        }
        text(out, 11, container.sandbox_id());
        Ok(())
    }
}

impl Listed for Image {
    fn listing(engine: &Engine, scope: &Scope, filter: Filter) -> Listing<Image> {
        engine.images.listing(scope, filter)
    }

    fn encode(image: &ImageView<'_>, out: &mut Vec<u8>) -> Result<(), Damaged> {
        let [created, updated] = image.times();
        text(out, 1, image.name);
        texts(out, 2, image.labels());
        nested(out, 3, 1, |out| {
            let target = image.target();
            text(out, 1, target.media_type);
            text(out, 2, target.digest);
            prost::encoding::int64::encode(3, &i64::try_from(target.size).unwrap_or(i64::MAX), out);
            texts(out, 5, &target.annotations);
            Ok(())
        })?;
        time(out, 7, created);
        time(out, 8, updated);
        Ok(())
    }
}

/// A field of text; one that is empty is left out.
fn text(out: &mut Vec<u8>, tag: u32, text: &str) {
    if !text.is_empty() {
        bytes(out, tag, text.as_bytes());
    }
}

fn bytes(out: &mut Vec<u8>, tag: u32, bytes: &[u8]) {
    begin(out, tag, bytes.len());
    out.extend_from_slice(bytes);
}

/// What stands before the `length` bytes of a field.
fn begin(out: &mut Vec<u8>, tag: u32, length: usize) {
    encode_key(tag, WireType::LengthDelimited, out);
    encode_varint(length as u64, out);
}

/// All bytes of a field whose tag is one of the first fifteen, with `length` of its own.
fn field(length: usize) -> usize {
    1 + prost::length_delimiter_len(length) + length
}

/// A map of texts.
fn texts(out: &mut Vec<u8>, tag: u32, texts: &[(&str, &str)]) {
    for (key, value) in texts {
        begin(out, tag, field(key.len()) + field(value.len()));
        bytes(out, 1, key.as_bytes());
        bytes(out, 2, value.as_bytes());
    }
}

/// A message of somebody else's type, in the place where it is sent from.
fn any(out: &mut Vec<u8>, tag: u32, any: &AnyView<'_>) -> Result<(), Damaged> {
    // Fields that are empty are left out.
    begin(out, tag, [any.type_url.len(), any.len()].into_iter().filter(|length| *length > 0).map(field).sum());
    text(out, 1, any.type_url);
    if any.len() == 0 {
        return Ok(());
    }
    begin(out, 2, any.len());
    any.append_to(out)
}

fn time(out: &mut Vec<u8>, tag: u32, time: SystemTime) {
    prost::encoding::message::encode(tag, &time_to_wire(time), out);
}

/// A field with a message, whose length is put before it when it is known: in `room` bytes where it has such a length,
/// and else the message makes place for it.
fn nested(
    out: &mut Vec<u8>,
    tag: u32,
    room: usize,
    fill: impl FnOnce(&mut Vec<u8>) -> Result<(), Damaged>,
) -> Result<(), Damaged> {
    encode_key(tag, WireType::LengthDelimited, out);
    let place = out.len();
    out.resize(place + room, 0);
    fill(out)?;
    let end = out.len();
    let length = end - place - room;
    let needed = prost::length_delimiter_len(length);
    if needed != room {
        out.resize(end.max(place + needed + length), 0);
        out.copy_within(place + room..end, place + needed);
        out.truncate(place + needed + length);
    }
    encode_varint(length as u64, &mut &mut out[place..place + needed]);
    Ok(())
}
